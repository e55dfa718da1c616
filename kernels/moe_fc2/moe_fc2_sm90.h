#ifndef KERNELS_MOE_FC2_MOE_FC2_SM90_H
#define KERNELS_MOE_FC2_MOE_FC2_SM90_H

/* Planning of the Hopper kernels of moe_fc2 for FP8 (moe_fc2_bf16_sm90.h has the other): routing weights folded into
 * the activation scales, then a gemm_fp8. Pure functions, no GPU needed. */

#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "kernels/moe_fc2/moe_fc2_params.h"

typedef struct tdm_moe_fc2_sm90_plan {
  tdm_gemm_fp8_sm90_plan gemm;
  bool folds; /* there are routing weights: `fold` is to be launched before the GEMM */
  tdm_kernel_launch fold;
  int64_t folded_stride; /* of the folded scales, which lie behind the GEMM's partials */
  size_t scratch_bytes;  /* workspace, 256-byte aligned, any contents */
} tdm_moe_fc2_sm90_plan;

/* For up to m rows, hidden columns and n_experts of `intermediate` on `sms` SMs; `routed`: with routing weights. */
void tdm_moe_fc2_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, bool routed,
                                int32_t sms, tdm_moe_fc2_sm90_plan* out_plan);

/* Kernel parameters of checked args; out_fold where the plan folds. UNSUPPORTED as for gemm_fp8. */
tdm_status tdm_moe_fc2_sm90_params(const tdm_moe_fc2_args* args, const tdm_moe_fc2_sm90_plan* plan, void* scratch,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_moe_fc2_fold_params* out_fold, tdm_gemm_fp8_params* out_params);

#endif
