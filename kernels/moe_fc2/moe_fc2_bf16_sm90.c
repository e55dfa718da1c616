#include "kernels/moe_fc2/moe_fc2_bf16_sm90.h"

#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows;
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define FC2_BF16(rows, tokens, stages) {rows, tokens, TDM_GEMM_BF16_SHARED(rows, tokens, stages)},
#include "kernels/moe_fc2/moe_fc2_bf16_variants.inc"
#undef FC2_BF16
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

void tdm_moe_fc2_bf16_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                     tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_gemm_bf16_sm90_plan plan = {.rows = m > 128 ? 128 : 64,
                                  .tokens = tdm_gemm_token_tile(m),
                                  .segments = tdm_moe_fc2_splits(n_experts, hidden, intermediate, false),
                                  .granule = (int32_t)(intermediate / 64)};
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].rows == plan.rows && variants[i].tokens == plan.tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc2_bf16_n%dt%d_sm90", plan.rows, plan.tokens);
  int64_t m_tiles = ceil_div(m, plan.tokens), units = m_tiles * ceil_div(hidden, plan.rows) * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_BF16_THREADS;
  if (plan.segments > 1) {
    int64_t tiles = ceil_div(hidden, 64) * m_tiles;
    plan.partial_bytes = (size_t)(tiles * plan.segments * 64 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

tdm_status tdm_moe_fc2_bf16_sm90_params(const tdm_moe_fc2_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                        void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                        tdm_moe_fc2_bf16_params* out_params) {
  tdm_moe_fc2_bf16_params params = {0};
  TDM_TRY(tdm_gemm_bf16_sm90_fill("moe_fc2", &args->n_tokens, &args->x, &args->w2, &args->out, plan, partials, counters,
                                  encode, encode_ctx, &params.gemm));
  params.n_experts = args->n_experts;
  if (tdm_view_present(&args->hits)) params.hits = tdm_view_data(&args->hits);
  if (tdm_view_present(&args->alpha)) {
    params.alpha = tdm_view_data(&args->alpha);
    params.alpha_stride = args->alpha.stride[0];
  }
  if (tdm_view_present(&args->addend)) {
    params.addend = tdm_view_data(&args->addend);
    params.addend_stride = args->addend.stride[0];
    params.addend_dtype = (int32_t)args->addend.dtype;
  }
  *out_params = params;
  return TDM_OK;
}
