/* mla_norm_write, mla_qkv_a and mla_absorb: the bits of the two ops that each of them is, and their bounds (norm.c,
 * small.c, gemm_fp8.c, gemm_bf16.c). */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { POSITIONS = 4096, LATENT = 512, CACHED = 576, NOPE = 128, HEAD_Q = 192, MOST_OUTPUTS = 5 };

static gpu_tensor* make_table(gpu_rig* rig) {
  gpu_tensor* table = gpu_make(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  gpu_fill_uniform(rig, table, -1.0f, 1.0f);
  return table;
}

static int32_t* ints_of(gpu_tensor* tensor) {
  return (int32_t*)(void*)(tensor->host + GPU_GUARD_BYTES);
}

static gpu_tensor* make_positions(gpu_rig* rig, int64_t rows) {
  gpu_tensor* tensor = gpu_make(rig, "positions", TDM_I32, 1, &rows);
  for (int64_t i = 0; i < rows; i++) ints_of(tensor)[i] = (int32_t)(gpu_random(rig) % POSITIONS);
  return tensor;
}

static tdm_view view_of(const gpu_tensor* tensor) {
  return tensor ? tensor->view : (tdm_view){0};
}

/* Keeps what the fused op left in the outputs and poisons them for the ops apart; then holds those to it. */
typedef struct outputs {
  gpu_tensor* tensors[MOST_OUTPUTS]; /* NULL: absent */
  uint8_t* fused[MOST_OUTPUTS];
} outputs;

static void keep_outputs(outputs* o) {
  for (int i = 0; i < MOST_OUTPUTS; i++) {
    gpu_tensor* t = o->tensors[i];
    if (!t) continue;
    gpu_download_one(t);
    o->fused[i] = malloc(t->bytes);
    if (!o->fused[i]) abort();
    memcpy(o->fused[i], t->got, t->bytes);
    gpu_poison_device(t);
  }
}

static void expect_kept(gpu_rig* rig, outputs* o) {
  for (int i = 0; i < MOST_OUTPUTS; i++) {
    gpu_tensor* t = o->tensors[i];
    if (!t) continue;
    gpu_download_one(t);
    for (size_t k = 0; k < t->bytes; k++) {
      if (o->fused[i][k] == t->got[k]) continue;
      gpu_fail(rig, "%s: byte %lld is 0x%02x, 0x%02x by the ops apart", t->name, (long long)k - GPU_GUARD_BYTES,
               o->fused[i][k], t->got[k]);
      break;
    }
    free(o->fused[i]);
    o->fused[i] = NULL;
  }
}

/* ---- mla_norm_write --------------------------------------------------------------------------------------------- */

typedef struct norm_case {
  int64_t rows, cols, live; /* live -1: no count */
  tdm_dtype dtype;          /* of all that is not e4m3 */
  bool plain, quant, pow2, with_kv;
  tdm_rope_style style;
  int32_t sms; /* 0: all */
} norm_case;

static void make_slots(gpu_tensor* slots, int64_t rows, int64_t pages) {
  int32_t* slot = ints_of(slots);
  for (int64_t m = 0; m < rows; m++) slot[m] = m % 7 == 3 ? -1 : (int32_t)((m * 37 + 11) % (pages * 64));
  for (int64_t m = 0; m < rows; m++) /* no slot twice */
    for (int64_t j = 0; j < m && slot[m] >= 0; j++)
      if (slot[j] == slot[m]) slot[m] = -1;
}

static void run_apart(gpu_rig* rig, const tdm_mla_norm_write_args* args) {
  const tdm_rmsnorm_args norm = {.size = sizeof norm,
                                 .n_tokens = args->n_tokens,
                                 .x = args->q,
                                 .weight = args->q_weight,
                                 .out = args->out,
                                 .out_q = args->out_q,
                                 .out_scale = args->out_scale,
                                 .eps = args->eps,
                                 .quant_eps = args->quant_eps,
                                 .pow2_scale = args->pow2_scale};
  const tdm_mla_kv_write_args write = {.size = sizeof write,
                                       .n_tokens = args->n_tokens,
                                       .kv = args->kv,
                                       .norm_weight = args->kv_weight,
                                       .positions = args->positions,
                                       .cos_sin = args->cos_sin,
                                       .slots = args->slots,
                                       .cache = args->cache,
                                       .out = args->out_kv,
                                       .eps = args->eps,
                                       .style = args->style};
  (void)gpu_run(rig, &tdm_op_rmsnorm, &norm, rig->sms);
  (void)gpu_run(rig, &tdm_op_mla_kv_write, &write, rig->sms);
}

static void run_norm_write(gpu_rig* rig, const norm_case* c) {
  gpu_begin(rig, "mla_norm_write %lld x %lld live %lld dtype %d plain %d quant %d pow2 %d kv %d style %d, %d SMs",
            (long long)c->rows, (long long)c->cols, (long long)c->live, c->dtype, c->plain, c->quant, c->pow2,
            c->with_kv, (int)c->style, c->sms ? c->sms : rig->sms);
  const int64_t pages = (c->rows + 63) / 64 + 2, latent = (c->cols + 7) / 8 * 8, shape[] = {c->rows, c->cols};
  gpu_tensor* qkv = gpu_make(rig, "qkv", c->dtype, 2, (int64_t[]){c->rows, latent + CACHED});
  gpu_tensor* q_weight = gpu_make(rig, "q_weight", c->dtype, 1, &c->cols);
  gpu_tensor* kv_weight = gpu_make(rig, "kv_weight", c->dtype, 1, (int64_t[]){LATENT});
  gpu_tensor* slots = gpu_make(rig, "slots", TDM_I32, 1, &c->rows);
  gpu_fill_normal(rig, qkv, 2.0f);
  gpu_fill_uniform(rig, q_weight, 0.5f, 1.5f);
  gpu_fill_uniform(rig, kv_weight, 0.5f, 1.5f);
  make_slots(slots, c->rows, pages);
  const double close = c->dtype == TDM_F32 ? 1e-12 : 1e-6;
  const double tolerances[] = {1e-6, 1e-5, 1e-9, close, close};
  outputs o = {{c->plain ? gpu_make(rig, "out", c->dtype, 2, shape) : NULL,
                c->quant ? gpu_make(rig, "out_q", TDM_E4M3, 2, shape) : NULL,
                c->quant ? gpu_make_scales(rig, "out_scale", c->rows, c->cols) : NULL,
                gpu_make_strided(rig, "cache", c->dtype, 3, (int64_t[]){pages, 64, CACHED},
                                 (int64_t[]){64 * CACHED + 64, CACHED, 1}),
                c->with_kv ? gpu_make(rig, "out_kv", c->dtype, 2, (int64_t[]){c->rows, CACHED}) : NULL},
               {0}};
  tdm_mla_norm_write_args args = {.size = sizeof args,
                                  .q = tdm_view_slice(qkv->view, 1, 0, c->cols),
                                  .q_weight = q_weight->view,
                                  .out = view_of(o.tensors[0]),
                                  .out_q = view_of(o.tensors[1]),
                                  .out_scale = view_of(o.tensors[2]),
                                  .kv = tdm_view_slice(qkv->view, 1, latent, CACHED),
                                  .kv_weight = kv_weight->view,
                                  .positions = make_positions(rig, c->rows)->view,
                                  .cos_sin = make_table(rig)->view,
                                  .slots = slots->view,
                                  .cache = o.tensors[3]->view,
                                  .out_kv = view_of(o.tensors[4]),
                                  .pow2_scale = c->pow2,
                                  .style = c->style};
  if (c->live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)c->live)->view;
  gpu_upload(rig);
  if (gpu_reference(rig, &tdm_op_mla_norm_write, &args)) {
    gpu_to_device(rig, &tdm_op_mla_norm_write, &args);
    if (gpu_run(rig, &tdm_op_mla_norm_write, &args, c->sms ? c->sms : rig->sms)) {
      gpu_download(rig);
      for (int i = 0; i < MOST_OUTPUTS; i++)
        if (o.tensors[i]) gpu_expect_close(rig, o.tensors[i], tolerances[i]);
      keep_outputs(&o);
      run_apart(rig, &args);
      expect_kept(rig, &o);
    }
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_mla_norm_write(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 65); i++) {
    const int64_t rows = gpu_row_counts[i];
    /* DeepSeek-V3, decoding and, with the plain latent, prefilling; on all SMs and on a few; bf16 weights. */
    const norm_case cases[] = {
        {rows, 1536, -1, TDM_BF16, false, true, false, i % 2 == 0, TDM_ROPE_DEINTERLEAVE, 0},
        {rows, 1536, i % 3 ? rows / 2 : rows, TDM_BF16, false, true, i % 2 == 0, true, TDM_ROPE_DEINTERLEAVE, 5},
        {rows, 1536, i % 3 ? -1 : rows / 2, TDM_BF16, true, false, false, i % 2 == 1, TDM_ROPE_INTERLEAVED, 0},
    };
    for (size_t j = 0; j < sizeof cases / sizeof *cases; j++) run_norm_write(rig, &cases[j]);
  }
  static const norm_case cases[] = {
      {17, 1536, 0, TDM_BF16, true, true, true, true, TDM_ROPE_HALVES, 0},
      {37, 128, -1, TDM_BF16, true, true, false, true, TDM_ROPE_HALVES, 1},
      {37, 513, -1, TDM_F32, true, false, false, true, TDM_ROPE_HALVES, 0},
      {9, 7168, 3, TDM_BF16, false, true, false, true, TDM_ROPE_DEINTERLEAVE, 0},
      {70, 16384, -1, TDM_BF16, false, true, false, false, TDM_ROPE_DEINTERLEAVE, 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_norm_write(rig, &cases[i]);
}

/* ---- mla_qkv_a -------------------------------------------------------------------------------------------------- */

typedef struct qkv_case {
  int64_t rows, k, cols, live; /* live -1: no count */
  bool plain, quant, pow2, with_kv;
  tdm_rope_style style;
  int32_t sms; /* 0: all */
} qkv_case;

static void run_qkv_apart(gpu_rig* rig, const tdm_mla_qkv_a_args* args, const gpu_tensor* qkv) {
  const int64_t cols = args->w.shape[0] - CACHED;
  const tdm_gemm_fp8_args product = {.size = sizeof product,
                                     .n_tokens = args->n_tokens,
                                     .a = args->a,
                                     .a_scale = args->a_scale,
                                     .w = args->w,
                                     .w_scale = args->w_scale,
                                     .out = qkv->view};
  tdm_mla_norm_write_args rows = {.size = sizeof rows,
                                  .n_tokens = args->n_tokens,
                                  .q_weight = args->q_weight,
                                  .out = args->out,
                                  .out_q = args->out_q,
                                  .out_scale = args->out_scale,
                                  .kv_weight = args->kv_weight,
                                  .positions = args->positions,
                                  .cos_sin = args->cos_sin,
                                  .slots = args->slots,
                                  .cache = args->cache,
                                  .out_kv = args->out_kv,
                                  .eps = args->eps,
                                  .quant_eps = args->quant_eps,
                                  .pow2_scale = args->pow2_scale,
                                  .style = args->style};
  tdm_gemm_fp8_args on_device = product;
  gpu_to_device(rig, &tdm_op_gemm_fp8, &on_device);
  rows.q = tdm_view_slice(on_device.out, 1, 0, cols);
  rows.kv = tdm_view_slice(on_device.out, 1, cols, CACHED);
  (void)gpu_run(rig, &tdm_op_gemm_fp8, &on_device, rig->sms);
  (void)gpu_run(rig, &tdm_op_mla_norm_write, &rows, rig->sms);
}

static void run_qkv(gpu_rig* rig, const qkv_case* c) {
  gpu_begin(rig, "mla_qkv_a %lld x %lld to %lld live %lld plain %d quant %d pow2 %d kv %d style %d, %d SMs",
            (long long)c->rows, (long long)c->k, (long long)c->cols, (long long)c->live, c->plain, c->quant, c->pow2,
            c->with_kv, (int)c->style, c->sms ? c->sms : rig->sms);
  const int64_t n = c->cols + CACHED, pages = (c->rows + 63) / 64 + 2, shape[] = {c->rows, c->cols};
  gpu_tensor* a = gpu_make(rig, "a", TDM_E4M3, 2, (int64_t[]){c->rows, c->k});
  gpu_tensor* a_scale = gpu_make_scales(rig, "a_scale", c->rows, c->k);
  gpu_tensor* w = gpu_make(rig, "w", TDM_E4M3, 2, (int64_t[]){n, c->k});
  gpu_tensor* w_scale = gpu_make(rig, "w_scale", TDM_F32, 2, (int64_t[]){(n + 127) / 128, c->k / 128});
  gpu_tensor* q_weight = gpu_make(rig, "q_weight", TDM_BF16, 1, &c->cols);
  gpu_tensor* kv_weight = gpu_make(rig, "kv_weight", TDM_BF16, 1, (int64_t[]){LATENT});
  gpu_tensor* slots = gpu_make(rig, "slots", TDM_I32, 1, &c->rows);
  gpu_tensor* qkv = gpu_make(rig, "qkv", TDM_BF16, 2, (int64_t[]){c->rows, n});
  gpu_random_e4m3(rig, a->host + GPU_GUARD_BYTES, a->bytes - 2 * GPU_GUARD_BYTES);
  gpu_random_e4m3(rig, w->host + GPU_GUARD_BYTES, w->bytes - 2 * GPU_GUARD_BYTES);
  gpu_fill_uniform(rig, a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.0003f, 0.001f);
  gpu_fill_uniform(rig, q_weight, 0.5f, 1.5f);
  gpu_fill_uniform(rig, kv_weight, 0.5f, 1.5f);
  make_slots(slots, c->rows, pages);
  outputs o = {{c->plain ? gpu_make(rig, "out", TDM_BF16, 2, shape) : NULL,
                c->quant ? gpu_make(rig, "out_q", TDM_E4M3, 2, shape) : NULL,
                c->quant ? gpu_make_scales(rig, "out_scale", c->rows, c->cols) : NULL,
                gpu_make_strided(rig, "cache", TDM_BF16, 3, (int64_t[]){pages, 64, CACHED},
                                 (int64_t[]){64 * CACHED + 64, CACHED, 1}),
                c->with_kv ? gpu_make(rig, "out_kv", TDM_BF16, 2, (int64_t[]){c->rows, CACHED}) : NULL},
               {0}};
  tdm_mla_qkv_a_args args = {.size = sizeof args,
                             .a = a->view,
                             .a_scale = a_scale->view,
                             .w = w->view,
                             .w_scale = w_scale->view,
                             .q_weight = q_weight->view,
                             .out = view_of(o.tensors[0]),
                             .out_q = view_of(o.tensors[1]),
                             .out_scale = view_of(o.tensors[2]),
                             .kv_weight = kv_weight->view,
                             .positions = make_positions(rig, c->rows)->view,
                             .cos_sin = make_table(rig)->view,
                             .slots = slots->view,
                             .cache = o.tensors[3]->view,
                             .out_kv = view_of(o.tensors[4]),
                             .pow2_scale = c->pow2,
                             .style = c->style};
  if (c->live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)c->live)->view;
  gpu_upload(rig);
  if (tdm_op_mla_qkv_a.check(&args) != TDM_OK) {
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
  } else {
    gpu_to_device(rig, &tdm_op_mla_qkv_a, &args);
    if (gpu_run(rig, &tdm_op_mla_qkv_a, &args, c->sms ? c->sms : rig->sms)) {
      keep_outputs(&o);
      run_qkv_apart(rig, &args, qkv);
      expect_kept(rig, &o);
    }
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_mla_qkv_a(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 65); i++) {
    const int64_t rows = gpu_row_counts[i];
    /* DeepSeek-V3, decoding and with the plain latent; on all SMs and on a few. */
    const qkv_case cases[] = {
        {rows, 7168, 1536, -1, false, true, false, i % 2 == 0, TDM_ROPE_DEINTERLEAVE, 0},
        {rows, 2048, 128, i % 3 ? rows / 2 : rows, i % 2 == 0, true, i % 2 == 0, true, TDM_ROPE_INTERLEAVED, 5},
    };
    for (size_t j = 0; j < sizeof cases / sizeof *cases; j++) run_qkv(rig, &cases[j]);
  }
  static const qkv_case cases[] = {
      {17, 2048, 200, 0, true, false, false, true, TDM_ROPE_HALVES, 0},
      {37, 2048, 200, -1, true, false, false, true, TDM_ROPE_HALVES, 0},
      {9, 256, 1536, 3, false, true, false, true, TDM_ROPE_DEINTERLEAVE, 0}, /* one segment */
      {8, 7168, 256, -1, false, true, false, false, TDM_ROPE_HALVES, 0},     /* six */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_qkv(rig, &cases[i]);
}

/* ---- mla_absorb ------------------------------------------------------------------------------------------------- */

typedef struct absorb_case {
  int64_t max_rows, heads, gap; /* gap: elements between tokens */
  tdm_dtype out;
  tdm_rope_style style;
  bool sampled;
} absorb_case;

static void slice_heads(void* void_args, int64_t first, int64_t count) {
  tdm_mla_absorb_args* args = void_args;
  args->q = tdm_view_slice(args->q, 1, first, count);
  args->w = tdm_view_slice(args->w, 0, first, count);
  args->out = tdm_view_slice(args->out, 1, first, count);
}

/* The first `rows` rows by the op on `sms` SMs, and by the two that it is. */
static void compare_apart(gpu_rig* rig, const tdm_mla_absorb_args* host_args, gpu_tensor* out, int64_t rows,
                          int32_t sms) {
  tdm_mla_absorb_args args = *host_args;
  args.q.shape[0] = args.positions.shape[0] = args.out.shape[0] = rows;
  gpu_to_device(rig, &tdm_op_mla_absorb, &args);
  const tdm_gemm_bf16_args gemm = {.size = sizeof gemm,
                                   .a = tdm_view_transpose(tdm_view_slice(args.q, 2, 0, NOPE), 0, 1),
                                   .w = tdm_view_transpose(args.w, 1, 2),
                                   .out = tdm_view_transpose(tdm_view_slice(args.out, 2, 0, LATENT), 0, 1)};
  const tdm_rope_args rope = {.size = sizeof rope,
                              .x = tdm_view_slice(args.q, 2, NOPE, 64),
                              .positions = args.positions,
                              .cos_sin = args.cos_sin,
                              .out = tdm_view_slice(args.out, 2, LATENT, 64),
                              .style = args.style};
  outputs o = {{out}, {0}};
  gpu_poison_device(out);
  if (!gpu_run(rig, &tdm_op_mla_absorb, &args, sms)) return;
  keep_outputs(&o);
  (void)gpu_run(rig, &tdm_op_gemm_bf16, &gemm, rig->sms);
  (void)gpu_run(rig, &tdm_op_rope, &rope, rig->sms);
  expect_kept(rig, &o);
}

static void run_absorb(gpu_rig* rig, const absorb_case* c, bool quick) {
  const int64_t h = c->heads, rows = c->max_rows;
  gpu_begin(rig, "mla_absorb %d heads to %s, style %d, against the ops apart", (int)h, tdm_dtype_name(c->out),
            (int)c->style);
  gpu_tensor* q = gpu_make_strided(rig, "q", TDM_BF16, 3, (int64_t[]){rows, h, HEAD_Q},
                                   (int64_t[]){h * HEAD_Q + c->gap, HEAD_Q, 1});
  gpu_tensor* kv_b = gpu_make(rig, "w", TDM_BF16, 3, (int64_t[]){h, 256, LATENT});
  gpu_tensor* out = gpu_make_strided(rig, "out", c->out, 3, (int64_t[]){rows, h, CACHED},
                                     (int64_t[]){h * CACHED + c->gap, CACHED, 1});
  gpu_fill_normal(rig, q, 1.0f);
  gpu_fill_normal(rig, kv_b, 0.05f);
  tdm_mla_absorb_args args = {.size = sizeof args,
                              .q = q->view,
                              .w = tdm_view_slice(kv_b->view, 1, 0, NOPE),
                              .positions = make_positions(rig, rows)->view,
                              .cos_sin = make_table(rig)->view,
                              .out = out->view,
                              .style = c->style};
  gpu_upload(rig);
  for (int i = 0; i < GPU_ROW_COUNTS; i++)
    if (gpu_row_counts[i] <= rows && !(quick && gpu_row_counts[i] > 37))
      compare_apart(rig, &args, out, gpu_row_counts[i], i % 3 == 1 ? 5 : rig->sms);
  gpu_end(rig);
  gpu_begin(rig, "mla_absorb %d heads to %s, style %d", (int)h, tdm_dtype_name(c->out), (int)c->style);
  gpu_poison_device(out);
  const gpu_product product = {.op = &tdm_op_mla_absorb,
                               .args = &args,
                               .n_tokens = offsetof(tdm_mla_absorb_args, n_tokens),
                               .rows = {{offsetof(tdm_mla_absorb_args, q), 0, 0},
                                        {offsetof(tdm_mla_absorb_args, positions), 0, 0},
                                        {offsetof(tdm_mla_absorb_args, out), 0, c->out == TDM_F32 ? 1e-10 : 1e-6}},
                               .slice = slice_heads,
                               .slices = h,
                               .granule = 1,
                               .sampled = c->sampled,
                               .quick = quick};
  gpu_test_product(rig, &product);
}

void test_mla_absorb(gpu_rig* rig, bool quick) {
  static const absorb_case cases[] = {
      {65, 3, 8, TDM_BF16, TDM_ROPE_INTERLEAVED, false},
      {65, 12, 0, TDM_F32, TDM_ROPE_HALVES, false},
      {130, 8, 0, TDM_BF16, TDM_ROPE_DEINTERLEAVE, false},
  };
  /* DeepSeek-V3: the heads of one rank and of one of eight. */
  static const absorb_case real[] = {
      {1500, 128, 0, TDM_BF16, TDM_ROPE_DEINTERLEAVE, true},
      {1500, 16, 0, TDM_BF16, TDM_ROPE_DEINTERLEAVE, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_absorb(rig, &cases[i], quick);
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) run_absorb(rig, &real[i], false);
}
