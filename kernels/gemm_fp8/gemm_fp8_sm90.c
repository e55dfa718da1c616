#include "kernels/gemm_fp8/gemm_fp8_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows; /* 0: plain */
  int32_t tokens;
  bool upright;
  uint32_t shared_bytes;
} variants[] = {
#define SWAP(rows, tokens, stages)    {rows, tokens, false, TDM_GEMM_FP8_SWAP_SHARED(rows, tokens, stages)},
#define UPRIGHT(rows, tokens, stages) {rows, tokens, true, TDM_GEMM_FP8_UPRIGHT_SHARED(rows, tokens, stages)},
#define PLAIN(tokens, suffix, groups, pieces, cluster, stages, segments)                                               \
  {0, tokens, false, TDM_GEMM_FP8_PLAIN_SHARED(groups, pieces, stages)},
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
#undef SWAP
#undef UPRIGHT
#undef PLAIN
};

/* Nanoseconds of a block of 128 along K of a tile; H200, 4096 x 7168 and 24576 x 1536 at 4096 tokens, 2026-11-22. */
static const struct plain_variant {
  int32_t tokens, groups, cluster, block_ns;
} plain_variants[] = {{128, 2, 1, 370}, {192, 3, 2, 490}, {256, 2, 2, 697}};

/* The same for the swapped tile of 64 x 128, and what it takes a unit that segments meet in the workspace: q_a|kv_a and
 * shared FC1 at 256 tokens. */
enum { SWAP_BLOCK_NS = 400, SWAP_MEET_NS = 2000, PLAIN_MEET_NS = 6000 };

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static int64_t waves(int64_t units, int64_t places) {
  return ceil_div(units, places < 1 ? 1 : places);
}

/* The plain variant that takes the least time, by waves of tiles. */
static const struct plain_variant* best_plain(int64_t m, int64_t n, int32_t sms) {
  const struct plain_variant* best = plain_variants;
  int64_t best_ns = INT64_MAX;
  for (size_t i = 0; i < sizeof plain_variants / sizeof *plain_variants; i++) {
    const struct plain_variant* v = &plain_variants[i];
    int64_t ns = waves(ceil_div(m, v->tokens) * ceil_div(n, 128 * v->cluster), sms / v->cluster) * v->block_ns;
    if (sms < v->cluster || ns >= best_ns) continue;
    best = v;
    best_ns = ns;
  }
  return best;
}

/* Nanoseconds of tiles of 128 tokens whose segments are units of their own. */
static int64_t split_ns(int64_t tiles, int64_t blocks, int64_t segments, int32_t sms, int64_t block_ns,
                        int64_t meet_ns) {
  return waves(tiles * segments, sms) * (ceil_div(blocks, segments) * block_ns + meet_ns);
}

/* Whether many segments of few tiles keep more SMs busy in the swapped form, whose tiles have half the weight rows. */
static bool prefers_swapped(int64_t m, int64_t n, int64_t k, int32_t sms) {
  int64_t blocks = k / 128, m_tiles = ceil_div(m, 128), tiles = m_tiles * ceil_div(n, 128);
  int64_t segments = tdm_gemm_segments(ceil_div(n, 64), 64, blocks, 2);
  int64_t block_ns = plain_variants[0].block_ns, whole = waves(tiles, sms) * blocks * block_ns;
  int64_t split = split_ns(tiles, blocks, segments, sms, block_ns, PLAIN_MEET_NS);
  int64_t swapped = split_ns(m_tiles * ceil_div(n, 64), blocks, segments, sms, SWAP_BLOCK_NS, SWAP_MEET_NS);
  return segments > 1 && swapped < whole && swapped < split;
}

static void make_plain_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* plan) {
  const struct plain_variant* v = plain_variants;
  while (v->tokens != plan->tokens) v++;
  int64_t tiles = ceil_div(m, v->tokens) * ceil_div(n, 128), blocks = k / 128, pieces = plan->segments;
  int64_t clusters = ceil_div(m, v->tokens) * ceil_div(n, 128 * v->cluster), places = sms / v->cluster;
  plan->split = pieces > 1 && split_ns(tiles, blocks, pieces, sms, v->block_ns, PLAIN_MEET_NS) <
                                  waves(tiles, sms) * blocks * v->block_ns;
  if (plan->split) clusters *= pieces;
  plan->rows = 128;
  plan->x_rows = v->tokens / v->cluster;
  (void)snprintf(plan->launch.kernel, sizeof plan->launch.kernel, "tdm_gemm_fp8_m%dn128%s_sm90", v->tokens,
                 pieces > 1 ? "_segments" : "");
  plan->launch.grid = (uint32_t)((clusters < places ? clusters : places) * v->cluster);
  plan->launch.block = (uint32_t)(128 * v->groups + 128);
  if (plan->split) {
    plan->partial_bytes = (size_t)(tiles * pieces * v->tokens * 128) * sizeof(float);
    plan->counter_bytes = (size_t)(tiles * v->groups) * sizeof(uint32_t);
  }
}

bool tdm_gemm_fp8_sm90_is_upright(int64_t m, int64_t n, int32_t sms) {
  return m > 32 && m <= 128 && n / 128 < 4 * (int64_t)sms;
}

/* Tiles of 128 weight rows copy a third less into the SMs and pay where there is one for most of them: bmm_fp8 of
 * 16 x 1024 x 4096 at M = 128, 128 such tiles, takes 19.7 us against 24.9, with 64 of them 8 x 1024 x 8192 31.3 against
 * 24.3, with 56 o (7168 x 16384) 45.3 against 36.9; H200, 2026-11-22. */
static int32_t upright_rows(int64_t n, int32_t tokens, int32_t segments, int32_t sms) {
  int64_t tiles = ceil_div(n, 128);
  return tokens == 128 && segments == 1 && tiles <= sms && tiles >= sms * INT64_C(3) / 4 ? 128 : 64;
}

void tdm_gemm_fp8_sm90_make_upright_plan(int64_t m, int64_t n, int64_t k, int32_t sms,
                                         tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan plan = {.tokens = tdm_gemm_token_tile(m), .granule = 2};
  plan.segments = tdm_gemm_segments(ceil_div(n, 64), 64, k / 128, plan.granule);
  plan.rows = upright_rows(n, plan.tokens, plan.segments, sms);
  plan.x_rows = (int32_t)tdm_gemm_loaded_rows(m, plan.tokens);
  plan.upright = true;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].upright && variants[i].rows == plan.rows && variants[i].tokens == plan.tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_n%dt%d_sm90", plan.rows, plan.tokens);
  int64_t tiles = ceil_div(m, plan.tokens) * ceil_div(n, plan.rows), units = tiles * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_FP8_THREADS;
  if (plan.segments > 1) { /* at 128 tokens a partial a consumer, each with its own tokens */
    plan.partial_bytes = (size_t)(units * plan.rows * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)(tiles * plan.tokens / 64) * sizeof(uint32_t);
  }
  *out_plan = plan;
}

void tdm_gemm_fp8_sm90_make_plan_for(int64_t m, int64_t n, int64_t k, int32_t sms, int32_t rows, int32_t tokens,
                                     tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan plan = {.swapped = rows != 0, .rows = rows, .tokens = tokens, .granule = 2};
  plan.segments = tdm_gemm_segments(ceil_div(n, 64), 64, k / 128, plan.granule);
  if (!plan.swapped && plan.segments > 1) plan.tokens = 128;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (!variants[i].upright && variants[i].rows == rows && variants[i].tokens == plan.tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  if (!plan.swapped) {
    make_plain_plan(m, n, k, sms, &plan);
    *out_plan = plan;
    return;
  }
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_swap_n%dt%d_sm90", rows, tokens);
  int64_t m_tiles = ceil_div(m, tokens), units = m_tiles * ceil_div(n, rows) * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_FP8_THREADS;
  plan.launch.shared_bytes =
      tdm_gemm_shared_bytes(plan.launch.shared_bytes, ceil_div(units, plan.launch.grid) * (k / 128) / plan.segments);
  if (plan.segments > 1) {
    int64_t tiles = ceil_div(n, 64) * m_tiles;
    plan.partial_bytes = (size_t)(tiles * plan.segments * 64 * tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

void tdm_gemm_fp8_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan) {
  int32_t tokens = tdm_gemm_token_tile(m), rows = 64;
  if (tdm_gemm_fp8_sm90_is_upright(m, n, sms)) {
    tdm_gemm_fp8_sm90_make_upright_plan(m, n, k, sms, out_plan);
    return;
  }
  /* Tiles of 128 weight rows halve the traffic of activations from L2 and pay once there are enough of them: fc1
   * (131072 x 7168) at M = 16 and 128 takes 223 and 284 us against 229 and 381, o (7168 x 16384) at M = 64 takes 45
   * against 34; H200, 2026-11-22. */
  if (n / 128 >= 4 * (int64_t)sms) rows = 128;
  if (m > 128 && !prefers_swapped(m, n, k, sms)) {
    rows = 0;
    tokens = best_plain(m, n, sms)->tokens;
  }
  tdm_gemm_fp8_sm90_make_plan_for(m, n, k, sms, rows, tokens, out_plan);
}

tdm_status tdm_gemm_fp8_sm90_encode(const char* op, const tdm_view* x, const void* x_scale, int64_t x_scale_stride,
                                    const tdm_view* w, const tdm_gemm_fp8_sm90_plan* plan, tdm_tensor_map_fn encode,
                                    void* encode_ctx, tdm_gemm_fp8_params* params) {
  /* Blocks as a dimension of their own: one copy brings two of them, each as rows of 128 bytes under the swizzle. */
  uint32_t blocks = plan->swapped ? 2 : 1;
  uint64_t k_blocks = (uint64_t)x->shape[1] / 128;
  tdm_tensor_tile x_tile = {tdm_view_data(x),
                            TDM_E4M3,
                            3,
                            {128, (uint64_t)x->shape[0], k_blocks},
                            {(uint64_t)x->stride[0], 128},
                            {128, (uint32_t)(plan->swapped ? plan->tokens : plan->x_rows), blocks},
                            true};
  tdm_tensor_tile w_tile = {tdm_view_data(w),
                            TDM_E4M3,
                            3,
                            {128, (uint64_t)w->shape[0], k_blocks},
                            {(uint64_t)w->stride[0], 128},
                            {128, (uint32_t)plan->rows, blocks},
                            true};
  tdm_tensor_tile scale_tile = {(void*)(uintptr_t)x_scale,
                                TDM_F32,
                                2,
                                {(uint64_t)x->shape[0], k_blocks},
                                {(uint64_t)x_scale_stride * sizeof(float)},
                                {(uint32_t)(plan->upright ? plan->x_rows : plan->tokens), blocks},
                                false};
  if (!tdm_tensor_tile_valid(&x_tile) || !tdm_tensor_tile_valid(&w_tile) || !tdm_tensor_tile_valid(&scale_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "%s: data and row strides of x (%lld), w (%lld) and scales (%lld) must be multiples of 16 bytes",
                    op, (long long)x->stride[0], (long long)w->stride[0], (long long)x_scale_stride);
  TDM_TRY(encode(encode_ctx, &x_tile, &params->x));
  TDM_TRY(encode(encode_ctx, &w_tile, &params->w));
  return encode(encode_ctx, &scale_tile, &params->x_scale);
}

tdm_status tdm_gemm_fp8_sm90_encode_out(const tdm_view* out, tdm_tensor_map_fn encode, void* encode_ctx,
                                        tdm_gemm_fp8_params* params) {
  /* A warp's tokens, 128 bytes of each. */
  tdm_tensor_tile tile = {tdm_view_data(out),
                          TDM_BF16,
                          2,
                          {(uint64_t)out->shape[1], (uint64_t)out->shape[0]},
                          {(uint64_t)out->stride[0] * 2},
                          {64, 16},
                          true};
  params->store_boxes = out->dtype == TDM_BF16 && tdm_tensor_tile_valid(&tile);
  return params->store_boxes ? encode(encode_ctx, &tile, &params->out_map) : TDM_OK;
}

tdm_status tdm_gemm_fp8_sm90_params(const tdm_gemm_fp8_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                    void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                    tdm_gemm_fp8_params* out_params) {
  if (args->a.dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "gemm_fp8: %s activations need the host device", tdm_dtype_name(args->a.dtype));
  tdm_gemm_fp8_params params = {.w_scale = tdm_view_data(&args->w_scale),
                                .w_scale_stride = args->w_scale.stride[0],
                                .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                .out = tdm_view_data(&args->out),
                                .out_stride = args->out.stride[0],
                                .partials = partials,
                                .counters = counters,
                                .out_dtype = (int32_t)args->out.dtype,
                                .m = (int32_t)args->a.shape[0],
                                .n = (int32_t)args->w.shape[0],
                                .k_blocks = (int32_t)(args->a.shape[1] / 128),
                                .segments = plan->segments,
                                .granule = plan->granule,
                                .split = plan->split};
  TDM_TRY(tdm_gemm_fp8_sm90_encode("gemm_fp8", &args->a, tdm_view_data(&args->a_scale), args->a_scale.stride[0],
                                   &args->w, plan, encode, encode_ctx, &params));
  if (!plan->swapped && !plan->upright) TDM_TRY(tdm_gemm_fp8_sm90_encode_out(&args->out, encode, encode_ctx, &params));
  *out_params = params;
  return TDM_OK;
}
