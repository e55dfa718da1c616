#ifndef KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_SM90_H
#define KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/mla_kv_write/mla_kv_write_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_mla_kv_write_sm90_params(const tdm_mla_kv_write_args* args, tdm_mla_kv_write_params* out_params);
/* Launch on `sms` SMs. */
void tdm_mla_kv_write_sm90_plan(const tdm_mla_kv_write_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
