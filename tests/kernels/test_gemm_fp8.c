#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

typedef struct gemm_case {
  int64_t m, n, k;
  int64_t live; /* -1: no count */
  tdm_dtype a, out;
  int64_t a_spare, w_spare, out_spare, scale_spare; /* how much wider than needed the strides are */
} gemm_case;

static const gemm_case cases[] = {
    {1, 1, 128, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0},       {1, 576, 384, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},
    {2, 130, 256, -1, TDM_F32, TDM_F32, 0, 0, 0, 0},      {3, 128, 128, 2, TDM_E4M3, TDM_BF16, 16, 0, 24, 0},
    {7, 264, 384, -1, TDM_E4M3, TDM_F32, 128, 128, 8, 4}, {16, 576, 256, 16, TDM_F32, TDM_BF16, 4, 0, 0, 0},
    {17, 1, 1024, -1, TDM_E4M3, TDM_BF16, 0, 16, 0, 0},   {37, 130, 384, 33, TDM_E4M3, TDM_F32, 0, 0, 2, 8},
    {37, 7, 128, 0, TDM_E4M3, TDM_F32, 0, 0, 0, 0},       {64, 576, 384, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},
    {65, 129, 128, 64, TDM_F32, TDM_F32, 0, 0, 0, 0},     {65, 264, 256, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0},
    {100, 65, 384, 65, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},   {128, 128, 256, 127, TDM_E4M3, TDM_F32, 0, 0, 0, 0},
    {129, 130, 128, -1, TDM_E4M3, TDM_BF16, 32, 0, 6, 0}, {257, 136, 256, 254, TDM_E4M3, TDM_F32, 0, 0, 0, 12},
    {257, 9, 384, -1, TDM_F32, TDM_BF16, 0, 0, 0, 0},
};

typedef struct gemm {
  test_rig rig;
  test_tensor *a, *a_scale, *w, *w_scale, *out;
  tdm_gemm_fp8_args args;
} gemm;

static int64_t blocks(int64_t n) {
  return (n + 127) / 128;
}

static void open_gemm(gemm* g, const gemm_case* c) {
  test_rig* rig = &g->rig;
  test_rig_open(rig);
  test_rig_label(rig, "gemm_fp8 m %lld n %lld k %lld live %lld %s", (long long)c->m, (long long)c->n, (long long)c->k,
                 (long long)c->live, tdm_dtype_name(c->a));
  g->a_scale = c->a == TDM_E4M3 ? test_rig_scales(rig, "a_scale", c->m, c->k, c->scale_spare) : NULL;
  g->a = test_rig_activation(rig, "a", c->a, c->m, c->k, c->k + c->a_spare, 2.0f, g->a_scale);
  g->w = test_rig_strided(rig, "w", TDM_E4M3, 2, (int64_t[]){c->n, c->k}, (int64_t[]){c->k + c->w_spare, 1});
  g->w_scale = test_rig_tensor(rig, "w_scale", TDM_F32, 2, (int64_t[]){blocks(c->n), c->k / 128});
  g->out = test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->m, c->n}, (int64_t[]){c->n + c->out_spare, 1});
  test_view_set_normal(&g->w->view, &rig->random, 100.0f);
  for (int64_t i = 0; i < test_view_count(&g->w_scale->view); i++) {
    *(float*)test_view_at(&g->w_scale->view, i) = test_random_uniform(&rig->random, 1e-4f, 4e-4f);
  }
  int64_t live = c->live < 0 ? c->m : c->live;
  if (live < c->m) {
    tdm_view dead = tdm_view_slice(g->a->view, 0, live, c->m - live);
    test_view_poison(&dead);
    if (g->a_scale != NULL) {
      dead = tdm_view_slice(g->a_scale->view, 1, live, c->m - live);
      test_view_poison(&dead);
    }
  }
  if (live > 0) {
    tdm_view written = tdm_view_slice(g->out->view, 0, 0, live);
    test_tensor_allow(g->out, &written);
  }
  g->args = (tdm_gemm_fp8_args){.size = sizeof g->args};
  g->args.a = g->a->view;
  g->args.w = g->w->view;
  g->args.w_scale = g->w_scale->view;
  g->args.out = g->out->view;
  if (g->a_scale != NULL) g->args.a_scale = g->a_scale->view;
  if (c->live >= 0) g->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* The product of dequantised values, all in double. */
static double* expected_values(const gemm* g, int64_t live) {
  int64_t n = g->w->view.shape[0];
  int64_t k = g->w->view.shape[1];
  float* a = test_view_values(&g->a->view);
  float* w = test_view_values(&g->w->view);
  float* w_scale = test_view_values(&g->w_scale->view);
  float* a_scale = g->a_scale != NULL ? test_view_values(&g->a_scale->view) : NULL;
  double* expected = malloc((size_t)(live * n + 1) * sizeof *expected);
  for (int64_t i = 0; i < live; i++) {
    for (int64_t j = 0; j < n; j++) {
      double sum = 0.0;
      for (int64_t p = 0; p < k; p++) {
        double x = (double)a[i * k + p];
        if (a_scale != NULL) x *= (double)a_scale[p / 128 * g->a->view.shape[0] + i];
        sum += x * (double)w[j * k + p] * (double)w_scale[j / 128 * (k / 128) + p / 128];
      }
      expected[i * n + j] = sum;
    }
  }
  free(a);
  free(w);
  free(w_scale);
  free(a_scale);
  return expected;
}

/* One rounding to bf16 is off by 2^-9 at most, 1.2e-3 on average of squares; f32 promotions by a few times 2^-24. */
static double tolerance(tdm_dtype out) {
  return out == TDM_BF16 ? 2.5e-3 : 5e-7;
}

Test(gemm_fp8, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const gemm_case* c = &cases[i];
    int64_t live = c->live < 0 ? c->m : c->live;
    gemm g;
    open_gemm(&g, c);
    cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    double* expected = expected_values(&g, live);
    float* out = test_view_values(&g.out->view);
    test_expect_close(g.rig.label, out, expected, live, c->n, tolerance(c->out));
    free(expected);
    free(out);
    cr_expect_eq(test_rig_run_direct(&g.rig, &tdm_op_gemm_fp8, &g.args), TDM_OK);
    test_rig_close(&g.rig);
  }
}

/* An e4m3 value as an integer, in units of 2^-9. */
static int64_t fixed_point(float value) {
  return (int64_t)(value * 512.0f);
}

/* To the bit: sums of a block in integers, one rounding to f32 a block, the scales' product rounded, then product and
 * sum. */
Test(gemm_fp8, promotion_is_exact) {
  const gemm_case c = {5, 200, 512, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0};
  gemm g;
  open_gemm(&g, &c);
  /* Any code but NaN: sums of such products need up to 43 bits. */
  for (int64_t i = 0; i < c.m * c.k; i++) {
    *(uint8_t*)test_view_at(&g.a->view, i) =
        (uint8_t)(test_random_below(&g.rig.random, 2) * 128 + test_random_below(&g.rig.random, 127));
  }
  cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &g.args), TDM_OK, "%s", tdm_last_error()->message);
  float* a = test_view_values(&g.a->view);
  float* w = test_view_values(&g.w->view);
  int64_t inexact = 0;
  for (int64_t i = 0; i < c.m; i++) {
    for (int64_t j = 0; j < c.n; j++) {
      volatile float sum = 0.0f;
      for (int64_t block = 0; block < c.k / 128; block++) {
        int64_t acc = 0;
        for (int64_t p = block * 128; p < block * 128 + 128; p++) {
          acc += fixed_point(a[i * c.k + p]) * fixed_point(w[j * c.k + p]);
        }
        volatile float promoted = (float)acc;
        if ((int64_t)promoted != acc) inexact++;
        volatile float scale = *(float*)test_view_at(&g.a_scale->view, block * c.m + i) *
                               *(float*)test_view_at(&g.w_scale->view, j / 128 * (c.k / 128) + block);
        volatile float product = scale * (promoted * 0x1p-18f);
        sum = sum + product;
      }
      float got = *(float*)test_view_at(&g.out->view, i * c.n + j);
      cr_assert_eq(got, sum, "(%lld, %lld): %.9g, expected %.9g", (long long)i, (long long)j, (double)got, (double)sum);
    }
  }
  cr_expect_gt(inexact, 1000, "the case has sums that need rounding: %lld", (long long)inexact);
  free(a);
  free(w);
  test_rig_close(&g.rig);
}

/* A row alone gives the bits that it gives in the batch. */
Test(gemm_fp8, a_row_does_not_depend_on_the_batch) {
  static const tdm_dtype dtypes[] = {TDM_E4M3, TDM_F32};
  for (int d = 0; d < 2; d++) {
    const gemm_case c = {133, 72, 384, -1, dtypes[d], TDM_F32, 0, 0, 0, 0};
    gemm g;
    open_gemm(&g, &c);
    test_tensor* alone = test_rig_tensor(&g.rig, "alone", TDM_F32, 2, (int64_t[]){1, c.n});
    test_tensor_allow(alone, &alone->view);
    cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < c.m; m += 4) { /* so that the scale's column is aligned */
      tdm_gemm_fp8_args args = g.args;
      args.a = tdm_view_slice(args.a, 0, m, 1);
      if (g.a_scale != NULL) args.a_scale = tdm_view_slice(args.a_scale, 1, m, 1);
      args.out = alone->view;
      cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &args), TDM_OK, "%s", tdm_last_error()->message);
      test_expect_bits("row alone", test_view_at(&alone->view, 0), test_view_at(&g.out->view, m * c.n), c.n * 4);
    }
    test_rig_close(&g.rig);
  }
}

/* A NaN scale, a NaN code and an infinite f32 stay in their rows; a NaN in w reaches its column only. */
Test(gemm_fp8, nan_stays_in_its_row) {
  for (int kind = 0; kind < 4; kind++) {
    const gemm_case c = {9, 130, 256, -1, kind == 3 ? TDM_F32 : TDM_E4M3, TDM_BF16, 0, 0, 0, 0};
    gemm g;
    open_gemm(&g, &c);
    if (kind == 0) *(float*)test_view_at(&g.a_scale->view, 1 * c.m + 6) = NAN;
    if (kind == 1) *(uint8_t*)test_view_at(&g.a->view, 6 * c.k + 130) = 0x7f;
    if (kind == 2) *(uint8_t*)test_view_at(&g.w->view, 6 * c.k + 130) = 0xff;
    if (kind == 3) *(float*)test_view_at(&g.a->view, 6 * c.k + 130) = INFINITY;
    cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    double* expected = expected_values(&g, c.m);
    float* out = test_view_values(&g.out->view);
    test_expect_close(g.rig.label, out, expected, c.m, c.n, tolerance(c.out));
    for (int64_t i = 0; i < c.m; i++) {
      for (int64_t j = 0; j < c.n; j++) {
        cr_expect_eq(!isfinite(out[i * c.n + j]), kind == 2 ? j == 6 : i == 6, "kind %d (%lld, %lld)", kind,
                     (long long)i, (long long)j);
      }
    }
    free(expected);
    free(out);
    test_rig_close(&g.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_gemm_fp8_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_gemm_fp8_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_gemm_fp8_args, view)

/* Of a call with a [5, 256], w [200, 256]. */
static const test_refusal refusals[] = {
    {"a is bf16", "a is bf16, not f32 or e4m3", {SET(a.dtype, TDM_BF16), SET(a.shape[0], 2)}},
    {"a has rank 3", "a has rank 3", {SET(a.rank, 3), SET(a.shape[2], 1), SET(a.stride[2], 1)}},
    {"a starts at byte 264", "a starts at byte 264", {SET(a.offset_bytes, 264), SET(a.shape[0], 4)}},
    {"a has 128 columns", "a has 128 columns, w 256", {SET(a.shape[1], 128), SET(a_scale.shape[0], 1)}},
    {"K is 200", "200", {SET(a.shape[1], 200), SET(w.shape[1], 200)}},
    {"a's rows overlap", "a has stride 128", {SET(a.stride[0], 128)}},
    {"a is absent", "a", {ABSENT(a)}},
    {"a_scale is absent", "a is e4m3 but a_scale is absent", {ABSENT(a_scale)}},
    {"a_scale is stray", "a_scale is given but a is f32", {SET(a.dtype, TDM_F32), SET(a.shape[0], 1)}},
    {"a_scale is bf16", "a_scale is bf16", {SET(a_scale.dtype, TDM_BF16)}},
    {"a_scale is for 4 rows", "a_scale is [2, 4], not [2, 5]", {SET(a_scale.shape[1], 4)}},
    {"a_scale has stride 5", "a_scale has row stride 5", {SET(a_scale.stride[0], 5)}},
    {"a_scale is transposed",
     "a_scale",
     {SET(a_scale.shape[0], 5), SET(a_scale.shape[1], 2), SET(a_scale.stride[0], 1), SET(a_scale.stride[1], 5)}},
    {"w is f32", "w is f32, not e4m3", {SET(w.dtype, TDM_F32), SET(w.shape[0], 40)}},
    {"w has rank 1", "w has rank 1", {SET(w.rank, 1)}},
    {"w starts at byte 257", "w starts at byte 257", {SET(w.offset_bytes, 257), SET(w.shape[0], 199)}},
    {"w_scale is absent", "w_scale", {ABSENT(w_scale)}},
    {"w_scale has 1 row", "w_scale is [1, 2], not [2, 2]", {SET(w_scale.shape[0], 1)}},
    {"w_scale is e4m3", "w_scale is e4m3", {SET(w_scale.dtype, TDM_E4M3)}},
    {"out has 199 columns", "out is [5, 199], not [5, 200]", {SET(out.shape[1], 199)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"out is a's memory", "out|overlaps a", {COPY(a.buffer, out.buffer)}},
    {"out is w_scale's memory",
     "out|overlaps w_scale",
     {COPY(w_scale.buffer, out.buffer), SET(w_scale.offset_bytes, 512)}},
    {"n_tokens is i64",
     "n_tokens is i64",
     {COPY(n_tokens, w_scale), SET(n_tokens.dtype, TDM_I64), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1)}},
};

Test(gemm_fp8, refusals) {
  const gemm_case c = {5, 200, 256, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0};
  gemm g;
  open_gemm(&g, &c);
  test_rig_refusals(&g.rig, &tdm_op_gemm_fp8, &g.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&g.rig);
}

Test(gemm_fp8, plan) {
  const gemm_case c = {5, 200, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0};
  gemm g;
  open_gemm(&g, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_gemm_fp8.plan(&g.args, 0, &plan);
  cr_expect_eq(plan.flops, 2.0 * 5 * 200 * 256);
  cr_expect_eq(plan.bytes, 5.0 * 256 + 5.0 * 2 * 4 + 200.0 * 256 + 2.0 * 2 * 4 + 5.0 * 200 * 2);
  test_rig_close(&g.rig);
}
