#ifndef KERNELS_QUANT_QUANT_SM90_H
#define KERNELS_QUANT_QUANT_SM90_H

#include "kernels/device/launch.h"
#include "kernels/quant/quant_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_quant_sm90_params(const tdm_quant_args* args, tdm_quant_params* out_params);
/* Launch on `sms` SMs. */
void tdm_quant_sm90_plan(const tdm_quant_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
