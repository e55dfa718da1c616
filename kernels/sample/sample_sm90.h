#ifndef KERNELS_SAMPLE_SAMPLE_SM90_H
#define KERNELS_SAMPLE_SAMPLE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/sample/sample_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_sample_sm90_params(const tdm_sample_args* args, tdm_sample_params* out_params);
/* Launch on `sms` SMs. */
void tdm_sample_sm90_plan(const tdm_sample_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
