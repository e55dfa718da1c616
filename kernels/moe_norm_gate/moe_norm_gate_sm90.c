#include "kernels/moe_norm_gate/moe_norm_gate_sm90.h"

#include <stdio.h>

#include "kernels/moe_norm_gate/moe_norm_gate.h"
#include "kernels/rmsnorm/rmsnorm_sm90.h"
#include "kernels/router_gemm/router_gemm_sm90.h"
#include "runtime/op.h"
#include "runtime/status.h"

/* Blocks of the longest segment, as segment_begin of gemm.cuh cuts them. */
static int32_t segment_blocks(int64_t hidden, const tdm_gemm_bf16_sm90_plan* plan) {
  const int32_t granules = (int32_t)((hidden / 64 + plan->granule - 1) / plan->granule);
  return (granules + plan->segments - 1) / plan->segments * plan->granule;
}

void tdm_moe_norm_gate_sm90_make_plan(int64_t n_experts, int64_t hidden, int32_t sms,
                                      tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_gemm_bf16_sm90_plan plan;
  tdm_router_gemm_sm90_make_plan(TDM_MOE_NORM_GATE_ROWS, n_experts, hidden, sms, &plan);
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_norm_gate_sm90");
  plan.launch.block = TDM_MOE_NORM_GATE_THREADS;
  plan.launch.shared_bytes = TDM_MOE_NORM_GATE_SHARED(segment_blocks(hidden, &plan));
  plan.partial_bytes = (size_t)(plan.segments * TDM_MOE_NORM_GATE_ROWS * n_experts) * sizeof(float);
  plan.counter_bytes = 0;
  *out_plan = plan;
}

tdm_status tdm_moe_norm_gate_sm90_params(const tdm_moe_norm_gate_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                         void* partials, tdm_tensor_map_fn encode, void* encode_ctx,
                                         tdm_moe_norm_gate_params* out_params) {
  const tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(args);
  tdm_moe_norm_gate_params params = {
      .prefetch = {tdm_prefetch_of(&args->prefetch[0]), tdm_prefetch_of(&args->prefetch[1])},
      .segment_blocks = segment_blocks(args->x.shape[1], plan)};
  TDM_TRY(tdm_gemm_bf16_sm90_fill("moe_norm_gate", &args->n_tokens, &args->out, &args->w, &args->logits, plan, partials,
                                  NULL, encode, encode_ctx, &params.gemm));
  tdm_rmsnorm_sm90_params(&norm, &params.norm);
  if (params.norm.vectors == 0) {
    return TDM_FAIL(
        TDM_UNSUPPORTED,
        "moe_norm_gate: strides of x (%lld), delta (%lld), residual_out (%lld), out (%lld) and out_q (%lld) "
        "must be multiples of 8 elements",
        (long long)params.norm.x_stride, (long long)params.norm.delta_stride, (long long)params.norm.residual_stride,
        (long long)params.norm.out_stride, (long long)params.norm.out_q_stride);
  }
  *out_params = params;
  return TDM_OK;
}
