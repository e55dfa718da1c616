#ifndef KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_SM90_H
#define KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_SM90_H

#include "kernels/device/launch.h"
#include "kernels/inverse_rope_quant/inverse_rope_quant_params.h"
#include "tandem/ops.h"

/* What of the parameters follows from shapes and strides alone. */
void tdm_inverse_rope_quant_sm90_shape(const tdm_inverse_rope_quant_args* args,
                                       tdm_inverse_rope_quant_params* out_params);
/* Kernel parameters of checked args. */
void tdm_inverse_rope_quant_sm90_params(const tdm_inverse_rope_quant_args* args,
                                        tdm_inverse_rope_quant_params* out_params);
/* Launch on `sms` SMs. */
void tdm_inverse_rope_quant_sm90_plan(const tdm_inverse_rope_quant_params* params, int32_t sms,
                                      tdm_kernel_launch* out_launch);

#endif
