#include "kernels/mla_absorb/mla_absorb_sm90.h"

#include <stdio.h>

#include "kernels/gemm_bf16/gemm_bf16_short_sm90.h"
#include "kernels/mla_absorb/mla_absorb.h"
#include "kernels/rope/rope_sm90.h"
#include "runtime/op.h"
#include "runtime/status.h"

void tdm_mla_absorb_sm90_plan(const tdm_mla_absorb_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  const tdm_gemm_bf16_args gemm = tdm_mla_absorb_gemm(args);
  tdm_gemm_bf16_sm90_plan plan;
  if (tdm_gemm_bf16_short_sm90_make_plan(&gemm, sms, &plan)) {
    (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_mla_absorb_short_n%dt%d_sm90", plan.rows,
                   plan.tokens);
    plan.launch.block = TDM_MLA_ABSORB_SHORT_THREADS;
    *out_plan = plan;
    return;
  }
  tdm_gemm_bf16_sm90_make_plan(gemm.a.shape[0], gemm.a.shape[1], gemm.w.shape[1], gemm.w.shape[2], true, sms, &plan);
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_mla_absorb_n%dt%d_sm90", plan.rows, plan.tokens);
  plan.launch.shared_bytes += TDM_MLA_ABSORB_SHARED(0, 0, 0) - TDM_GEMM_BF16_SHARED(0, 0, 0);
  *out_plan = plan;
}

tdm_status tdm_mla_absorb_short_sm90_params(const tdm_mla_absorb_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                            const tdm_encode_env* env, tdm_mla_absorb_short_params* out_params) {
  const tdm_gemm_bf16_args gemm = tdm_mla_absorb_gemm(args);
  const tdm_rope_args rope = tdm_mla_absorb_rope(args);
  tdm_mla_absorb_short_params params = {0};
  TDM_TRY(tdm_gemm_bf16_short_sm90_params(&gemm, plan, env->tensor_map, env->tensor_map_ctx, &params.gemm));
  tdm_rope_sm90_params(&rope, &params.rope);
  *out_params = params;
  return TDM_OK;
}

tdm_status tdm_mla_absorb_sm90_params(const tdm_mla_absorb_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                      const tdm_encode_env* env, tdm_mla_absorb_params* out_params) {
  const tdm_gemm_bf16_args gemm = tdm_mla_absorb_gemm(args);
  const tdm_rope_args rope = tdm_mla_absorb_rope(args);
  tdm_mla_absorb_params params = {0};
  TDM_TRY(tdm_gemm_bf16_sm90_fill("mla_absorb", &gemm.n_tokens, &gemm.a, &gemm.w, &gemm.out, plan, env->scratch,
                                  env->state, env->tensor_map, env->tensor_map_ctx, &params.gemm));
  tdm_rope_sm90_params(&rope, &params.rope);
  *out_params = params;
  return TDM_OK;
}
