#include "kernels/gemm_fp8/gemm_fp8_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  tdm_gemm_fp8_form form;
  int32_t rows;
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define SWAP(rows, tokens, stages) {TDM_GEMM_FP8_SWAPPED, rows, tokens, TDM_GEMM_FP8_SWAP_SHARED(rows, tokens, stages)},
#define UPRIGHT(rows, tokens, stages)                                                                                  \
  {TDM_GEMM_FP8_UPRIGHT, rows, tokens, TDM_GEMM_FP8_UPRIGHT_SHARED(rows, tokens, stages)},
#define PLAIN(stages) {TDM_GEMM_FP8_PLAIN, 128, 128, TDM_GEMM_FP8_PLAIN_SHARED(stages)},
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
#undef SWAP
#undef UPRIGHT
#undef PLAIN
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* Tiles of 64 weight rows that give every SM one, over a long K: at 128 tokens, halves of the sum by tiles of 128 rows
 * take less of L2 than whole sums by tiles of 64, fc2 (7168 x 65536) 134 us against 157 and o (7168 x 16384) 38 against
 * 40. With fewer tokens, and always below, a unit goes through both segments. H200, 2026-11-22. */
bool tdm_gemm_fp8_sm90_halved(int64_t n, int64_t k, int32_t granule) {
  enum { FEWEST_TILES = 96, MOST_TILES = 132, FEWEST_BLOCKS = 96 };
  int64_t tiles = ceil_div(n, 64);
  return tiles >= FEWEST_TILES && tiles <= MOST_TILES && k / 128 >= FEWEST_BLOCKS && k / 128 >= 2 * granule;
}

int32_t tdm_gemm_fp8_sm90_segments(int64_t n, int64_t k, int32_t granule) {
  return tdm_gemm_fp8_sm90_halved(n, k, granule) ? 2 : tdm_gemm_segments(ceil_div(n, 64), 64, k / 128, granule);
}

void tdm_gemm_fp8_sm90_divide(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* plan) {
  bool upright = plan->form == TDM_GEMM_FP8_UPRIGHT,
       serial = tdm_gemm_fp8_sm90_halved(n, k, plan->granule) && !(upright && plan->rows == 128);
  plan->segments = tdm_gemm_fp8_sm90_segments(n, k, plan->granule);
  plan->parts = serial || plan->form == TDM_GEMM_FP8_PLAIN ? 1 : plan->segments;
  int64_t units = ceil_div(m, plan->tokens) * ceil_div(n, plan->rows) * plan->parts;
  plan->launch.grid = (uint32_t)(units < sms ? units : sms);
  plan->launch.block = TDM_GEMM_FP8_THREADS;
  if (plan->form == TDM_GEMM_FP8_SWAPPED && plan->launch.shared_bytes < TDM_GEMM_FP8_ALONE_SHARED)
    plan->launch.shared_bytes = TDM_GEMM_FP8_ALONE_SHARED;
  if (plan->parts == 1) return;
  /* A partial a consumer: each has its own tile of 64 rows in the swapped form, its own tokens in the upright one. */
  int64_t rows = upright ? plan->rows : 64, tiles = ceil_div(n, rows) * ceil_div(m, plan->tokens);
  plan->partial_bytes = (size_t)(tiles * plan->parts * rows * plan->tokens) * sizeof(float);
  plan->counter_bytes = (size_t)(tiles * (upright && plan->tokens == 128 ? 2 : 1)) * sizeof(uint32_t);
}

void tdm_gemm_fp8_sm90_make_plan_for(int64_t m, int64_t n, int64_t k, int32_t sms, int32_t rows, int32_t tokens,
                                     tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan plan = {.form = rows == 0      ? TDM_GEMM_FP8_PLAIN
                                         : tokens <= 32 ? TDM_GEMM_FP8_SWAPPED
                                                        : TDM_GEMM_FP8_UPRIGHT,
                                 .rows = rows == 0 ? 128 : rows,
                                 .tokens = tokens,
                                 .granule = 2};
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].form == plan.form && variants[i].rows == plan.rows && variants[i].tokens == tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  static const char* const names[] = {
      [TDM_GEMM_FP8_SWAPPED] = "swap_", [TDM_GEMM_FP8_UPRIGHT] = "", [TDM_GEMM_FP8_PLAIN] = ""};
  if (plan.form == TDM_GEMM_FP8_PLAIN) {
    (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_m128n128_sm90");
  } else {
    (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_%sn%dt%d_sm90", names[plan.form], rows,
                   tokens);
  }
  tdm_gemm_fp8_sm90_divide(m, n, k, sms, &plan);
  *out_plan = plan;
}

void tdm_gemm_fp8_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan) {
  int32_t tokens = tdm_gemm_token_tile(m), rows = 64;
  /* Tiles of 128 weight rows halve the traffic of activations from L2 and pay once there are enough of them: fc1
   * (131072 x 7168) at M = 16 takes 223 us against 229; H200, 2026-11-22. */
  if (n / 128 >= 4 * (int64_t)sms || (tokens == 128 && tdm_gemm_fp8_sm90_halved(n, k, 2))) rows = 128;
  if (m > 128) rows = 0;
  tdm_gemm_fp8_sm90_make_plan_for(m, n, k, sms, rows, tokens, out_plan);
}

tdm_status tdm_gemm_fp8_sm90_encode(const char* op, const tdm_view* x, const void* x_scale, int64_t x_scale_stride,
                                    const tdm_view* w, const tdm_gemm_fp8_sm90_plan* plan, tdm_tensor_map_fn encode,
                                    void* encode_ctx, tdm_gemm_fp8_params* params) {
  /* Blocks as a dimension of their own: one copy may bring two of them, each as rows of 128 bytes under the swizzle. */
  uint32_t blocks = plan->form == TDM_GEMM_FP8_SWAPPED ? 2 : 1;
  uint64_t k_blocks = (uint64_t)x->shape[1] / 128;
  uint32_t x_rows = (uint32_t)plan->tokens;
  if (plan->form == TDM_GEMM_FP8_UPRIGHT) x_rows = tdm_gemm_loaded_rows(x->shape[0], plan->tokens);
  tdm_tensor_tile x_tile = {
      tdm_view_data(x),      TDM_E4M3, 3, {128, (uint64_t)x->shape[0], k_blocks}, {(uint64_t)x->stride[0], 128},
      {128, x_rows, blocks}, true};
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
                                {x_rows, blocks},
                                false};
  if (!tdm_tensor_tile_valid(&x_tile) || !tdm_tensor_tile_valid(&w_tile) || !tdm_tensor_tile_valid(&scale_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "%s: data and row strides of x (%lld), w (%lld) and scales (%lld) must be multiples of 16 bytes",
                    op, (long long)x->stride[0], (long long)w->stride[0], (long long)x_scale_stride);
  TDM_TRY(encode(encode_ctx, &x_tile, &params->x));
  TDM_TRY(encode(encode_ctx, &w_tile, &params->w));
  return encode(encode_ctx, &scale_tile, &params->x_scale);
}

tdm_status tdm_gemm_fp8_sm90_params(const tdm_gemm_fp8_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                    void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                    tdm_gemm_fp8_params* out_params) {
  if (args->a.dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "gemm_fp8: %s activations need the host device", tdm_dtype_name(args->a.dtype));
  tdm_gemm_fp8_params params = {.w_scale = tdm_view_data(&args->w_scale),
                                .w_scale_stride = args->w_scale.stride[0],
                                .n_tokens = tdm_view_present(&args->n_tokens) ? tdm_view_data(&args->n_tokens) : NULL,
                                .out = tdm_view_data(&args->out),
                                .out_stride = args->out.stride[0],
                                .partials = partials,
                                .counters = counters,
                                .out_dtype = (int32_t)args->out.dtype,
                                .m = (int32_t)args->a.shape[0],
                                .n = (int32_t)args->w.shape[0],
                                .k_blocks = (int32_t)(args->a.shape[1] / 128),
                                .segments = plan->segments,
                                .parts = plan->parts,
                                .granule = plan->granule};
  TDM_TRY(tdm_gemm_fp8_sm90_encode("gemm_fp8", &args->a, tdm_view_data(&args->a_scale), args->a_scale.stride[0],
                                   &args->w, plan, encode, encode_ctx, &params));
  *out_params = params;
  return TDM_OK;
}
