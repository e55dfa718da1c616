#include "kernels/gemm_fp8/gemm_fp8_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows; /* 0: plain */
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define SWAP(rows, tokens, stages) {rows, tokens, TDM_GEMM_FP8_SWAP_SHARED(rows, tokens, stages)},
#define PLAIN(stages)              {0, 128, TDM_GEMM_FP8_PLAIN_SHARED(stages)},
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
#undef SWAP
#undef PLAIN
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

void tdm_gemm_fp8_sm90_make_plan_for(int64_t m, int64_t n, int64_t k, int32_t sms, int32_t rows, int32_t tokens,
                                     tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan plan = {.swapped = rows != 0, .rows = rows == 0 ? 128 : rows, .tokens = tokens, .granule = 2};
  plan.segments = tdm_gemm_segments(ceil_div(n, 64), 64, k / 128, plan.granule);
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].rows == rows && variants[i].tokens == tokens) plan.launch.shared_bytes = variants[i].shared_bytes;
  if (plan.swapped) {
    (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_swap_n%dt%d_sm90", rows, tokens);
  } else {
    (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_fp8_m128n128_sm90");
  }
  int64_t m_tiles = ceil_div(m, tokens), units = m_tiles * ceil_div(n, plan.rows);
  if (plan.swapped) units *= plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_FP8_THREADS;
  plan.launch.shared_bytes =
      tdm_gemm_shared_bytes(plan.launch.shared_bytes, ceil_div(units, plan.launch.grid) * (k / 128) / plan.segments);
  if (plan.swapped && plan.segments > 1) {
    int64_t tiles = ceil_div(n, 64) * m_tiles;
    plan.partial_bytes = (size_t)(tiles * plan.segments * 64 * tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

void tdm_gemm_fp8_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan) {
  int32_t tokens = tdm_gemm_token_tile(m), rows = 64;
  /* Tiles of 128 weight rows halve the traffic of activations from L2 and pay once there are enough of them: fc1
   * (131072 x 7168) at M = 16 and 128 takes 223 and 284 us against 229 and 381, o (7168 x 16384) at M = 64 takes 45
   * against 34; H200, 2026-11-22. */
  if (n / 128 >= 4 * (int64_t)sms) rows = 128;
  if (m > 128) rows = 0;
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
                            {128, (uint32_t)plan->tokens, blocks},
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
                                {(uint32_t)plan->tokens, blocks},
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
                                .granule = plan->granule};
  TDM_TRY(tdm_gemm_fp8_sm90_encode("gemm_fp8", &args->a, tdm_view_data(&args->a_scale), args->a_scale.stride[0],
                                   &args->w, plan, encode, encode_ctx, &params));
  *out_params = params;
  return TDM_OK;
}
