#ifndef KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_SM90_H
#define KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/mla_norm_write/mla_norm_write_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args, and the launch on `sms` SMs. */
void tdm_mla_norm_write_sm90_launch(const tdm_mla_norm_write_args* args, int32_t sms,
                                    tdm_mla_norm_write_params* out_params, tdm_kernel_launch* out_launch);

#endif
