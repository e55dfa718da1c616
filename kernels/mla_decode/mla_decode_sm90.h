#ifndef KERNELS_MLA_DECODE_MLA_DECODE_SM90_H
#define KERNELS_MLA_DECODE_MLA_DECODE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/mla_decode/mla_decode_params.h"
#include "tandem/ops.h"

/* Launch for up to `rows` tokens of `heads` heads on `sms` SMs. */
void tdm_mla_decode_sm90_plan(int64_t rows, int64_t heads, int32_t sms, tdm_kernel_launch* out_launch);

/* Kernel parameters of checked args. UNSUPPORTED for f32 q or cache and for strides that the copy engine cannot take.
 */
tdm_status tdm_mla_decode_sm90_params(const tdm_mla_decode_args* args, tdm_tensor_map_fn encode, void* encode_ctx,
                                      tdm_mla_decode_params* out_params);

#endif
