#ifndef KERNELS_GATHER_ROWS_GATHER_ROWS_SM90_H
#define KERNELS_GATHER_ROWS_GATHER_ROWS_SM90_H

#include "kernels/device/launch.h"
#include "kernels/gather_rows/gather_rows_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_gather_rows_sm90_params(const tdm_gather_rows_args* args, tdm_gather_rows_params* out_params);
/* Launch on `sms` SMs. */
void tdm_gather_rows_sm90_plan(const tdm_gather_rows_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
