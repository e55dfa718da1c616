#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { LATENT = 512, CACHED = 576, POSITIONS = 150 };

/* The operands of one call. Slots are a permutation of the cache's, so that every row lands somewhere else. */
typedef struct bench {
  test_tensor *kv, *weight, *positions, *table, *slots, *cache, *out;
  tdm_mla_kv_write_args args;
} bench;

static void make_bench(test_rig* rig, bench* b, int64_t m, tdm_dtype in, tdm_dtype weight, tdm_dtype cache,
                       bool with_out) {
  int64_t pages = (m + 63) / 64 + 2;
  b->kv = test_rig_strided(rig, "kv", in, 2, (int64_t[]){m, CACHED}, (int64_t[]){CACHED + 24, 1});
  b->weight = test_rig_tensor(rig, "norm_weight", weight, 1, (int64_t[]){LATENT});
  b->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, (int64_t[]){m});
  b->table = test_rig_tensor(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  b->slots = test_rig_tensor(rig, "slots", TDM_I32, 1, (int64_t[]){m});
  b->cache =
      test_rig_strided(rig, "cache", cache, 3, (int64_t[]){pages, 64, CACHED}, (int64_t[]){64 * 584 + 32, 584, 1});
  test_view_set_normal(&b->kv->view, &rig->random, 3.0f);
  test_view_set_normal(&b->weight->view, &rig->random, 1.0f);
  for (int64_t p = 0; p < POSITIONS; p++) {
    for (int64_t i = 0; i < 32; i++) {
      double angle = (double)p * pow(10000.0, -(double)i / 32.0);
      oracle_set(&b->table->view, p * 64 + i, (float)cos(angle));
      oracle_set(&b->table->view, p * 64 + 32 + i, (float)sin(angle));
    }
  }
  for (int64_t i = 0; i < m; i++) {
    *(int32_t*)test_view_at(&b->positions->view, i) = (int32_t)((i * 31 + 149) % POSITIONS);
    *(int32_t*)test_view_at(&b->slots->view, i) = (int32_t)((i * 37 + 63) % (pages * 64));
  }
  b->args = (tdm_mla_kv_write_args){
      .size = sizeof b->args,
      .kv = b->kv->view,
      .norm_weight = b->weight->view,
      .positions = b->positions->view,
      .cos_sin = b->table->view,
      .slots = b->slots->view,
      .cache = b->cache->view,
      .style = TDM_ROPE_DEINTERLEAVE,
  };
  b->out = NULL;
  if (with_out) {
    b->out = test_rig_strided(rig, "out", cache, 2, (int64_t[]){m, CACHED}, (int64_t[]){CACHED + 8, 1});
    b->args.out = b->out->view;
  }
}

static int32_t slot_of(const bench* b, int64_t row) {
  return *(const int32_t*)test_view_at(&b->slots->view, row);
}

/* The cache's [1, 576] for a slot. */
static tdm_view cached_row(const tdm_view* cache, int32_t slot) {
  tdm_view row = tdm_view_slice(tdm_view_slice(*cache, 0, slot / 64, 1), 1, slot % 64, 1);
  row.rank = 2;
  row.shape[1] = CACHED;
  row.stride[1] = 1;
  return row;
}

static void allow(bench* b, int64_t live) {
  for (int64_t i = 0; i < live; i++) {
    if (slot_of(b, i) < 0) continue;
    tdm_view row = cached_row(&b->cache->view, slot_of(b, i));
    test_tensor_allow(b->cache, &row);
  }
  if (b->out != NULL && live > 0) {
    tdm_view part = tdm_view_slice(b->out->view, 0, 0, live);
    test_tensor_allow(b->out, &part);
  }
}

/* [m, 576]; free() it. */
static double* expected(const bench* b) {
  int64_t m = b->kv->view.shape[0];
  double eps = b->args.eps == 0.0f ? 1e-6 : (double)b->args.eps;
  double* x = oracle_values(&b->kv->view);
  double* weight = oracle_values(&b->weight->view);
  double* table = oracle_values(&b->table->view);
  double* y = oracle_zeros(m * CACHED);
  for (int64_t i = 0; i < m; i++) {
    const double *xi = x + i * CACHED, *rope = xi + LATENT;
    double* yi = y + i * CACHED;
    double mean = 0;
    for (int d = 0; d < LATENT; d++) mean += xi[d] * xi[d] / LATENT;
    for (int d = 0; d < LATENT; d++) yi[d] = xi[d] / sqrt(mean + eps) * weight[d];
    const double* cs = table + *(const int32_t*)test_view_at(&b->positions->view, i) * 64;
    for (int d = 0; d < 32; d++) {
      bool halves = b->args.style == TDM_ROPE_HALVES, spread = b->args.style == TDM_ROPE_INTERLEAVED;
      double even = rope[halves ? d : 2 * d], odd = rope[halves ? d + 32 : 2 * d + 1];
      yi[LATENT + (spread ? 2 * d : d)] = even * cs[d] - odd * cs[32 + d];
      yi[LATENT + (spread ? 2 * d + 1 : d + 32)] = odd * cs[d] + even * cs[32 + d];
    }
  }
  free(x);
  free(weight);
  free(table);
  return y;
}

/* Latent and rope apart: their magnitudes differ. */
static void expect_row(const char* what, const tdm_view* row, const double* ref) {
  tdm_view latent = tdm_view_slice(*row, 1, 0, LATENT), rope = tdm_view_slice(*row, 1, LATENT, 64);
  oracle_expect_rounded(what, &latent, ref, 4e-7);
  oracle_expect_rounded(what, &rope, ref + LATENT, 2e-7);
}

static void expect_rows(const test_rig* rig, const bench* b, const double* ref, int64_t live) {
  for (int64_t i = 0; i < live; i++) {
    if (slot_of(b, i) >= 0) {
      tdm_view row = cached_row(&b->cache->view, slot_of(b, i));
      expect_row(rig->label, &row, ref + i * CACHED);
    }
    if (b->out != NULL) {
      tdm_view row = tdm_view_slice(b->out->view, 0, i, 1);
      expect_row(rig->label, &row, ref + i * CACHED);
    }
  }
}

static const struct {
  int64_t m, live;
  tdm_dtype in, weight, cache;
  tdm_rope_style style;
  float eps;
  bool with_out;
} cases[] = {
    {1, 1, TDM_F32, TDM_F32, TDM_F32, TDM_ROPE_DEINTERLEAVE, 0.0f, false},
    {2, 2, TDM_BF16, TDM_BF16, TDM_BF16, TDM_ROPE_DEINTERLEAVE, 0.0f, true},
    {3, 2, TDM_F32, TDM_BF16, TDM_BF16, TDM_ROPE_INTERLEAVED, 0.0f, true},
    {7, 0, TDM_F32, TDM_F32, TDM_F32, TDM_ROPE_DEINTERLEAVE, 0.0f, true},
    {16, 16, TDM_BF16, TDM_F32, TDM_F32, TDM_ROPE_HALVES, 0.0f, true},
    {17, 16, TDM_BF16, TDM_BF16, TDM_BF16, TDM_ROPE_INTERLEAVED, 1e-2f, false},
    {37, 37, TDM_F32, TDM_F32, TDM_BF16, TDM_ROPE_HALVES, 10.0f, true},
    {64, 63, TDM_BF16, TDM_BF16, TDM_BF16, TDM_ROPE_DEINTERLEAVE, 0.0f, true},
    {65, 65, TDM_F32, TDM_F32, TDM_F32, TDM_ROPE_DEINTERLEAVE, 0.0f, true},
    {100, 99, TDM_BF16, TDM_F32, TDM_BF16, TDM_ROPE_DEINTERLEAVE, 0.0f, false},
    {129, 129, TDM_F32, TDM_BF16, TDM_F32, TDM_ROPE_INTERLEAVED, 0.0f, true},
};

Test(mla_kv_write, writes_norm_and_rope_to_slots) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "case %zu: %lld rows, %s to %s, style %d", i, (long long)cases[i].m,
                   tdm_dtype_name(cases[i].in), tdm_dtype_name(cases[i].cache), (int)cases[i].style);
    make_bench(&rig, &b, cases[i].m, cases[i].in, cases[i].weight, cases[i].cache, cases[i].with_out);
    b.args.style = cases[i].style;
    b.args.eps = cases[i].eps;
    if (cases[i].m > 2) *(int32_t*)test_view_at(&b.slots->view, 1) = -1; /* not cached */
    if (cases[i].live < cases[i].m) {
      b.args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)cases[i].live)->view;
      *(int32_t*)test_view_at(&b.slots->view, cases[i].live) = INT32_MAX; /* not read */
      *(int32_t*)test_view_at(&b.positions->view, cases[i].live) = 0;
    }
    allow(&b, cases[i].live);
    double* ref = expected(&b);
    cr_assert_eq(TEST_RUN(&rig, mla_kv_write, &b.args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
    expect_rows(&rig, &b, ref, cases[i].live);
    free(ref);
    test_rig_close(&rig);
  }
}

Test(mla_kv_write, zero_row_and_nan_row) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  test_rig_label(&rig, "row 1 zero, row 3 with NaN, row 4 infinite in the rope part");
  make_bench(&rig, &b, 7, TDM_F32, TDM_F32, TDM_F32, true);
  for (int64_t d = 0; d < CACHED; d++) oracle_set(&b.kv->view, CACHED + d, 0.0f);
  oracle_set(&b.kv->view, 3 * CACHED + 100, NAN);
  oracle_set(&b.kv->view, 4 * CACHED + 570, INFINITY);
  allow(&b, 7);
  double* ref = expected(&b);
  cr_assert_eq(TEST_RUN(&rig, mla_kv_write, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  expect_rows(&rig, &b, ref, 7);
  free(ref);
  test_rig_close(&rig);
}

Test(mla_kv_write, a_row_alone_has_the_same_bits) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, 37, TDM_BF16, TDM_F32, TDM_F32, true);
  allow(&b, 37);
  cr_assert_eq(TEST_RUN(&rig, mla_kv_write, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  test_tensor* alone = test_rig_tensor(&rig, "alone", TDM_F32, 2, (int64_t[]){1, CACHED});
  test_tensor_allow(alone, &alone->view);
  for (int64_t i = 0; i < 37; i += 4) { /* whose positions and slots start at multiples of 16 bytes */
    test_rig_label(&rig, "row %lld", (long long)i);
    tdm_mla_kv_write_args args = b.args;
    args.kv = tdm_view_slice(args.kv, 0, i, 1);
    args.positions = tdm_view_slice(args.positions, 0, i, 1);
    args.slots = tdm_view_slice(args.slots, 0, i, 1);
    args.out = alone->view;
    cr_assert_eq(TEST_RUN(&rig, mla_kv_write, &args), TDM_OK, "%s", tdm_last_error()->message);
    tdm_view row = tdm_view_slice(b.out->view, 0, i, 1), cached = cached_row(&b.cache->view, slot_of(&b, i));
    oracle_expect_same_bits(rig.label, &alone->view, &row);
    oracle_expect_same_bits(rig.label, &cached, &row);
  }
  test_rig_close(&rig);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_mla_kv_write_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_kv_write_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_kv_write_args, member)

static const test_refusal refusals[] = {
    {"latent of 512", "kv|512|576", {SET(kv.shape[1], 512)}},
    {"fp8 latent", "kv|e4m3", {SET(kv.dtype, TDM_E4M3)}},
    {"rows that overlap", "kv|stride 8", {SET(kv.stride[0], 8)}},
    {"short weight", "norm_weight|500|512", {SET(norm_weight.shape[0], 500)}},
    {"integer weight", "norm_weight|i32", {SET(norm_weight.dtype, TDM_I32)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"too few slots", "slots|4|5", {SET(slots.shape[0], 4)}},
    {"float slots", "slots|f32", {SET(slots.dtype, TDM_F32)}},
    {"table of 60", "cos_sin|60", {SET(cos_sin.shape[1], 60)}},
    {"pages of 32", "cache|32|64", {SET(cache.shape[1], 32)}},
    {"cache of rank 2", "cache|rank 2", {SET(cache.rank, 2)}},
    {"out of another dtype", "out|bf16|f32", {SET(out.dtype, TDM_BF16)}},
    {"out of other rows", "out|4|5", {SET(out.shape[0], 4)}},
    {"negative eps", "eps|-1", {TEST_SET_FLOAT(tdm_mla_kv_write_args, eps, -1.0f)}},
    {"NaN eps", "eps|nan", {TEST_SET_FLOAT(tdm_mla_kv_write_args, eps, NAN)}},
    {"unknown style", "style|9", {SET(style, 9)}},
    {"no cache", "cache|absent", {ABSENT(cache)}},
    {"no slots", "slots|absent", {ABSENT(slots)}},
    {"out is kv", "out|overlaps|kv", {COPY(out, kv)}},
    {"out in the cache", "overlaps", {COPY(out.buffer, cache.buffer)}},
};

Test(mla_kv_write, refuses_bad_arguments) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, 5, TDM_F32, TDM_F32, TDM_F32, true);
  test_rig_refusals(&rig, &tdm_op_mla_kv_write, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(mla_kv_write, refuses_bad_data_and_writes_nothing) {
  static const struct {
    int64_t row;
    int32_t position, slot, count;
    const char* words;
  } bad_data[] = {
      {4, 0, 192, 5, "mla_kv_write|slot 192|row 4|[0, 192)"},
      {2, 0, -2, 5, "mla_kv_write|slot -2|row 2"},
      {0, POSITIONS, 0, 5, "mla_kv_write|position 150|row 0|[0, 150)"},
      {3, -1, 0, 5, "mla_kv_write|position -1|row 3"},
      {0, 0, 0, 7, "mla_kv_write|7|5"},
  };
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "bad data %zu", i);
    make_bench(&rig, &b, 5, TDM_F32, TDM_F32, TDM_F32, true);
    *(int32_t*)test_view_at(&b.positions->view, bad_data[i].row) = bad_data[i].position;
    *(int32_t*)test_view_at(&b.slots->view, bad_data[i].row) = bad_data[i].slot;
    b.args.n_tokens = test_rig_count(&rig, "n_tokens", bad_data[i].count)->view;
    test_expect_failure(rig.label, TEST_RUN(&rig, mla_kv_write, &b.args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&rig);
  }
}
