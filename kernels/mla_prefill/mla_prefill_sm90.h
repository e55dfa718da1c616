#ifndef KERNELS_MLA_PREFILL_MLA_PREFILL_SM90_H
#define KERNELS_MLA_PREFILL_MLA_PREFILL_SM90_H

#include "kernels/device/launch.h"
#include "kernels/mla_prefill/mla_prefill_params.h"
#include "tandem/ops.h"

/* Launch for up to `rows` tokens of `heads` heads in up to `seqs` sequences on `sms` SMs. */
void tdm_mla_prefill_sm90_plan(int64_t rows, int64_t heads, int64_t seqs, int32_t sms, tdm_kernel_launch* out_launch);

/* Kernel parameters of checked args. UNSUPPORTED for f32 operands and for strides that the copy engine cannot take. */
tdm_status tdm_mla_prefill_sm90_params(const tdm_mla_prefill_args* args, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_mla_prefill_params* out_params);

#endif
