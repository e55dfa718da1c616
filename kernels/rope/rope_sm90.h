#ifndef KERNELS_ROPE_ROPE_SM90_H
#define KERNELS_ROPE_ROPE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/rope/rope_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_rope_sm90_params(const tdm_rope_args* args, tdm_rope_params* out_params);
/* Launch on `sms` SMs. */
void tdm_rope_sm90_plan(const tdm_rope_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
