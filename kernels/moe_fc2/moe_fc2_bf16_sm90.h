#ifndef KERNELS_MOE_FC2_MOE_FC2_BF16_SM90_H
#define KERNELS_MOE_FC2_MOE_FC2_BF16_SM90_H

/* Planning of the Hopper kernel of moe_fc2 for bf16 activations and weights: a gemm_bf16 whose segments begin on expert
 * boundaries. Pure functions, no GPU needed. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/moe_fc2/moe_fc2_bf16_params.h"

/* For up to m rows, hidden columns and n_experts of `intermediate` on `sms` SMs. */
void tdm_moe_fc2_bf16_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                     tdm_gemm_bf16_sm90_plan* out_plan);

/* Kernel parameters of checked bf16 args. UNSUPPORTED as for gemm_bf16. */
tdm_status tdm_moe_fc2_bf16_sm90_params(const tdm_moe_fc2_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                        void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                        tdm_moe_fc2_bf16_params* out_params);

#endif
