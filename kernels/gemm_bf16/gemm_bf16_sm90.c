#include "kernels/gemm_bf16/gemm_bf16_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows;
  int32_t tokens;
  char major;
  uint32_t shared_bytes;
} variants[] = {
#define GEMM(rows, tokens, stages, major) {rows, tokens, #major[0], TDM_GEMM_BF16_SHARED(rows, tokens, stages)},
#include "kernels/gemm_bf16/gemm_bf16_variants.inc"
#undef GEMM
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

bool tdm_gemm_bf16_sm90_mn_major(const tdm_view* w) {
  return w->stride[w->rank - 1] != 1 && w->stride[w->rank - 2] == 1;
}

void tdm_gemm_bf16_sm90_make_plan(int64_t batch, int64_t m, int64_t n, int64_t k, bool mn_major, int32_t sms,
                                  tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_gemm_bf16_sm90_plan plan = {
      .mn_major = mn_major, .tokens = tdm_gemm_token_tile(m), .rows = m > 128 ? 128 : 64, .granule = 2};
  plan.segments = tdm_gemm_segments(ceil_div(n, 64) * batch, 64, ceil_div(k, 64), plan.granule);
  char major = mn_major ? 'n' : 'k';
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].rows == plan.rows && variants[i].tokens == plan.tokens && variants[i].major == major)
      plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_gemm_bf16_%c_n%dt%d_sm90", major, plan.rows,
                 plan.tokens);
  int64_t m_tiles = ceil_div(m, plan.tokens), units = m_tiles * ceil_div(n, plan.rows) * batch * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_BF16_THREADS;
  if (plan.segments > 1) {
    int64_t tiles = ceil_div(n, 64) * m_tiles * batch;
    plan.partial_bytes = (size_t)(tiles * plan.segments * 64 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

tdm_tensor_tile tdm_gemm_bf16_sm90_tile(const tdm_view* view, int32_t inner, uint32_t box_inner, uint32_t box_outer) {
  int32_t first = view->rank - 2;
  tdm_tensor_tile tile = {tdm_view_data(view),
                          TDM_BF16,
                          3,
                          {(uint64_t)view->shape[first + inner], (uint64_t)view->shape[first + 1 - inner], 1},
                          {(uint64_t)view->stride[first + 1 - inner] * 2, 16},
                          {box_inner, box_outer, 1},
                          true};
  if (view->rank == 3) {
    tile.dim[2] = (uint64_t)view->shape[0];
    tile.stride_bytes[1] = (uint64_t)view->stride[0] * 2;
  }
  return tile;
}

tdm_status tdm_gemm_bf16_sm90_fill(const char* op, const tdm_view* n_tokens, const tdm_view* a, const tdm_view* w,
                                   const tdm_view* out, const tdm_gemm_bf16_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_gemm_bf16_params* out_params) {
  int32_t last = a->rank - 1;
  if (a->dtype != TDM_BF16 || w->dtype != TDM_BF16)
    return TDM_FAIL(TDM_UNSUPPORTED, "%s: %s times %s needs the host device", op, tdm_dtype_name(a->dtype),
                    tdm_dtype_name(w->dtype));
  tdm_gemm_bf16_params params = {.n_tokens = tdm_view_data_or_null(n_tokens),
                                 .out = tdm_view_data(out),
                                 .out_stride = out->stride[last - 1],
                                 .out_batch_stride = last == 2 ? out->stride[0] : 0,
                                 .partials = partials,
                                 .counters = counters,
                                 .out_dtype = (int32_t)out->dtype,
                                 .batch = last == 2 ? (int32_t)a->shape[0] : 1,
                                 .m = (int32_t)a->shape[last - 1],
                                 .n = (int32_t)w->shape[last - 1],
                                 .k_blocks = (int32_t)ceil_div(a->shape[last], 64),
                                 .segments = plan->segments,
                                 .granule = plan->granule};
  tdm_tensor_tile x_tile = tdm_gemm_bf16_sm90_tile(a, 1, 64, (uint32_t)plan->tokens);
  tdm_tensor_tile w_tile =
      plan->mn_major ? tdm_gemm_bf16_sm90_tile(w, 0, 64, 64) : tdm_gemm_bf16_sm90_tile(w, 1, 64, (uint32_t)plan->rows);
  if (a->stride[last] != 1 || !tdm_tensor_tile_valid(&x_tile) || !tdm_tensor_tile_valid(&w_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "%s: data and strides of a (%lld) and w (%lld, %lld) must be multiples of 16 bytes", op,
                    (long long)a->stride[last - 1], (long long)w->stride[last - 1], (long long)w->stride[last]);
  TDM_TRY(encode(encode_ctx, &x_tile, &params.x));
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  *out_params = params;
  return TDM_OK;
}

tdm_status tdm_gemm_bf16_sm90_params(const tdm_gemm_bf16_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                     void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                     tdm_gemm_bf16_params* out_params) {
  return tdm_gemm_bf16_sm90_fill("gemm_bf16", &args->n_tokens, &args->a, &args->w, &args->out, plan, partials, counters,
                                 encode, encode_ctx, out_params);
}
