#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/gemm_bf16/gemm_bf16_short_sm90.h"
#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

/* How the operands lie in memory. */
typedef enum layout {
  PLAIN = 1,    /* contiguous */
  WIDE,         /* rows further apart than they are long */
  W_TRANSPOSED, /* w's N has stride 1: a [K, N] matrix passed transposed */
  HEADS_INSIDE  /* rank 3 from [M, B, K] and to [M, B, N]: the batch stride is smaller than the row stride */
} layout;

typedef struct gemm_case {
  int64_t b; /* 0: rank 2 */
  int64_t m, n, k;
  int64_t live; /* -1: no count */
  tdm_dtype a, w, out;
  layout layout;
} gemm_case;

static const gemm_case cases[] = {
    {0, 1, 1, 1, -1, TDM_BF16, TDM_BF16, TDM_F32, PLAIN},
    {0, 1, 576, 384, -1, TDM_BF16, TDM_BF16, TDM_BF16, PLAIN},
    {0, 2, 130, 64, -1, TDM_F32, TDM_F32, TDM_F32, WIDE},
    {0, 3, 7, 129, 2, TDM_BF16, TDM_BF16, TDM_F32, PLAIN},
    {0, 7, 264, 200, -1, TDM_BF16, TDM_F32, TDM_F32, W_TRANSPOSED},
    {0, 16, 33, 384, 16, TDM_F32, TDM_BF16, TDM_BF16, WIDE},
    {0, 17, 1, 512, -1, TDM_BF16, TDM_BF16, TDM_F32, WIDE},
    {0, 37, 130, 77, 33, TDM_BF16, TDM_BF16, TDM_BF16, W_TRANSPOSED},
    {0, 37, 16, 128, 0, TDM_BF16, TDM_BF16, TDM_F32, PLAIN},
    {0, 64, 100, 128, -1, TDM_F32, TDM_F32, TDM_F32, PLAIN},
    {0, 65, 65, 256, 64, TDM_BF16, TDM_BF16, TDM_F32, WIDE},
    {0, 100, 129, 130, -1, TDM_BF16, TDM_BF16, TDM_BF16, W_TRANSPOSED},
    {0, 128, 128, 128, 127, TDM_BF16, TDM_BF16, TDM_F32, PLAIN},
    {0, 129, 24, 384, -1, TDM_F32, TDM_F32, TDM_BF16, PLAIN},
    {0, 257, 40, 192, 254, TDM_BF16, TDM_BF16, TDM_F32, WIDE},
    {1, 1, 8, 16, -1, TDM_BF16, TDM_BF16, TDM_BF16, PLAIN},
    {4, 3, 512, 128, -1, TDM_BF16, TDM_BF16, TDM_BF16, HEADS_INSIDE},
    {4, 37, 128, 512, 30, TDM_BF16, TDM_BF16, TDM_BF16, HEADS_INSIDE},
    {16, 1, 512, 128, 1, TDM_BF16, TDM_BF16, TDM_F32, W_TRANSPOSED},
    {3, 65, 17, 96, -1, TDM_F32, TDM_F32, TDM_F32, WIDE},
    {2, 129, 5, 64, 100, TDM_BF16, TDM_F32, TDM_F32, HEADS_INSIDE},
    {5, 2, 9, 40, 0, TDM_BF16, TDM_BF16, TDM_F32, PLAIN},
};

typedef struct gemm {
  test_rig rig;
  test_tensor *a, *w, *out;
  tdm_gemm_bf16_args args;
} gemm;

/* A [b, rows, cols] tensor of the layout; of rank 2 when b is 0. Starts stay 16-byte aligned when the case slices them.
 */
static test_tensor* make(test_rig* rig, const char* name, tdm_dtype dtype, int64_t b, int64_t rows, int64_t cols,
                         layout how) {
  int64_t batches = b > 0 ? b : 1;
  int64_t strides[3] = {rows * cols, cols, 1};
  if (how == WIDE) {
    strides[1] = cols + 24;
    strides[0] = rows * strides[1] + 8;
  } else if (how == W_TRANSPOSED) {
    strides[1] = 1;
    strides[2] = rows + 3;
    strides[0] = strides[2] * cols;
  } else if (how == HEADS_INSIDE) {
    strides[0] = cols;
    strides[1] = batches * cols;
  }
  const int64_t shape[3] = {batches, rows, cols};
  if (b == 0) return test_rig_strided(rig, name, dtype, 2, shape + 1, strides + 1);
  return test_rig_strided(rig, name, dtype, 3, shape, strides);
}

static void open_gemm(gemm* g, const gemm_case* c) {
  test_rig* rig = &g->rig;
  test_rig_open(rig);
  test_rig_label(rig, "gemm_bf16 b %lld m %lld n %lld k %lld live %lld layout %d", (long long)c->b, (long long)c->m,
                 (long long)c->n, (long long)c->k, (long long)c->live, (int)c->layout);
  layout activations = c->layout == W_TRANSPOSED ? PLAIN : c->layout;
  g->a = make(rig, "a", c->a, c->b, c->m, c->k, activations);
  g->w = make(rig, "w", c->w, c->b, c->n, c->k, c->layout == HEADS_INSIDE ? PLAIN : c->layout);
  g->out = make(rig, "out", c->out, c->b, c->m, c->n, activations);
  test_view_set_normal(&g->w->view, &rig->random, 0.1f);
  int64_t live = c->live < 0 ? c->m : c->live;
  if (live > 0) {
    int32_t rows = c->b > 0 ? 1 : 0;
    tdm_view read = tdm_view_slice(g->a->view, rows, 0, live);
    tdm_view written = tdm_view_slice(g->out->view, rows, 0, live);
    test_view_set_normal(&read, &rig->random, 1.0f); /* the dead rows stay NaN */
    test_tensor_allow(g->out, &written);
  }
  g->args = (tdm_gemm_bf16_args){.size = sizeof g->args, .a = g->a->view, .w = g->w->view, .out = g->out->view};
  if (c->live >= 0) g->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* One rounding to bf16 is off by 2^-9 at most; otherwise one to f32. */
static double tolerance(tdm_dtype out) {
  return out == TDM_BF16 ? 2.5e-3 : 1e-7;
}

/* Compares the live rows of every batch with sums in double. */
static void expect_product(const gemm* g, const gemm_case* c, int64_t live) {
  float* a = test_view_values(&g->a->view);
  float* w = test_view_values(&g->w->view);
  float* out = test_view_values(&g->out->view);
  double* expected = malloc((size_t)(live * c->n + 1) * sizeof *expected);
  for (int64_t b = 0; b < (c->b > 0 ? c->b : 1); b++) {
    const float* a_b = a + b * c->m * c->k;
    const float* w_b = w + b * c->n * c->k;
    for (int64_t i = 0; i < live; i++) {
      for (int64_t j = 0; j < c->n; j++) {
        double sum = 0.0;
        for (int64_t p = 0; p < c->k; p++) sum += (double)a_b[i * c->k + p] * (double)w_b[j * c->k + p];
        expected[i * c->n + j] = sum;
      }
    }
    test_expect_close(g->rig.label, out + b * c->m * c->n, expected, live, c->n, tolerance(c->out));
  }
  free(a);
  free(w);
  free(out);
  free(expected);
}

Test(gemm_bf16, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const gemm_case* c = &cases[i];
    gemm g;
    open_gemm(&g, c);
    cr_assert_eq(TEST_RUN(&g.rig, gemm_bf16, &g.args), TDM_OK, "%s: %s", g.rig.label, tdm_last_error()->message);
    expect_product(&g, c, c->live < 0 ? c->m : c->live);
    cr_expect_eq(test_rig_run_direct(&g.rig, &tdm_op_gemm_bf16, &g.args), TDM_OK);
    test_rig_close(&g.rig);
  }
}

Test(gemm_bf16, a_row_does_not_depend_on_the_batch) {
  const gemm_case c = {3, 131, 72, 200, -1, TDM_BF16, TDM_BF16, TDM_F32, HEADS_INSIDE};
  gemm g;
  open_gemm(&g, &c);
  test_tensor* alone = test_rig_tensor(&g.rig, "alone", TDM_F32, 2, (int64_t[]){1, c.n});
  test_tensor_allow(alone, &alone->view);
  cr_assert_eq(TEST_RUN(&g.rig, gemm_bf16, &g.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t b = 0; b < c.b; b++) {
    tdm_view w = tdm_view_make(g.w->buffer, TDM_BF16, 2, (int64_t[]){c.n, c.k});
    w.offset_bytes = g.w->view.offset_bytes + b * c.n * c.k * 2;
    for (int64_t m = 0; m < c.m; m += 13) {
      tdm_view a = tdm_view_make(g.a->buffer, TDM_BF16, 2, (int64_t[]){1, c.k});
      a.offset_bytes = g.a->view.offset_bytes + (m * c.b + b) * c.k * 2;
      tdm_gemm_bf16_args args = {.size = sizeof args, .a = a, .w = w, .out = alone->view};
      cr_assert_eq(TEST_RUN(&g.rig, gemm_bf16, &args), TDM_OK, "%s", tdm_last_error()->message);
      test_expect_bits("row alone", test_view_at(&alone->view, 0), test_view_at(&g.out->view, (b * c.m + m) * c.n),
                       c.n * 4);
    }
  }
  test_rig_close(&g.rig);
}

Test(gemm_bf16, nan_stays_in_its_row) {
  static const float bad[] = {NAN, INFINITY};
  for (int i = 0; i < 2; i++) {
    const gemm_case c = {2, 9, 20, 70, -1, TDM_BF16, TDM_BF16, TDM_BF16, PLAIN};
    gemm g;
    open_gemm(&g, &c);
    test_view_set(&(tdm_view){.buffer = g.a->buffer,
                              .offset_bytes = g.a->view.offset_bytes + (4 * 70 + 69) * 2,
                              .dtype = TDM_BF16,
                              .rank = 1,
                              .shape = {1},
                              .stride = {1}},
                  &bad[i]);
    cr_assert_eq(TEST_RUN(&g.rig, gemm_bf16, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    expect_product(&g, &c, c.m);
    float* out = test_view_values(&g.out->view);
    for (int64_t j = 0; j < 2 * 9 * 20; j++) cr_expect_eq(!isfinite(out[j]), j / 20 == 4, "%lld", (long long)j);
    free(out);
    test_rig_close(&g.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_gemm_bf16_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_gemm_bf16_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_gemm_bf16_args, view)

/* Of a call with a [3, 5, 64], w [3, 24, 64] and out [3, 5, 24], all bf16. */
static const test_refusal refusals[] = {
    {"a is e4m3", "a is e4m3", {SET(a.dtype, TDM_E4M3)}},
    {"a has rank 1", "a has rank 1, not 2 or 3", {SET(a.rank, 1)}},
    {"a has rank 4", "a has rank 4", {SET(a.rank, 4), SET(a.shape[3], 1), SET(a.stride[3], 1)}},
    {"a's last stride is 2",
     "a has last stride 2",
     {SET(a.stride[2], 2), SET(a.shape[0], 1), SET(w.shape[0], 1), SET(out.shape[0], 1)}},
    {"a's row stride is 0", "a has stride 0 in dimension 1", {SET(a.stride[1], 0)}},
    {"a starts at byte 258", "a starts at byte 258", {SET(a.offset_bytes, 258), SET(a.shape[0], 2)}},
    {"a has 2 batches", "a has 2 batches, w 3", {SET(a.shape[0], 2)}},
    {"a has 32 columns", "a has 32 columns, w 64", {SET(a.shape[2], 32)}},
    {"w has rank 2", "w has rank 2, not 3", {SET(w.rank, 2)}},
    {"w has neither stride 1",
     "w has strides 64 and 2",
     {SET(w.stride[2], 2), SET(w.shape[0], 1), SET(a.shape[0], 1), SET(out.shape[0], 1)}},
    {"w is i32", "w is i32", {SET(w.dtype, TDM_I32), SET(w.shape[0], 1)}},
    {"w is absent", "w", {ABSENT(w)}},
    {"out has 23 columns", "out is [3, 5, 23], not [3, 5, 24]", {SET(out.shape[2], 23)}},
    {"out has 4 rows", "out is [3, 4, 24], not [3, 5, 24]", {SET(out.shape[1], 4)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"out's rows share memory", "out has stride 16 in dimension 1", {SET(out.stride[1], 16)}},
    {"out's batches share memory", "out has stride 48 in dimension 0", {SET(out.stride[0], 48)}},
    {"out's last stride is 3",
     "out has last stride 3",
     {SET(out.stride[2], 3), SET(out.stride[1], 1), SET(out.shape[1], 3), SET(a.shape[1], 3)}},
    {"out overlaps a", "out|overlaps a", {COPY(out.buffer, a.buffer), SET(out.offset_bytes, 512)}},
    {"out overlaps w", "out|overlaps w", {COPY(out.buffer, w.buffer)}},
    {"n_tokens is bf16", "n_tokens is bf16 [1]", {COPY(n_tokens, w), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1)}},
};

Test(gemm_bf16, refusals) {
  const gemm_case c = {3, 5, 24, 64, -1, TDM_BF16, TDM_BF16, TDM_BF16, PLAIN};
  gemm g;
  open_gemm(&g, &c);
  test_rig_refusals(&g.rig, &tdm_op_gemm_bf16, &g.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&g.rig);
}

/* Input and output may be column ranges of one tensor. */
Test(gemm_bf16, columns_of_one_tensor) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* both = test_rig_tensor(&rig, "both", TDM_F32, 2, (int64_t[]){6, 64});
  test_tensor* w = test_rig_tensor(&rig, "w", TDM_F32, 2, (int64_t[]){24, 40});
  test_view_set_normal(&w->view, &rig.random, 1.0f);
  tdm_view a = tdm_view_slice(both->view, 1, 0, 40);
  tdm_view out = tdm_view_slice(both->view, 1, 40, 24);
  test_view_set_normal(&a, &rig.random, 1.0f);
  test_tensor_allow(both, &out);
  tdm_gemm_bf16_args args = {.size = sizeof args, .a = a, .w = w->view, .out = out};
  cr_assert_eq(TEST_RUN(&rig, gemm_bf16, &args), TDM_OK, "%s", tdm_last_error()->message);
  out = tdm_view_slice(both->view, 1, 36, 24);
  args.out = out;
  test_expect_failure("columns", TEST_RUN(&rig, gemm_bf16, &args), TDM_INVALID_ARGUMENT, "gemm_bf16|out|overlaps a");
  test_rig_close(&rig);
}

/* Which kernel runs: the form for a short K where it fits. */
Test(gemm_bf16, kernels) {
  static const struct {
    int64_t b, m, n, k;
    tdm_dtype out;
    layout layout;
    int32_t sms;
    const char* kernel;
    uint32_t grid;
  } plans[] = {
      {128, 1, 512, 128, TDM_BF16, HEADS_INSIDE, 132, "tdm_gemm_bf16_short_n256t8_sm90", 256},
      {128, 128, 512, 128, TDM_BF16, HEADS_INSIDE, 132, "tdm_gemm_bf16_short_n256t128_sm90", 256},
      {128, 128, 512, 128, TDM_BF16, HEADS_INSIDE, 100, "tdm_gemm_bf16_short_n256t128_sm90", 200},
      {16, 64, 512, 128, TDM_BF16, HEADS_INSIDE, 132, "tdm_gemm_bf16_short_n128t64_sm90", 64},
      {16, 64, 512, 128, TDM_BF16, HEADS_INSIDE, 32, "tdm_gemm_bf16_short_n256t64_sm90", 32},
      {0, 17, 384, 72, TDM_BF16, PLAIN, 1, "tdm_gemm_bf16_short_n128t24_sm90", 3},
      {128, 129, 512, 128, TDM_BF16, HEADS_INSIDE, 132, "tdm_gemm_bf16_n_n128t128_sm90", 132},
      {128, 1, 512, 136, TDM_BF16, HEADS_INSIDE, 132, "tdm_gemm_bf16_n_n64t8_sm90", 132},
      {16, 1, 512, 128, TDM_F32, HEADS_INSIDE, 132, "tdm_gemm_bf16_n_n64t8_sm90", 128},
      {16, 1, 192, 128, TDM_BF16, PLAIN, 132, "tdm_gemm_bf16_n_n64t8_sm90", 48},
  };
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    const gemm_case c = {plans[i].b, plans[i].m, plans[i].n,   plans[i].k,     -1,
                         TDM_BF16,   TDM_BF16,   plans[i].out, plans[i].layout};
    gemm g;
    open_gemm(&g, &c);
    const int32_t rank = g.args.w.rank;
    for (int other = 0; other < 2; other++) { /* w as [K, N], then its columns too far apart for the copy engine */
      g.args.w.stride[rank - 2] = 1;
      g.args.w.stride[rank - 1] = c.n + 4 * other;
      tdm_gemm_bf16_sm90_plan kernel;
      const bool fits = tdm_gemm_bf16_short_sm90_make_plan(&g.args, plans[i].sms, &kernel);
      cr_expect_eq(fits, !other && strstr(plans[i].kernel, "short") != NULL, "case %zu", i);
      if (fits) cr_expect_eq(kernel.launch.grid, plans[i].grid, "case %zu: %u CTAs", i, kernel.launch.grid);
      if (other) continue;
      tdm_plan plan = {.variant = "ref", .splits = 1};
      tdm_op_gemm_bf16.plan(&g.args, plans[i].sms, &plan);
      cr_expect_str_eq(plan.variant, plans[i].kernel);
    }
    test_rig_close(&g.rig);
  }
}

Test(gemm_bf16, plan) {
  const gemm_case c = {3, 5, 24, 64, -1, TDM_BF16, TDM_BF16, TDM_F32, PLAIN};
  gemm g;
  open_gemm(&g, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_gemm_bf16.plan(&g.args, 0, &plan);
  cr_expect_eq(plan.flops, 2.0 * 3 * 5 * 24 * 64);
  cr_expect_eq(plan.bytes, 3.0 * (5 * 64 * 2 + 24 * 64 * 2 + 5 * 24 * 4));
  test_rig_close(&g.rig);
}
