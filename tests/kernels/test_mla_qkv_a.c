#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mla_qkv_a/mla_qkv_a_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

/* gemm_fp8 and mla_norm_write have oracles of their own; here are their bits. */

enum { LATENT = 512, CACHED = 576, POSITIONS = 150 };

typedef struct qkv_case {
  int64_t m, k, d, live; /* live -1: no count */
  tdm_dtype weight, out, cache;
  bool plain, quant, pow2, with_kv;
  tdm_rope_style style;
  float eps;
} qkv_case;

#define B TDM_BF16
#define F TDM_F32

static const qkv_case cases[] = {
    {1, 1024, 384, -1, B, B, B, false, true, false, false, TDM_ROPE_DEINTERLEAVE, 0.0f},
    {3, 384, 104, 2, F, F, F, true, false, false, true, TDM_ROPE_HALVES, 1e-2f},
    {7, 256, 128, 0, B, B, B, true, true, false, true, TDM_ROPE_INTERLEAVED, 0.0f},
    {17, 128, 256, 16, B, F, B, true, true, true, true, TDM_ROPE_DEINTERLEAVE, 10.0f},
    {130, 128, 128, -1, B, B, B, false, true, false, false, TDM_ROPE_HALVES, 0.0f},
};

enum { OUT, OUT_Q, OUT_SCALE, CACHE, OUT_KV, OUTPUTS };

static const size_t members[OUTPUTS] = {offsetof(tdm_mla_qkv_a_args, out), offsetof(tdm_mla_qkv_a_args, out_q),
                                        offsetof(tdm_mla_qkv_a_args, out_scale), offsetof(tdm_mla_qkv_a_args, cache),
                                        offsetof(tdm_mla_qkv_a_args, out_kv)};

typedef struct bench {
  test_rig rig;
  test_tensor *positions, *slots;
  tdm_mla_qkv_a_args args;
} bench;

static int64_t live_rows(const qkv_case* c) {
  return c->live < 0 ? c->m : c->live;
}

static int32_t* int_at(const test_tensor* tensor, int64_t i) {
  return test_view_at(&tensor->view, i);
}

static test_tensor* make_rows(test_rig* rig, const qkv_case* c, const char* name, tdm_dtype dtype, int64_t columns) {
  test_tensor* t = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 16, 1});
  if (live_rows(c) > 0) {
    const tdm_view part = tdm_view_slice(t->view, 0, 0, live_rows(c));
    test_tensor_allow(t, &part);
  }
  return t;
}

static void make_outputs(bench* b, const qkv_case* c, test_tensor** out) {
  test_rig* rig = &b->rig;
  const int64_t pages = (c->m + 63) / 64 + 2;
  memset(out, 0, OUTPUTS * sizeof *out);
  if (c->plain) out[OUT] = make_rows(rig, c, "out", c->out, c->d);
  if (c->quant) {
    out[OUT_Q] = make_rows(rig, c, "out_q", TDM_E4M3, c->d);
    out[OUT_SCALE] = test_rig_scales(rig, "out_scale", c->m, c->d, 4);
    test_allow_scales(out[OUT_SCALE], live_rows(c));
  }
  if (c->with_kv) out[OUT_KV] = make_rows(rig, c, "out_kv", c->cache, CACHED);
  out[CACHE] =
      test_rig_strided(rig, "cache", c->cache, 3, (int64_t[]){pages, 64, CACHED}, (int64_t[]){64 * 584 + 32, 584, 1});
  for (int64_t i = 0; i < live_rows(c); i++) {
    const int32_t slot = *int_at(b->slots, i);
    if (slot < 0) continue;
    const tdm_view row = tdm_view_slice(tdm_view_slice(out[CACHE]->view, 0, slot / 64, 1), 1, slot % 64, 1);
    test_tensor_allow(out[CACHE], &row);
  }
  for (int i = 0; i < OUTPUTS; i++)
    *(tdm_view*)(void*)((char*)&b->args + members[i]) = out[i] ? out[i]->view : (tdm_view){0};
}

/* Slots are a permutation of the cache's, but for one that is absent. */
static void open_bench(bench* b, const qkv_case* c) {
  test_rig* rig = &b->rig;
  const int64_t pages = (c->m + 63) / 64 + 2, rows = c->d + CACHED;
  test_rig_open(rig);
  test_rig_label(rig, "%lld of %lld rows, %lld to %lld, style %d", (long long)live_rows(c), (long long)c->m,
                 (long long)c->k, (long long)c->d, (int)c->style);
  test_tensor* a_scale = test_rig_scales(rig, "a_scale", c->m, c->k, 4);
  test_tensor* a = test_rig_activation(rig, "a", TDM_E4M3, c->m, c->k, c->k + 16, 1.0f, a_scale);
  test_tensor* w = test_rig_tensor(rig, "w", TDM_E4M3, 2, (int64_t[]){rows, c->k});
  test_tensor* w_scale = test_rig_tensor(rig, "w_scale", F, 2, (int64_t[]){(rows + 127) / 128, c->k / 128});
  test_tensor* q_weight = test_rig_tensor(rig, "q_weight", c->weight, 1, &c->d);
  test_tensor* kv_weight = test_rig_tensor(rig, "kv_weight", c->weight, 1, (int64_t[]){LATENT});
  test_tensor* table = test_rig_tensor(rig, "cos_sin", F, 2, (int64_t[]){POSITIONS, 64});
  b->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, &c->m);
  b->slots = test_rig_tensor(rig, "slots", TDM_I32, 1, &c->m);
  test_view_set_normal(&w->view, &rig->random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig->random, 0.001f, 0.003f);
  test_view_set_normal(&q_weight->view, &rig->random, 1.0f);
  test_view_set_normal(&kv_weight->view, &rig->random, 1.0f);
  oracle_fill_uniform(&table->view, &rig->random, -1.0f, 1.0f);
  for (int64_t i = 0; i < c->m; i++) {
    *int_at(b->positions, i) = (int32_t)((i * 31 + 149) % POSITIONS);
    *int_at(b->slots, i) = i == 1 ? -1 : (int32_t)((i * 37 + 63) % (pages * 64));
  }
  b->args = (tdm_mla_qkv_a_args){.size = sizeof b->args,
                                 .a = a->view,
                                 .a_scale = a_scale->view,
                                 .w = w->view,
                                 .w_scale = w_scale->view,
                                 .q_weight = q_weight->view,
                                 .kv_weight = kv_weight->view,
                                 .positions = b->positions->view,
                                 .cos_sin = table->view,
                                 .slots = b->slots->view,
                                 .eps = c->eps,
                                 .quant_eps = 2.0f, /* above some blocks' largest value */
                                 .pow2_scale = c->pow2,
                                 .style = c->style};
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* The two ops, written out once more, lest what the op leaves out be left out here too. */
static void run_apart(bench* b, const qkv_case* c) {
  const tdm_mla_qkv_a_args* args = &b->args;
  test_tensor* qkv = make_rows(&b->rig, c, "qkv", B, c->d + CACHED);
  const tdm_gemm_fp8_args product = {.size = sizeof product,
                                     .n_tokens = args->n_tokens,
                                     .a = args->a,
                                     .a_scale = args->a_scale,
                                     .w = args->w,
                                     .w_scale = args->w_scale,
                                     .out = qkv->view};
  const tdm_mla_norm_write_args rows = {.size = sizeof rows,
                                        .n_tokens = args->n_tokens,
                                        .q = tdm_view_slice(qkv->view, 1, 0, c->d),
                                        .q_weight = args->q_weight,
                                        .out = args->out,
                                        .out_q = args->out_q,
                                        .out_scale = args->out_scale,
                                        .kv = tdm_view_slice(qkv->view, 1, c->d, CACHED),
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
  cr_assert_eq(TEST_RUN(&b->rig, gemm_fp8, &product), TDM_OK, "%s: %s", b->rig.label, tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(&b->rig, mla_norm_write, &rows), TDM_OK, "%s: %s", b->rig.label, tdm_last_error()->message);
}

Test(mla_qkv_a, has_the_bits_of_the_ops) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bench b;
    test_tensor *out[OUTPUTS], *want[OUTPUTS];
    open_bench(&b, &cases[i]);
    make_outputs(&b, &cases[i], want);
    run_apart(&b, &cases[i]);
    make_outputs(&b, &cases[i], out);
    cr_assert_eq(TEST_RUN(&b.rig, mla_qkv_a, &b.args), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    for (int o = 0; o < OUTPUTS; o++)
      if (out[o]) test_expect_bits(b.rig.label, out[o]->memory, want[o]->memory, (int64_t)out[o]->bytes);
    cr_expect_eq(test_rig_run_direct(&b.rig, &tdm_op_mla_qkv_a, &b.args), TDM_OK);
    test_rig_close(&b.rig);
  }
}

/* ---- plan ------------------------------------------------------------------------------------------------------- */

/* Segments stay apart where there are some and the GEMM has a form that leaves them. */
Test(mla_qkv_a, plans_who_adds_the_segments_up) {
  static const struct {
    int64_t m, k, d;
    bool apart;
  } shapes[] = {{1, 7168, 1536, true}, {128, 7168, 1536, true}, {129, 7168, 1536, false},
                {16, 2048, 128, true}, {16, 1024, 128, false}, /* one segment */
                {16, 7168, 256, false}};                       /* six */
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    const qkv_case c = {shapes[i].m, 128, 128, -1, B, B, B, false, true, false, false, TDM_ROPE_HALVES, 0.0f};
    bench b;
    test_tensor* out[OUTPUTS];
    open_bench(&b, &c);
    make_outputs(&b, &c, out);
    tdm_mla_qkv_a_args args = b.args;
    args.a.shape[1] = args.w.shape[1] = args.w.stride[0] = shapes[i].k;
    args.w.shape[0] = shapes[i].d + CACHED;
    args.q_weight.shape[0] = args.out_q.shape[1] = shapes[i].d;
    tdm_mla_qkv_a_sm90_plan plan;
    tdm_mla_qkv_a_sm90_make_plan(&args, 132, &plan);
    cr_expect_eq(plan.apart, shapes[i].apart, "%lld x %lld to %lld: %d segments", (long long)shapes[i].m,
                 (long long)shapes[i].k, (long long)shapes[i].d, plan.product.segments);
    test_rig_close(&b.rig);
  }
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static const qkv_case good = {5, 256, 384, -1, F, F, F, true, true, false, true, TDM_ROPE_DEINTERLEAVE, 0.0f};

#define SET(member, value)  TEST_SET(tdm_mla_qkv_a_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_qkv_a_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_qkv_a_args, member)

static const test_refusal refusals[] = {
    {"a in f32", "mla_qkv_a|a is f32", {COPY(a, out)}},
    {"w in f32", "mla_qkv_a|w is f32", {COPY(w, out)}},
    {"other columns", "mla_qkv_a|a has 128 columns, w 256", {SET(a.shape[1], 128)}},
    {"columns of 200", "mla_qkv_a|200|128", {SET(a.shape[1], 200), SET(w.shape[1], 200)}},
    {"no a_scale", "a_scale", {ABSENT(a_scale)}},
    {"short w_scale", "w_scale", {SET(w_scale.shape[0], 7)}},
    {"no queries", "w has 0 rows besides the 576", {SET(w.shape[0], CACHED)}},
    {"383 queries", "w has 383 rows|multiple of 8", {SET(w.shape[0], CACHED + 383)}},
    {"four rows", "4", {SET(a.shape[0], 4)}},
    {"short q_weight", "q_weight|383|384", {SET(q_weight.shape[0], 383)}},
    {"narrow out", "out|256|384", {SET(out.shape[1], 256)}},
    {"no outputs", "out and out_q are both absent", {ABSENT(out), ABSENT(out_q), ABSENT(out_scale)}},
    {"scales alone", "out_scale is given but out_q is absent", {ABSENT(out_q)}},
    {"short kv_weight", "kv_weight|500|512", {SET(kv_weight.shape[0], 500)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"unknown style", "style|9", {SET(style, 9)}},
    {"too few slots", "slots|4|5", {SET(slots.shape[0], 4)}},
    {"pages of 32", "cache|32|64", {SET(cache.shape[1], 32)}},
    {"no cache", "cache|absent", {ABSENT(cache)}},
    {"out_kv in bf16", "out_kv is bf16", {SET(out_kv.dtype, TDM_BF16)}},
    {"negative eps", "eps|-1", {TEST_SET_FLOAT(tdm_mla_qkv_a_args, eps, -1.0f)}},
    {"NaN quant_eps", "quant_eps|nan", {TEST_SET_FLOAT(tdm_mla_qkv_a_args, quant_eps, NAN)}},
    {"out in the cache", "overlaps", {COPY(out.buffer, cache.buffer)}},
    {"a count of five", "n_tokens", {COPY(n_tokens, positions)}},
};

Test(mla_qkv_a, refuses_bad_arguments) {
  bench b;
  test_tensor* out[OUTPUTS];
  open_bench(&b, &good);
  make_outputs(&b, &good, out);
  test_rig_refusals(&b.rig, &tdm_op_mla_qkv_a, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&b.rig);
}

Test(mla_qkv_a, refuses_bad_data_and_writes_nothing) {
  static const struct {
    int64_t row;
    int32_t position, slot, count;
    const char* words;
  } bad_data[] = {
      {4, 0, 192, 5, "mla_qkv_a|slot 192|row 4|[0, 192)"},
      {0, POSITIONS, 0, 5, "mla_qkv_a|position 150|row 0|[0, 150)"},
      {0, 0, 0, 7, "mla_qkv_a|7|5"},
  };
  qkv_case c = good;
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    bench b;
    test_tensor* out[OUTPUTS];
    c.live = 0; /* nothing may be written */
    open_bench(&b, &c);
    make_outputs(&b, &c, out);
    test_rig_label(&b.rig, "bad data %zu", i);
    *int_at(b.positions, bad_data[i].row) = bad_data[i].position;
    *int_at(b.slots, bad_data[i].row) = bad_data[i].slot;
    b.args.n_tokens = test_rig_count(&b.rig, "n_tokens", bad_data[i].count)->view;
    test_expect_failure(b.rig.label, TEST_RUN(&b.rig, mla_qkv_a, &b.args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&b.rig);
  }
}
