#include "kernels/bmm_fp8/bmm_fp8_sm90.h"

#include "runtime/op.h"
#include "runtime/status.h"

void tdm_bmm_fp8_sm90_make_plan(int64_t groups, int64_t m, int64_t n, int64_t k, int32_t sms,
                                tdm_gemm_fp8_sm90_plan* out_plan) {
  if (m > 64 && tdm_gemm_fp8_sm90_is_upright(m, groups * n, sms)) {
    tdm_gemm_fp8_sm90_make_upright_plan(m, groups * n, k, sms, out_plan);
    return;
  }
  int32_t tokens = tdm_gemm_token_tile(m);
  /* Tiles of 128 weight rows ask L2 for half the activations and let both consumers multiply at once. They pay with
   * many tokens, where there are enough of them: 16 x 1024 x 4096 at M = 64, 128: 18.8, 22.6 us against 20.0, 27.1;
   * with half as many tiles, 8 x 1024 x 8192: 24.9, 34.7 against 19.5, 26.4; H200, 2026-11-22. */
  int64_t tiles = (m + tokens - 1) / tokens * (groups * n / 128);
  int32_t rows = tokens >= 64 && tiles >= sms * INT64_C(3) / 4 ? 128 : 64;
  tdm_gemm_fp8_sm90_make_plan_for(m, groups * n, k, sms, rows, tokens, out_plan);
}

/* The matrices of a rank-3 view as one with rows `stride` apart: row i of group g is row g * step + i. Rows between two
 * groups are never asked for, or never used. */
typedef struct stack {
  int64_t rows, cols, stride, step;
} stack;

static bool make_stack(const tdm_view* view, stack* out_stack) {
  int64_t groups = view->shape[0], rows = view->shape[1], cols = view->shape[2];
  stack all = {rows, cols, cols, 0};
  if (rows > 1) all.stride = view->stride[1];
  if (groups > 1 && rows == 1) all.stride = view->stride[0];
  if (groups > 1) {
    if (view->stride[0] % all.stride != 0) return false;
    all.step = view->stride[0] / all.stride;
    all.rows = (groups - 1) * all.step + rows;
  }
  *out_stack = all;
  return all.rows <= INT32_MAX;
}

/* Rows of e4m3, `box` of them and `blocks` of 128 columns a copy. */
static tdm_tensor_tile tile_of(const tdm_view* view, const stack* all, int32_t box, uint32_t blocks) {
  return (tdm_tensor_tile){tdm_view_data(view),
                           TDM_E4M3,
                           3,
                           {128, (uint64_t)all->rows, (uint64_t)all->cols / 128},
                           {(uint64_t)all->stride, 128},
                           {128, (uint32_t)box, blocks},
                           true};
}

tdm_status tdm_bmm_fp8_sm90_params(const tdm_bmm_fp8_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_gemm_fp8_params* out_params) {
  const tdm_view *a = &args->a, *w = &args->w;
  int64_t groups = w->shape[0], n = w->shape[1], k_blocks = w->shape[2] / 128;
  if (a->dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "bmm_fp8: %s activations need the host device", tdm_dtype_name(a->dtype));
  if (n % 128 != 0 || (groups > 1 && k_blocks % 2 != 0))
    return TDM_FAIL(TDM_UNSUPPORTED, "bmm_fp8: N %lld must be a multiple of 128 and K %lld one of 256", (long long)n,
                    (long long)w->shape[2]);
  stack x, x_scale, rows, row_scale;
  if (!make_stack(a, &x) || !make_stack(&args->a_scale, &x_scale) || !make_stack(w, &rows) ||
      !make_stack(&args->w_scale, &row_scale) || (groups > 1 && (rows.step != n || row_scale.step != n / 128)))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "bmm_fp8: group strides of a (%lld), a_scale (%lld), w (%lld) and w_scale (%lld) must be whole "
                    "rows, those of w %lld and of w_scale %lld of them",
                    (long long)a->stride[0], (long long)args->a_scale.stride[0], (long long)w->stride[0],
                    (long long)args->w_scale.stride[0], (long long)n, (long long)(n / 128));
  const uint32_t blocks = plan->upright ? 1 : 2;
  const int32_t tokens = plan->upright ? plan->x_rows : plan->tokens;
  tdm_tensor_tile x_tile = tile_of(a, &x, tokens, blocks), w_tile = tile_of(w, &rows, plan->rows, blocks);
  tdm_tensor_tile scale_tile = {tdm_view_data(&args->a_scale),
                                TDM_F32,
                                2,
                                {(uint64_t)x_scale.cols, (uint64_t)x_scale.rows},
                                {(uint64_t)x_scale.stride * sizeof(float)},
                                {(uint32_t)tokens, blocks},
                                false};
  if (k_blocks == 1) scale_tile.stride_bytes[0] = (uint64_t)tdm_scale_stride(x_scale.cols) * sizeof(float);
  if (!tdm_tensor_tile_valid(&x_tile) || !tdm_tensor_tile_valid(&w_tile) || !tdm_tensor_tile_valid(&scale_tile))
    return TDM_FAIL(
        TDM_UNSUPPORTED,
        "bmm_fp8: data and row strides of a (%lld), w (%lld) and a_scale (%lld) must be multiples of 16 bytes",
        (long long)x.stride, (long long)rows.stride, (long long)x_scale.stride);
  tdm_gemm_fp8_params params = {.w_scale = tdm_view_data(&args->w_scale),
                                .w_scale_stride = row_scale.stride,
                                .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                .out = tdm_view_data(&args->out),
                                .out_stride = args->out.stride[0],
                                .partials = partials,
                                .counters = counters,
                                .out_dtype = (int32_t)args->out.dtype,
                                .m = (int32_t)a->shape[1],
                                .n = (int32_t)(groups * n),
                                .k_blocks = (int32_t)k_blocks,
                                .segments = plan->segments,
                                .granule = plan->granule,
                                .group_n = (int32_t)n,
                                .group_rows = (int32_t)x.step,
                                .group_scale_rows = (int32_t)x_scale.step};
  TDM_TRY(encode(encode_ctx, &x_tile, &params.x));
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  TDM_TRY(encode(encode_ctx, &scale_tile, &params.x_scale));
  *out_params = params;
  return TDM_OK;
}
