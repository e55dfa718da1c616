/* gemm_bf16 and router_gemm. Bounds: f32 output 1e-10 (order of additions), bf16 output 1e-6. The same row has the same
 * bits in every batch. */

#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

typedef struct gemm_case {
  int64_t batch; /* 0: rank 2 */
  int64_t max_rows, n, k;
  bool mn_major;
  tdm_dtype out;
  int64_t gap;
  bool heads_inside; /* batch between rows and columns, [M, B, K], as attention has it */
  bool sampled;
} gemm_case;

enum { SLICE = 64 };

/* Slices are 64 columns; the last may be less. */
static void slice(void* void_args, int64_t first, int64_t count) {
  tdm_gemm_bf16_args* args = void_args;
  int32_t dim = args->w.rank - 2;
  int64_t begin = first * SLICE, left = args->w.shape[dim] - begin,
          columns = left < count * SLICE ? left : count * SLICE;
  args->w = tdm_view_slice(args->w, dim, begin, columns);
  args->out = tdm_view_slice(args->out, dim + 1, begin, columns);
}

static void run(gpu_rig* rig, const gemm_case* c, bool quick) {
  int64_t batch = c->batch ? c->batch : 1;
  gpu_begin(rig, "gemm_bf16 %d x %d x %d %s%s %s", (int)c->batch, (int)c->n, (int)c->k,
            c->mn_major ? "mn-major" : "k-major", c->heads_inside ? " heads inside" : "", tdm_dtype_name(c->out));
  int32_t first = c->batch ? 0 : 1, rank = c->batch ? 3 : 2;
  int64_t a_row = c->k + 8 * c->gap, out_row = c->n + c->gap;
  int64_t a_shape[] = {batch, c->max_rows, c->k}, a_stride[] = {c->max_rows * a_row, a_row, 1};
  int64_t out_shape[] = {batch, c->max_rows, c->n}, out_stride[] = {c->max_rows * out_row, out_row, 1};
  if (c->heads_inside) {
    a_stride[0] = a_row;
    a_stride[1] = batch * a_row;
    out_stride[0] = out_row;
    out_stride[1] = batch * out_row;
  }
  int64_t w_shape[] = {batch, c->n, c->k}, w_stride[] = {2 * c->n * c->k, c->k, 1};
  if (c->mn_major) {
    w_stride[1] = 1;
    w_stride[2] = c->n;
  }
  gpu_tensor* a = gpu_make_strided(rig, "a", TDM_BF16, rank, a_shape + first, a_stride + first);
  gpu_tensor* w = gpu_make_strided(rig, "w", TDM_BF16, rank, w_shape + first, w_stride + first);
  gpu_tensor* out = gpu_make_strided(rig, "out", c->out, rank, out_shape + first, out_stride + first);
  gpu_fill_normal(rig, a, 1.0f);
  gpu_fill_normal(rig, w, 0.05f);
  tdm_gemm_bf16_args args = {.size = sizeof args, .a = a->view, .w = w->view, .out = out->view};
  gpu_upload(rig);
  gpu_product product = {.op = &tdm_op_gemm_bf16,
                         .args = &args,
                         .n_tokens = offsetof(tdm_gemm_bf16_args, n_tokens),
                         .rows = {{offsetof(tdm_gemm_bf16_args, a), rank - 2, 0},
                                  {offsetof(tdm_gemm_bf16_args, out), rank - 2, c->out == TDM_F32 ? 1e-10 : 1e-6}},
                         .slice = slice,
                         .slices = (c->n + SLICE - 1) / SLICE,
                         .granule = 1,
                         .sampled = c->sampled,
                         .quick = quick};
  gpu_test_product(rig, &product);
}

void test_gemm_bf16(gpu_rig* rig, bool quick) {
  /* The first two, of a short K: more tiles of 256 and of 128 rows than 5 SMs have room for. The last four: what the
   * form for such a K does not take, and rank 2. */
  static const gemm_case cases[] = {
      {9, 65, 512, 128, true, TDM_BF16, 0, true, false},     {17, 130, 384, 72, true, TDM_BF16, 8, true, false},
      {0, 65, 576, 320, false, TDM_BF16, 0, false, false},   {0, 65, 100, 1024, false, TDM_F32, 1, false, false},
      {0, 65, 72, 1000, true, TDM_F32, 0, false, false},     {3, 65, 512, 128, true, TDM_BF16, 8, true, false},
      {0, 1500, 576, 384, false, TDM_BF16, 0, false, false}, {4, 1500, 512, 128, true, TDM_BF16, 0, true, false},
      {4, 257, 128, 512, false, TDM_BF16, 64, true, false},  {2, 129, 200, 264, false, TDM_F32, 4, false, false},
      {0, 300, 2112, 1024, false, TDM_F32, 0, false, false}, {3, 65, 512, 128, true, TDM_F32, 0, true, false},
      {2, 65, 192, 128, true, TDM_BF16, 0, false, false},    {3, 65, 256, 64, true, TDM_BF16, 4, true, false},
      {0, 65, 256, 128, true, TDM_BF16, 0, false, false},
  };
  /* DeepSeek-V3: k_b and v_b of one rank and of one of eight, logits. */
  static const gemm_case real[] = {
      {128, 1500, 512, 128, true, TDM_BF16, 8, true, true},   {16, 1500, 512, 128, true, TDM_BF16, 0, true, true},
      {128, 1500, 128, 512, false, TDM_BF16, 0, true, true},  {16, 1500, 128, 512, false, TDM_BF16, 0, true, true},
      {0, 257, 129280, 7168, false, TDM_F32, 0, false, true}, {0, 1500, 16160, 7168, false, TDM_F32, 0, false, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !(quick && i == 6); i++) run(rig, &cases[i], quick);
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) run(rig, &real[i], false);
}

static void slice_router(void* void_args, int64_t first, int64_t count) {
  tdm_router_gemm_args* args = void_args;
  args->w = tdm_view_slice(args->w, 0, first, count);
  args->logits = tdm_view_slice(args->logits, 1, first, count);
}

static void run_router(gpu_rig* rig, int64_t max_rows, int64_t experts, int64_t hidden, bool prefetches, bool sampled,
                       bool quick) {
  gpu_begin(rig, "router_gemm %d x %d prefetches %d", (int)experts, (int)hidden, prefetches);
  gpu_tensor* x = gpu_make(rig, "x", TDM_BF16, 2, (int64_t[]){max_rows, hidden});
  gpu_tensor* w = gpu_make(rig, "w", TDM_BF16, 2, (int64_t[]){experts, hidden});
  gpu_tensor* logits = gpu_make(rig, "logits", TDM_F32, 2, (int64_t[]){max_rows, experts});
  gpu_fill_normal(rig, x, 1.0f);
  gpu_fill_normal(rig, w, 0.02f);
  tdm_router_gemm_args args = {.size = sizeof args, .x = x->view, .w = w->view, .logits = logits->view};
  if (prefetches) args.prefetch = w->view;
  gpu_upload(rig);
  gpu_product product = {
      .op = &tdm_op_router_gemm,
      .args = &args,
      .n_tokens = offsetof(tdm_router_gemm_args, n_tokens),
      .rows = {{offsetof(tdm_router_gemm_args, x), 0, 0}, {offsetof(tdm_router_gemm_args, logits), 0, 1e-10}},
      .slice = slice_router,
      .slices = experts,
      .granule = 8,
      .sampled = sampled,
      .quick = quick};
  gpu_test_product(rig, &product);
}

void test_router_gemm(gpu_rig* rig, bool quick) {
  run_router(rig, 65, 72, 1024, false, false, quick);
  run_router(rig, 65, 72, 1024, true, false, quick);
  if (quick) return;
  run_router(rig, GPU_MOST_ROWS, 256, 7168, false, false, false); /* DeepSeek-V3 */
  run_router(rig, 130, 384, 7168, true, false, false);
  run_router(rig, GPU_MOST_ROWS, 8, 384, false, false, false);
}
