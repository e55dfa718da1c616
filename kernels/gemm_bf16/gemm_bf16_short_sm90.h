#ifndef KERNELS_GEMM_BF16_GEMM_BF16_SHORT_SM90_H
#define KERNELS_GEMM_BF16_GEMM_BF16_SHORT_SM90_H

/* Planning of gemm_bf16's Hopper kernels for a short K and few tokens. Pure functions, no GPU needed. */

#include "kernels/gemm_bf16/gemm_bf16_short_params.h"
#include "kernels/gemm_bf16/gemm_bf16_sm90.h"

/* Whether the form fits, and then its plan: up to 128 tokens, K of at most 128 and N a multiple of 128; w MN-major; all
 * bf16; strides that are multiples of 16 bytes. Which form runs decides no bits. */
bool tdm_gemm_bf16_short_sm90_make_plan(const tdm_gemm_bf16_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan);

/* Kernel parameters of checked args that the form fits. */
tdm_status tdm_gemm_bf16_short_sm90_params(const tdm_gemm_bf16_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                           tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_gemm_bf16_short_params* out_params);

#endif
