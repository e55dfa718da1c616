#include "kernels/router_gemm/router_gemm_sm90.h"

#include <stdio.h>

#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define ROUTER(tokens, stages) {tokens, TDM_GEMM_BF16_SHARED(64, tokens, stages)},
#include "kernels/router_gemm/router_gemm_variants.inc"
#undef ROUTER
};

void tdm_router_gemm_sm90_make_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                    tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_gemm_bf16_sm90_plan plan = {.tokens = tdm_gemm_token_tile(m), .rows = 64, .granule = 2};
  plan.segments = tdm_gemm_segments((n_experts + 63) / 64, 64, (hidden + 63) / 64, plan.granule);
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].tokens == plan.tokens) plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_router_gemm_t%d_sm90", plan.tokens);
  int64_t tiles = (n_experts + 63) / 64 * ((m + plan.tokens - 1) / plan.tokens), units = tiles * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_BF16_THREADS;
  if (plan.segments > 1) {
    plan.partial_bytes = (size_t)(units * 64 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

tdm_status tdm_router_gemm_sm90_params(const tdm_router_gemm_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                       void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_router_gemm_params* out_params) {
  tdm_router_gemm_params params = {.prefetch = tdm_prefetch_of(&args->prefetch)};
  TDM_TRY(tdm_gemm_bf16_sm90_fill("router_gemm", &args->n_tokens, &args->x, &args->w, &args->logits, plan, partials,
                                  counters, encode, encode_ctx, &params.gemm));
  *out_params = params;
  return TDM_OK;
}
