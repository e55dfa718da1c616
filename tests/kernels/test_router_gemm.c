#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

typedef struct router_case {
  int64_t m, e, h;
  int64_t live; /* -1: no count */
  tdm_dtype x, w;
  int64_t x_spare, w_spare, logits_spare;
} router_case;

static const router_case cases[] = {
    {1, 8, 384, -1, TDM_F32, TDM_BF16, 0, 0, 0},     {2, 256, 512, -1, TDM_BF16, TDM_BF16, 0, 0, 0},
    {3, 1, 1, 3, TDM_BF16, TDM_F32, 0, 0, 0},        {7, 6, 384, -1, TDM_F32, TDM_F32, 4, 0, 2},
    {16, 130, 200, 15, TDM_BF16, TDM_BF16, 8, 8, 0}, {17, 9, 129, -1, TDM_BF16, TDM_BF16, 0, 0, 7},
    {37, 8, 7168, 33, TDM_BF16, TDM_BF16, 0, 0, 0},  {64, 33, 384, 0, TDM_BF16, TDM_BF16, 0, 0, 0},
    {65, 64, 128, -1, TDM_F32, TDM_BF16, 0, 0, 0},   {100, 8, 384, 1, TDM_BF16, TDM_BF16, 0, 0, 0},
    {128, 7, 256, -1, TDM_BF16, TDM_BF16, 0, 0, 0},  {129, 8, 96, 128, TDM_F32, TDM_F32, 0, 16, 0},
    {257, 16, 64, -1, TDM_BF16, TDM_BF16, 0, 0, 0},
};

typedef struct router {
  test_rig rig;
  test_tensor *x, *w, *logits;
  tdm_router_gemm_args args;
} router;

static void open_router(router* r, const router_case* c) {
  test_rig_open(&r->rig);
  test_rig_label(&r->rig, "router_gemm m %lld e %lld h %lld live %lld", (long long)c->m, (long long)c->e,
                 (long long)c->h, (long long)c->live);
  r->x = test_rig_strided(&r->rig, "x", c->x, 2, (int64_t[]){c->m, c->h}, (int64_t[]){c->h + c->x_spare, 1});
  r->w = test_rig_strided(&r->rig, "w", c->w, 2, (int64_t[]){c->e, c->h}, (int64_t[]){c->h + c->w_spare, 1});
  r->logits =
      test_rig_strided(&r->rig, "logits", TDM_F32, 2, (int64_t[]){c->m, c->e}, (int64_t[]){c->e + c->logits_spare, 1});
  test_view_set_normal(&r->w->view, &r->rig.random, 0.1f);
  int64_t live = c->live < 0 ? c->m : c->live;
  if (live > 0) {
    tdm_view read = tdm_view_slice(r->x->view, 0, 0, live);
    tdm_view written = tdm_view_slice(r->logits->view, 0, 0, live);
    test_view_set_normal(&read, &r->rig.random, 1.0f);
    test_tensor_allow(r->logits, &written);
  }
  r->args = (tdm_router_gemm_args){.size = sizeof r->args};
  r->args.x = r->x->view;
  r->args.w = r->w->view;
  r->args.logits = r->logits->view;
  if (c->live >= 0) r->args.n_tokens = test_rig_count(&r->rig, "n_tokens", (int32_t)c->live)->view;
}

/* Sums in double; the op rounds once to f32. */
static void expect_logits(const router* r, const router_case* c, int64_t live) {
  float* x = test_view_values(&r->x->view);
  float* w = test_view_values(&r->w->view);
  float* logits = test_view_values(&r->logits->view);
  double* expected = malloc((size_t)(live * c->e + 1) * sizeof *expected);
  for (int64_t i = 0; i < live; i++) {
    for (int64_t j = 0; j < c->e; j++) {
      double sum = 0.0;
      for (int64_t p = 0; p < c->h; p++) sum += (double)x[i * c->h + p] * (double)w[j * c->h + p];
      expected[i * c->e + j] = sum;
    }
  }
  test_expect_close(r->rig.label, logits, expected, live, c->e, 1e-7);
  free(x);
  free(w);
  free(logits);
  free(expected);
}

Test(router_gemm, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const router_case* c = &cases[i];
    router r;
    open_router(&r, c);
    cr_assert_eq(TEST_RUN(&r.rig, router_gemm, &r.args), TDM_OK, "%s", tdm_last_error()->message);
    expect_logits(&r, c, c->live < 0 ? c->m : c->live);
    cr_expect_eq(test_rig_run_direct(&r.rig, &tdm_op_router_gemm, &r.args), TDM_OK);
    test_rig_close(&r.rig);
  }
}

Test(router_gemm, a_row_does_not_depend_on_the_batch) {
  const router_case c = {133, 20, 384, -1, TDM_BF16, TDM_BF16, 0, 0, 0};
  router r;
  open_router(&r, &c);
  test_tensor* alone = test_rig_tensor(&r.rig, "alone", TDM_F32, 2, (int64_t[]){1, c.e});
  test_tensor_allow(alone, &alone->view);
  cr_assert_eq(TEST_RUN(&r.rig, router_gemm, &r.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t m = 0; m < c.m; m++) {
    tdm_router_gemm_args args = r.args;
    args.x = tdm_view_slice(args.x, 0, m, 1);
    args.logits = alone->view;
    cr_assert_eq(TEST_RUN(&r.rig, router_gemm, &args), TDM_OK, "%s", tdm_last_error()->message);
    test_expect_bits("row alone", test_view_at(&alone->view, 0), test_view_at(&r.logits->view, m * c.e), c.e * 4);
  }
  test_rig_close(&r.rig);
}

Test(router_gemm, nan_stays_in_its_row) {
  const router_case c = {9, 20, 64, -1, TDM_F32, TDM_BF16, 0, 0, 0};
  router r;
  open_router(&r, &c);
  *(float*)test_view_at(&r.x->view, 3 * 64 + 10) = NAN;
  *(float*)test_view_at(&r.x->view, 7 * 64 + 63) = -INFINITY;
  cr_assert_eq(TEST_RUN(&r.rig, router_gemm, &r.args), TDM_OK, "%s", tdm_last_error()->message);
  expect_logits(&r, &c, c.m);
  for (int64_t i = 0; i < c.m * c.e; i++) {
    float logit = *(float*)test_view_at(&r.logits->view, i);
    cr_expect_eq(!isfinite(logit), i / c.e == 3 || i / c.e == 7, "%lld", (long long)i);
  }
  test_rig_close(&r.rig);
}

#define SET(member, value) TEST_SET(tdm_router_gemm_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_router_gemm_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_router_gemm_args, view)

/* Of a call with x [5, 64] and w [16, 64], bf16. */
static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"x has rank 1", "x has rank 1", {SET(x.rank, 1)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"x starts at byte 260", "x starts at byte 260", {SET(x.offset_bytes, 260), SET(x.shape[0], 4)}},
    {"x has 32 columns", "x has 32 columns, w 64", {SET(x.shape[1], 32)}},
    {"w is i8", "w is i8", {SET(w.dtype, TDM_I8)}},
    {"w's rows overlap", "w has stride 63", {SET(w.stride[0], 63)}},
    {"w is transposed", "w has last stride 16", {SET(w.stride[0], 1), SET(w.stride[1], 16)}},
    {"logits has 15 columns", "logits is [5, 15], not [5, 16]", {SET(logits.shape[1], 15)}},
    {"logits is bf16", "logits is bf16, not f32", {SET(logits.dtype, TDM_BF16)}},
    {"logits is absent", "logits", {ABSENT(logits)}},
    {"prefetch starts at byte 264",
     "prefetch starts at byte 264",
     {COPY(prefetch, w), SET(prefetch.offset_bytes, 264), SET(prefetch.shape[0], 4)}},
    {"prefetch has rows of 126 bytes",
     "rows of 126 bytes that lie 128 apart",
     {COPY(prefetch, w), SET(prefetch.shape[1], 63)}},
    {"prefetch is transposed",
     "prefetch has last stride 16",
     {COPY(prefetch, w), SET(prefetch.stride[0], 1), SET(prefetch.stride[1], 16)}},
    {"prefetch overlaps logits", "prefetch|overlaps|logits", {COPY(prefetch, logits)}},
    {"logits overlaps x", "logits|overlaps x", {COPY(logits.buffer, x.buffer)}},
    {"n_tokens has rank 2",
     "n_tokens is i32 [5, 1]",
     {COPY(n_tokens, logits), SET(n_tokens.dtype, TDM_I32), SET(n_tokens.shape[1], 1)}},
    {"n_tokens starts at byte 258",
     "n_tokens|258",
     {COPY(n_tokens, w), SET(n_tokens.dtype, TDM_I32), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1),
      SET(n_tokens.offset_bytes, 258)}},
};

Test(router_gemm, refusals) {
  const router_case c = {5, 16, 64, -1, TDM_BF16, TDM_BF16, 0, 0, 0};
  router r;
  open_router(&r, &c);
  test_rig_refusals(&r.rig, &tdm_op_router_gemm, &r.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&r.rig);
}
