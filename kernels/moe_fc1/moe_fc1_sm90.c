#include "kernels/moe_fc1/moe_fc1_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t piece; /* gate rows of a piece; 0: tiles are whole */
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define SWAP(tokens, stages)        {0, tokens, TDM_MOE_FC1_SWAP_SHARED(tokens, stages)},
#define UPRIGHT(tokens, stages)     {0, tokens, TDM_MOE_FC1_UPRIGHT_SHARED(tokens, stages)},
#define SPLIT(tokens, rows, stages) {rows, tokens, TDM_MOE_FC1_SPLIT_SHARED(tokens, rows, stages)},
#include "kernels/moe_fc1/moe_fc1_variants.inc"
#undef SWAP
#undef UPRIGHT
#undef SPLIT
};

int32_t tdm_moe_fc1_sm90_segments(int64_t n, int64_t k) {
  enum { MOST = 8 }; /* two pieces a tile, and a counter has room for 16 parts */
  const int32_t segments = tdm_gemm_segments(n / 64, 128, k / 128, 1);
  return segments < MOST ? segments : MOST;
}

/* Gate rows of a piece. The experts of few tokens have few tiles as well, each of which one SM would bring in by
 * itself: nine experts of 256 have 18. Where whole tiles keep half of the SMs busy nothing is to be gained. Without
 * segments the sums are those of whole tiles. */
static int32_t piece_of(int64_t m, int32_t segments, bool some) {
  if (segments > 1) return 64;
  return !some || m > 4 ? 0 : m > 1 ? 64 : 32;
}

void tdm_moe_fc1_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, bool some,
                                tdm_moe_fc1_sm90_plan* out_plan) {
  tdm_moe_fc1_sm90_plan plan = {.segments = tdm_moe_fc1_sm90_segments(n, k), .tokens = tdm_gemm_token_tile(m)};
  plan.piece = piece_of(m, plan.segments, some);
  if (plan.piece && plan.tokens < 64) plan.tokens = 64;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].piece == plan.piece && variants[i].tokens == plan.tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  char form[16] = "";
  if (plan.piece)
    (void)snprintf(form, sizeof form, "split_n%d", plan.piece);
  else if (plan.tokens <= 32)
    (void)snprintf(form, sizeof form, "swap_");
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc1_%st%d_sm90", form, plan.tokens);
  int64_t tiles = (m + plan.tokens - 1) / plan.tokens * (n / 128), units = tiles;
  if (plan.piece) {
    units *= 128 / plan.piece * plan.segments;
    plan.partial_bytes = (size_t)(units * 2 * plan.piece * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  if (!plan.piece && plan.tokens <= 32 && units > sms && (some || units % sms != 0)) { /* CTAs share tiles */
    plan.partial_bytes = (size_t)plan.launch.grid * TDM_MOE_FC1_SUM_BYTES((size_t)plan.tokens);
    plan.counter_bytes = (1 + (size_t)plan.launch.grid) * sizeof(uint32_t);
  }
  plan.launch.block = TDM_MOE_FC1_THREADS;
  if (!plan.piece && plan.tokens <= 32) {
    int64_t waves = (units + plan.launch.grid - 1) / plan.launch.grid;
    plan.launch.shared_bytes = tdm_gemm_shared_bytes(plan.launch.shared_bytes, waves * (k / 128) * 4);
  }
  *out_plan = plan;
}

tdm_status tdm_moe_fc1_sm90_params(const tdm_moe_fc1_args* args, const tdm_moe_fc1_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_moe_fc1_params* out_params) {
  const tdm_view *x = &args->x, *x_scale = &args->x_scale, *w = &args->w13, *w_scale = &args->w13_scale;
  if (x->dtype != TDM_E4M3 || w->dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc1: %s times %s needs the host device", tdm_dtype_name(x->dtype),
                    tdm_dtype_name(w->dtype));
  int64_t experts = w->shape[0], rows = w->shape[1];
  if (experts > 1 && (w->stride[0] != rows * w->stride[1] || w_scale->stride[0] != rows / 128 * w_scale->stride[1]))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_fc1: experts of w13 (stride %lld) and w13_scale (stride %lld) must follow each other",
                    (long long)w->stride[0], (long long)w_scale->stride[0]);
  uint64_t k_blocks = (uint64_t)x->shape[1] / 128;
  uint32_t x_rows = (uint32_t)plan->tokens, x_blocks = plan->x_blocks ? (uint32_t)plan->x_blocks : 1;
  if (plan->tokens >= 64) x_rows = tdm_gemm_loaded_rows(x->shape[0], plan->tokens);
  tdm_tensor_tile w_tile = {tdm_view_data(w),
                            TDM_E4M3,
                            3,
                            {128, (uint64_t)(experts * rows), k_blocks},
                            {(uint64_t)w->stride[1], 128},
                            {128, plan->piece ? (uint32_t)plan->piece : 256, 1},
                            true};
  tdm_tensor_tile x_tile = {
      tdm_view_data(x),        TDM_E4M3, 3, {128, (uint64_t)x->shape[0], k_blocks}, {(uint64_t)x->stride[0], 128},
      {128, x_rows, x_blocks}, true};
  tdm_tensor_tile scale_tile = {tdm_view_data(x_scale),
                                TDM_F32,
                                2,
                                {(uint64_t)x->shape[0], k_blocks},
                                {(uint64_t)x_scale->stride[0] * sizeof(float)},
                                {x_rows, x_blocks},
                                false};
  if (args->out.stride[0] % 16 != 0 || !tdm_tensor_tile_valid(&w_tile) || !tdm_tensor_tile_valid(&x_tile) ||
      !tdm_tensor_tile_valid(&scale_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_fc1: data and row strides of x (%lld), w13 (%lld) and out (%lld) must be multiples of 16",
                    (long long)x->stride[0], (long long)w->stride[1], (long long)args->out.stride[0]);
  tdm_moe_fc1_params params = {.w_scale = tdm_view_data(w_scale),
                               .w_scale_stride = w_scale->stride[1],
                               .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                               .out = tdm_view_data(&args->out),
                               .out_stride = args->out.stride[0],
                               .out_scale = tdm_view_data(&args->out_scale),
                               .out_scale_stride = args->out_scale.stride[0],
                               .partials = plan->partial_bytes > 0 ? partials : NULL,
                               .counters = plan->counter_bytes > 0 ? counters : NULL,
                               .hits = tdm_view_data_or_null(&args->hits),
                               .n_experts = (int32_t)experts,
                               .expert_tiles = (int32_t)(rows / 256),
                               .segments = plan->segments,
                               .m = (int32_t)x->shape[0],
                               .n_tiles = (int32_t)(experts * rows / 256),
                               .k_blocks = (int32_t)k_blocks,
                               .swiglu_limit = args->swiglu_limit,
                               .quant_eps = args->quant_eps,
                               .pow2_scale = args->pow2_scale};
  if (tdm_view_present(&args->chosen))
    params.choices = (tdm_choices_params){tdm_view_data(&args->chosen), args->chosen.stride[0]};
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  TDM_TRY(encode(encode_ctx, &x_tile, &params.x));
  TDM_TRY(encode(encode_ctx, &scale_tile, &params.x_scale));
  *out_params = params;
  return TDM_OK;
}
