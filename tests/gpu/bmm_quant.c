/* bmm_quant. Against the reference: e4m3 1e-5, scales 1e-7, since an f32 sum may be rounded to bf16 the other way and
 * turn a largest value (powers of two: 1e-3 both, since then a scale may double). Against gemm_bf16 and quant on the
 * GPU, one after the other: bit for bit. */

#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

typedef struct bmm_case {
  int64_t batch, max_rows, n, k;
  bool heads_inside; /* a is [M, B, K], as attention has it */
  bool pow2;
  int64_t gap; /* of rows of out_q; eight times that of rows of a */
  bool sampled;
} bmm_case;

static gpu_tensor* make_a(gpu_rig* rig, const bmm_case* c) {
  const int64_t row = c->k + 8 * c->gap, shape[] = {c->batch, c->max_rows, c->k};
  const int64_t inside[] = {row, c->batch * row, 1}, outside[] = {c->max_rows * row, row, 1};
  gpu_tensor* a = gpu_make_strided(rig, "a", TDM_BF16, 3, shape, c->heads_inside ? inside : outside);
  gpu_fill_normal(rig, a, 1.0f);
  return a;
}

/* Every other half of a larger tensor, as the value rows of kv_b. */
static gpu_tensor* make_w(gpu_rig* rig, const bmm_case* c) {
  const int64_t shape[] = {c->batch, c->n, c->k}, stride[] = {2 * c->n * c->k, c->k, 1};
  gpu_tensor* w = gpu_make_strided(rig, "w", TDM_BF16, 3, shape, stride);
  gpu_fill_normal(rig, w, 0.05f);
  return w;
}

static gpu_tensor* make_q(gpu_rig* rig, const char* name, const bmm_case* c) {
  const int64_t columns = c->batch * c->n;
  return gpu_make_strided(rig, name, TDM_E4M3, 2, (int64_t[]){c->max_rows, columns}, (int64_t[]){columns + c->gap, 1});
}

/* Slices are batches. */
static void slice(void* void_args, int64_t first, int64_t count) {
  tdm_bmm_quant_args* args = void_args;
  const int64_t n = args->w.shape[1];
  args->a = tdm_view_slice(args->a, 0, first, count);
  args->w = tdm_view_slice(args->w, 0, first, count);
  args->out_q = tdm_view_slice(args->out_q, 1, first * n, count * n);
  args->out_scale = tdm_view_slice(args->out_scale, 0, first * (n / 128), count * (n / 128));
}

static void run(gpu_rig* rig, const bmm_case* c, bool quick) {
  gpu_begin(rig, "bmm_quant %d x %d x %d%s pow2 %d", (int)c->batch, (int)c->n, (int)c->k,
            c->heads_inside ? " heads inside" : "", c->pow2);
  tdm_bmm_quant_args args = {.size = sizeof args,
                             .a = make_a(rig, c)->view,
                             .w = make_w(rig, c)->view,
                             .out_q = make_q(rig, "out_q", c)->view,
                             .out_scale = gpu_make_scales(rig, "out_scale", c->max_rows, c->batch * c->n)->view,
                             .pow2_scale = c->pow2};
  gpu_upload(rig);
  const gpu_product product = {.op = &tdm_op_bmm_quant,
                               .args = &args,
                               .n_tokens = offsetof(tdm_bmm_quant_args, n_tokens),
                               .rows = {{offsetof(tdm_bmm_quant_args, a), 1, 0},
                                        {offsetof(tdm_bmm_quant_args, out_q), 0, c->pow2 ? 1e-3 : 1e-5},
                                        {offsetof(tdm_bmm_quant_args, out_scale), 1, c->pow2 ? 1e-3 : 1e-7}},
                               .slice = slice,
                               .slices = c->batch,
                               .granule = 1,
                               .sampled = c->sampled,
                               .quick = quick};
  gpu_test_product(rig, &product);
}

/* ---- against the two ops ---------------------------------------------------------------------------------------- */

typedef struct pair {
  tdm_bmm_quant_args fused;
  tdm_gemm_bf16_args product;
  tdm_quant_args quant;
  gpu_tensor *q[2], *scale[2]; /* of the fused op and of quant */
} pair;

static void set_row(gpu_tensor* a, int64_t batch, int64_t row, uint16_t bits, int64_t count) {
  const int64_t start = batch * a->view.stride[0] + row * a->view.stride[1];
  for (int64_t i = 0; i < count; i++) memcpy(a->host + GPU_GUARD_BYTES + (start + i) * 2, &bits, 2);
}

static bool run_op(gpu_rig* rig, const tdm_op* op, void* args, int32_t sms) {
  if (op->check(args) != TDM_OK) {
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
    return false;
  }
  gpu_to_device(rig, op, args);
  return gpu_run(rig, op, args, sms);
}

static void expect_equal(gpu_rig* rig, gpu_tensor* const* both) {
  gpu_download_one(both[0]);
  gpu_download_one(both[1]);
  for (size_t i = 0; i < both[0]->bytes; i++) {
    if (both[0]->got[i] == both[1]->got[i]) continue;
    gpu_fail(rig, "%s: byte %lld is 0x%02x, not 0x%02x", both[0]->name, (long long)i - GPU_GUARD_BYTES, both[0]->got[i],
             both[1]->got[i]);
    return;
  }
}

static void compare_rows(gpu_rig* rig, const pair* all, int64_t rows, int64_t live, int32_t sms) {
  pair p = *all;
  p.fused.a.shape[1] = p.product.a.shape[1] = p.product.out.shape[1] = rows;
  p.fused.out_q.shape[0] = p.quant.x.shape[0] = p.quant.out_q.shape[0] = rows;
  p.fused.out_scale.shape[1] = p.quant.out_scale.shape[1] = rows;
  if (live >= 0) {
    gpu_tensor* count = gpu_make_count(rig, "n_tokens", (int32_t)live);
    gpu_upload_one(rig, count);
    p.fused.n_tokens = p.product.n_tokens = p.quant.n_tokens = count->view;
  }
  for (int i = 0; i < 2; i++) {
    gpu_poison_device(p.q[i]);
    gpu_poison_device(p.scale[i]);
  }
  if (run_op(rig, &tdm_op_gemm_bf16, &p.product, rig->sms) && run_op(rig, &tdm_op_quant, &p.quant, rig->sms) &&
      run_op(rig, &tdm_op_bmm_quant, &p.fused, sms)) {
    expect_equal(rig, p.q);
    expect_equal(rig, p.scale);
  }
  if (live >= 0) gpu_free_one(&rig->tensors[--rig->n_tensors]);
}

static void run_pair(gpu_rig* rig, const bmm_case* c, float quant_eps, bool quick) {
  const int64_t columns = c->batch * c->n, last = c->batch - 1;
  gpu_tensor *a = make_a(rig, c), *w = make_w(rig, c);
  gpu_tensor* heads = gpu_make(rig, "heads", TDM_BF16, 3, (int64_t[]){c->max_rows, c->batch, c->n});
  pair p = {.q = {make_q(rig, "out_q", c), make_q(rig, "quant's out_q", c)},
            .scale = {gpu_make_scales(rig, "out_scale", c->max_rows, columns),
                      gpu_make_scales(rig, "quant's out_scale", c->max_rows, columns)}};
  set_row(a, 0, 1, 0x7fc0, 1);       /* NaN */
  set_row(a, last, 2, 0x7f80, 1);    /* infinity */
  set_row(a, last, 5, 0x0000, c->k); /* zeros */
  set_row(a, 0, 6, 0x0d80, c->k);    /* so small that the floor of amax counts */
  set_row(a, last, 7, 0x7f00, c->k); /* sums about where f32 ends */
  p.product = (tdm_gemm_bf16_args){
      .size = sizeof p.product, .a = a->view, .w = w->view, .out = tdm_view_transpose(heads->view, 0, 1)};
  p.quant = (tdm_quant_args){.size = sizeof p.quant,
                             .x = heads->view,
                             .out_q = p.q[1]->view,
                             .out_scale = p.scale[1]->view,
                             .quant_eps = quant_eps,
                             .pow2_scale = c->pow2};
  p.quant.x.rank = 2, p.quant.x.shape[1] = p.quant.x.stride[0] = columns, p.quant.x.stride[1] = 1;
  p.fused = (tdm_bmm_quant_args){.size = sizeof p.fused,
                                 .a = a->view,
                                 .w = w->view,
                                 .out_q = p.q[0]->view,
                                 .out_scale = p.scale[0]->view,
                                 .quant_eps = quant_eps,
                                 .pow2_scale = c->pow2};
  gpu_upload(rig);
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    const int64_t rows = gpu_row_counts[i];
    if (rows > c->max_rows || (quick && rows > 37 && rows != 65)) continue;
    for (int few = 0; few < 2; few++) {
      gpu_begin(rig, "bmm_quant %d x %d x %d is gemm_bf16, quant: %d rows%s", (int)c->batch, (int)c->n, (int)c->k,
                (int)rows, few ? " on 5 SMs" : "");
      compare_rows(rig, &p, rows, few ? rows - rows / 3 : -1, few ? 5 : rig->sms);
      gpu_end(rig);
    }
  }
  static const int64_t lives[] = {0, 1, 5, 37, 130};
  for (size_t i = 0; i < sizeof lives / sizeof *lives; i++) {
    for (int more = 0; more < 2; more++) { /* one tile of tokens and several: weights ahead in both */
      const int64_t rows = more ? 64 : c->max_rows;
      if (lives[i] > rows || rows > c->max_rows) continue;
      gpu_begin(rig, "bmm_quant %d x %d x %d is gemm_bf16, quant: %d live of %d", (int)c->batch, (int)c->n, (int)c->k,
                (int)lives[i], (int)rows);
      compare_rows(rig, &p, rows, lives[i], rig->sms);
      gpu_end(rig);
    }
  }
  gpu_free(rig);
}

void test_bmm_quant(gpu_rig* rig, bool quick) {
  static const bmm_case cases[] = {
      {4, 257, 128, 512, true, false, 0, false},
      {3, 65, 256, 320, true, true, 16, false},
      {2, 1500, 128, 264, false, false, 0, false},
      {1, 130, 384, 1000, false, false, 3, false},
  };
  /* DeepSeek-V3: v_b of one rank and of one of eight. */
  static const bmm_case real[] = {
      {128, 1500, 128, 512, true, false, 0, true},
      {16, 1500, 128, 512, true, true, 0, true},
      {16, 1500, 128, 512, true, false, 64, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !(quick && i == 2); i++) run(rig, &cases[i], quick);
  run_pair(rig, &cases[0], 0, quick);
  run_pair(rig, &cases[1], 1e-30f, quick);
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) {
    run(rig, &real[i], false);
    bmm_case few = real[i];
    if (few.batch == 128) few.max_rows = 257;
    run_pair(rig, &few, 0, false);
  }
}
