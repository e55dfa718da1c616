#include "kernels/gemm_bf16/gemm_bf16_short_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows;
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define SHORT(rows, tokens) {rows, tokens, TDM_GEMM_BF16_SHORT_SHARED(rows, tokens)},
#include "kernels/gemm_bf16/gemm_bf16_short_variants.inc"
#undef SHORT
};

/* Whether the copy engine can take the view, whose data start on 16 bytes. */
static bool fits_boxes(const tdm_view* view) {
  for (int32_t i = 0; i < view->rank; i++)
    if (view->stride[i] != 1 && view->stride[i] % 8 != 0) return false;
  return view->dtype == TDM_BF16;
}

bool tdm_gemm_bf16_short_sm90_make_plan(const tdm_gemm_bf16_args* args, int32_t sms,
                                        tdm_gemm_bf16_sm90_plan* out_plan) {
  const tdm_view *a = &args->a, *w = &args->w, *out = &args->out;
  const int32_t last = a->rank - 1;
  const int64_t batch = a->rank == 3 ? a->shape[0] : 1, m = a->shape[last - 1], n = w->shape[last - 1];
  if (m > 128 || a->shape[last] > TDM_GEMM_BF16_SHORT_K || n % 128 != 0 || !tdm_gemm_bf16_sm90_mn_major(w) ||
      !fits_boxes(a) || !fits_boxes(w) || !fits_boxes(out))
    return false;
  tdm_gemm_bf16_sm90_plan plan = {.short_k = true, .mn_major = true, .tokens = tdm_gemm_token_tile(m), .segments = 1};
  /* With fewer tiles than SMs the smaller ones, of which more CTAs have some. */
  plan.rows = n % 256 == 0 && batch * (n / 256) >= sms ? 256 : 128;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].rows == plan.rows && variants[i].tokens == plan.tokens)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_bf16_short_n%dt%d_sm90", plan.rows,
                 plan.tokens);
  const int64_t units = batch * (n / plan.rows), places = sms * TDM_GEMM_BF16_SHORT_CTAS(plan.tokens);
  plan.launch.grid = (uint32_t)(units < places ? units : places);
  plan.launch.block = TDM_GEMM_BF16_SHORT_THREADS;
  *out_plan = plan;
  return true;
}

tdm_status tdm_gemm_bf16_short_sm90_params(const tdm_gemm_bf16_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                           tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_gemm_bf16_short_params* out_params) {
  const tdm_view *w = &args->w, *out = &args->out;
  const int32_t last = args->a.rank - 1;
  const int32_t batch = last == 2 ? (int32_t)args->a.shape[0] : 1, n_tiles = (int32_t)w->shape[last - 1] / plan->rows;
  tdm_gemm_bf16_short_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                       .out_data = tdm_view_data(out),
                                       .out_stride = out->stride[last - 1],
                                       .out_batch_stride = last == 2 ? out->stride[0] : 0,
                                       .m = (int32_t)args->a.shape[last - 1],
                                       .n_tiles = n_tiles,
                                       .units = batch * n_tiles};
  const tdm_tensor_tile w_tile = tdm_gemm_bf16_sm90_tile(w, 0, 64, TDM_GEMM_BF16_SHORT_K);
  const tdm_tensor_tile x_tile = tdm_gemm_bf16_sm90_tile(&args->a, 1, 64, (uint32_t)plan->tokens);
  const tdm_tensor_tile out_tile = tdm_gemm_bf16_sm90_tile(out, 1, 64, TDM_GEMM_BF16_SHORT_BOX((uint32_t)plan->tokens));
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  TDM_TRY(encode(encode_ctx, &x_tile, &params.x));
  TDM_TRY(encode(encode_ctx, &out_tile, &params.out));
  *out_params = params;
  return TDM_OK;
}
