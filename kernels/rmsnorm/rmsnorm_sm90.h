#ifndef KERNELS_RMSNORM_RMSNORM_SM90_H
#define KERNELS_RMSNORM_RMSNORM_SM90_H

#include "kernels/device/launch.h"
#include "kernels/rmsnorm/rmsnorm_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_rmsnorm_sm90_params(const tdm_rmsnorm_args* args, tdm_rmsnorm_params* out_params);
/* Launch on `sms` SMs. */
void tdm_rmsnorm_sm90_plan(const tdm_rmsnorm_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
