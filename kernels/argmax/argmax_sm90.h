#ifndef KERNELS_ARGMAX_ARGMAX_SM90_H
#define KERNELS_ARGMAX_ARGMAX_SM90_H

#include "kernels/argmax/argmax_params.h"
#include "kernels/device/launch.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_argmax_sm90_params(const tdm_argmax_args* args, tdm_argmax_params* out_params);
/* Launch on `sms` SMs. */
void tdm_argmax_sm90_plan(const tdm_argmax_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
