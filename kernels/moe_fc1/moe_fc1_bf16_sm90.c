#include "kernels/moe_fc1/moe_fc1_bf16_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define FC1_BF16(tokens, stages) {tokens, TDM_MOE_FC1_BF16_SHARED(tokens, stages)},
#include "kernels/moe_fc1/moe_fc1_bf16_variants.inc"
#undef FC1_BF16
};

void tdm_moe_fc1_bf16_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms,
                                     tdm_moe_fc1_bf16_sm90_plan* out_plan) {
  tdm_moe_fc1_bf16_sm90_plan plan = {.tokens = tdm_gemm_token_tile(m)};
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].tokens == plan.tokens) plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc1_bf16_t%d_sm90", plan.tokens);
  plan.segments = tdm_gemm_segments(n / 128, 256, k / 64, 1);
  int64_t tiles = (m + plan.tokens - 1) / plan.tokens * (n / 128), units = tiles * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_MOE_FC1_BF16_THREADS;
  if (plan.segments > 1) { /* each warpgroup adds up its own half of a tile */
    plan.partial_bytes = (size_t)(units * 256 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)(2 * tiles) * sizeof(uint32_t);
  }
  *out_plan = plan;
}

tdm_status tdm_moe_fc1_bf16_sm90_params(const tdm_moe_fc1_args* args, const tdm_moe_fc1_bf16_sm90_plan* plan,
                                        void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                        tdm_moe_fc1_bf16_params* out_params) {
  const tdm_view *x = &args->x, *w = &args->w13;
  int64_t experts = w->shape[0], rows = w->shape[1], hidden = w->shape[2];
  tdm_tensor_tile w_tile = {tdm_view_data(w),
                            TDM_BF16,
                            3,
                            {(uint64_t)hidden, (uint64_t)rows, (uint64_t)experts},
                            {(uint64_t)w->stride[1] * 2, experts > 1 ? (uint64_t)w->stride[0] * 2 : 16},
                            {64, 256, 1},
                            true};
  tdm_tensor_tile x_tile = {tdm_view_data(x),
                            TDM_BF16,
                            2,
                            {(uint64_t)hidden, (uint64_t)x->shape[0]},
                            {(uint64_t)x->stride[0] * 2},
                            {64, (uint32_t)plan->tokens},
                            true};
  if (!tdm_tensor_tile_valid(&w_tile) || !tdm_tensor_tile_valid(&x_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_fc1: data and strides of x (%lld) and w13 (%lld, %lld) must be multiples of 16 bytes",
                    (long long)x->stride[0], (long long)w->stride[0], (long long)w->stride[1]);
  tdm_moe_fc1_bf16_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                    .out = tdm_view_data(&args->out),
                                    .out_stride = args->out.stride[0],
                                    .partials = partials,
                                    .counters = counters,
                                    .hits = tdm_view_data_or_null(&args->hits),
                                    .m = (int32_t)x->shape[0],
                                    .n_tiles = (int32_t)(experts * rows / 256),
                                    .expert_tiles = (int32_t)(rows / 256),
                                    .k_blocks = (int32_t)(hidden / 64),
                                    .segments = plan->segments,
                                    .swiglu_limit = args->swiglu_limit,
                                    .n_experts = (int32_t)experts};
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  TDM_TRY(encode(encode_ctx, &x_tile, &params.x));
  *out_params = params;
  return TDM_OK;
}
