#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/bmm_fp8/bmm_fp8_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

typedef struct bmm_case {
  int64_t g, m, n, k;
  int64_t live; /* -1: no count */
  tdm_dtype a, out;
  int64_t a_gap, w_gap, out_gap, scale_gap; /* a, w: rows between groups; out: columns; scale: columns, times 4 */
} bmm_case;

static const bmm_case cases[] = {
    {1, 1, 1, 128, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0},      {2, 2, 130, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},
    {3, 3, 128, 384, 2, TDM_E4M3, TDM_F32, 1, 0, 0, 0},     {4, 7, 64, 128, -1, TDM_F32, TDM_F32, 0, 0, 0, 0},
    {8, 16, 9, 256, 16, TDM_E4M3, TDM_BF16, 0, 2, 8, 0},    {2, 17, 128, 512, 0, TDM_E4M3, TDM_F32, 0, 0, 0, 1},
    {5, 37, 33, 128, 33, TDM_E4M3, TDM_F32, 3, 1, 5, 2},    {2, 64, 128, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},
    {2, 65, 7, 256, 64, TDM_F32, TDM_BF16, 2, 0, 0, 0},     {3, 100, 16, 384, -1, TDM_E4M3, TDM_F32, 0, 0, 1, 0},
    {2, 128, 24, 128, 127, TDM_E4M3, TDM_BF16, 0, 0, 0, 0}, {2, 129, 128, 128, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 3},
    {2, 257, 8, 256, 254, TDM_E4M3, TDM_F32, 1, 1, 2, 1},   {2, 1025, 2, 128, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0},
    {2, 1500, 1, 128, 1499, TDM_E4M3, TDM_F32, 0, 0, 0, 0},
};

typedef struct bmm {
  test_rig rig;
  test_tensor *a, *a_scale, *w, *w_scale, *out;
  tdm_bmm_fp8_args args;
} bmm;

static void fill_scales(test_rig* rig, const tdm_view* scales) {
  for (int64_t i = 0; i < test_view_count(scales); i++)
    *(float*)test_view_at(scales, i) = test_random_uniform(&rig->random, 1e-3f, 4e-3f);
}

static void open_bmm(bmm* b, const bmm_case* c) {
  test_rig* rig = &b->rig;
  test_rig_open(rig);
  test_rig_label(rig, "bmm_fp8 g %lld m %lld n %lld k %lld live %lld %s", (long long)c->g, (long long)c->m,
                 (long long)c->n, (long long)c->k, (long long)c->live, tdm_dtype_name(c->a));
  int64_t blocks = c->k / 128, stride = tdm_scale_stride(c->m) + 4 * c->scale_gap;
  b->a = test_rig_strided(rig, "a", c->a, 3, (int64_t[]){c->g, c->m, c->k},
                          (int64_t[]){(c->m + c->a_gap) * c->k, c->k, 1});
  b->w = test_rig_strided(rig, "w", TDM_E4M3, 3, (int64_t[]){c->g, c->n, c->k},
                          (int64_t[]){(c->n + c->w_gap) * c->k, c->k, 1});
  b->w_scale = test_rig_tensor(rig, "w_scale", TDM_F32, 3, (int64_t[]){c->g, (c->n + 127) / 128, blocks});
  b->out =
      test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->m, c->g * c->n}, (int64_t[]){c->g * c->n + c->out_gap, 1});
  test_view_set_normal(&b->a->view, &rig->random, c->a == TDM_E4M3 ? 100.0f : 1.0f);
  test_view_set_normal(&b->w->view, &rig->random, 100.0f);
  fill_scales(rig, &b->w_scale->view);
  b->args = (tdm_bmm_fp8_args){
      .size = sizeof b->args, .a = b->a->view, .w = b->w->view, .w_scale = b->w_scale->view, .out = b->out->view};
  b->a_scale = NULL;
  if (c->a == TDM_E4M3) {
    b->a_scale = &rig->tensors[rig->n_tensors];
    rig->names[rig->n_tensors++] = "a_scale";
    test_tensor_init(b->a_scale, rig->runtime, TDM_F32, 3, (int64_t[]){c->g, blocks, c->m},
                     (int64_t[]){blocks * stride, stride, 1}, 3);
    fill_scales(rig, &b->a_scale->view);
    b->args.a_scale = b->a_scale->view;
  }
  int64_t live = c->live < 0 ? c->m : c->live;
  if (live < c->m) {
    tdm_view dead = tdm_view_slice(b->a->view, 1, live, c->m - live);
    test_view_poison(&dead);
    if (b->a_scale != NULL) {
      dead = tdm_view_slice(b->a_scale->view, 2, live, c->m - live);
      test_view_poison(&dead);
    }
  }
  if (live > 0) {
    tdm_view written = tdm_view_slice(b->out->view, 0, 0, live);
    test_tensor_allow(b->out, &written);
  }
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* The einsum of dequantised values, all in double. */
static double* expected_values(const bmm* b, int64_t live) {
  const int64_t *a_shape = b->args.a.shape, g = a_shape[0], m = a_shape[1], k = a_shape[2], n = b->args.w.shape[1];
  double *a = oracle_values(&b->args.a), *w = oracle_values(&b->args.w), *w_scale = oracle_values(&b->args.w_scale);
  double* a_scale = b->a_scale != NULL ? oracle_values(&b->args.a_scale) : NULL;
  double* expected = oracle_zeros(live * g * n + 1);
  for (int64_t t = 0; t < live; t++) {
    for (int64_t c = 0; c < g * n; c++) {
      int64_t group = c / n, r = c % n;
      double sum = 0.0;
      for (int64_t p = 0; p < k; p++) {
        double x = a[(group * m + t) * k + p] * w[(group * n + r) * k + p];
        if (a_scale != NULL) x *= a_scale[(group * (k / 128) + p / 128) * m + t];
        sum += x * w_scale[(group * ((n + 127) / 128) + r / 128) * (k / 128) + p / 128];
      }
      expected[t * g * n + c] = sum;
    }
  }
  free(a);
  free(w);
  free(w_scale);
  free(a_scale);
  return expected;
}

Test(bmm_fp8, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const bmm_case* c = &cases[i];
    int64_t live = c->live < 0 ? c->m : c->live;
    bmm b;
    open_bmm(&b, c);
    cr_assert_eq(TEST_RUN(&b.rig, bmm_fp8, &b.args), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    double* expected = expected_values(&b, live);
    float* out = test_view_values(&b.out->view);
    test_expect_close(b.rig.label, out, expected, live, c->g * c->n, c->out == TDM_BF16 ? 2.5e-3 : 5e-7);
    free(expected);
    free(out);
    cr_expect_eq(test_rig_run_direct(&b.rig, &tdm_op_bmm_fp8, &b.args), TDM_OK);
    test_rig_close(&b.rig);
  }
}

/* Every group has the bits of a gemm_fp8 of its own. */
Test(bmm_fp8, is_a_gemm_a_group) {
  const bmm_case c = {3, 5, 130, 512, -1, TDM_E4M3, TDM_F32, 2, 0, 6, 1};
  bmm b;
  open_bmm(&b, &c);
  test_tensor* one = test_rig_tensor(&b.rig, "one", TDM_F32, 2, (int64_t[]){c.m, c.n});
  test_tensor_allow(one, &one->view);
  cr_assert_eq(TEST_RUN(&b.rig, bmm_fp8, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t g = 0; g < c.g; g++) {
    tdm_gemm_fp8_args args = {.size = sizeof args, .out = one->view};
    const tdm_view* from[] = {&b.args.a, &b.args.a_scale, &b.args.w, &b.args.w_scale};
    tdm_view* to[] = {&args.a, &args.a_scale, &args.w, &args.w_scale};
    for (int i = 0; i < 4; i++) {
      *to[i] = tdm_view_slice(*from[i], 0, g, 1);
      to[i]->rank = 2;
      for (int d = 0; d < 2; d++) {
        to[i]->shape[d] = from[i]->shape[d + 1];
        to[i]->stride[d] = from[i]->stride[d + 1];
      }
    }
    cr_assert_eq(TEST_RUN(&b.rig, gemm_fp8, &args), TDM_OK, "%s", tdm_last_error()->message);
    tdm_view part = tdm_view_slice(b.args.out, 1, g * c.n, c.n);
    oracle_expect_same_bits(b.rig.label, &part, &one->view);
  }
  test_rig_close(&b.rig);
}

Test(bmm_fp8, nan_stays_in_its_row) {
  const bmm_case c = {2, 9, 16, 256, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0};
  for (int kind = 0; kind < 2; kind++) {
    bmm b;
    open_bmm(&b, &c);
    if (kind == 0) *(uint8_t*)test_view_at(&b.args.a, (9 + 6) * 256 + 130) = 0x7f; /* group 1, token 6 */
    if (kind == 1) *(float*)test_view_at(&b.args.a_scale, (2 + 1) * 9 + 6) = NAN;
    cr_assert_eq(TEST_RUN(&b.rig, bmm_fp8, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    float* out = test_view_values(&b.args.out);
    for (int64_t i = 0; i < 9 * 32; i++)
      cr_expect_eq(isnan(out[i]), i / 32 == 6 && i % 32 >= 16, "kind %d (%lld, %lld)", kind, (long long)(i / 32),
                   (long long)(i % 32));
    free(out);
    test_rig_close(&b.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_bmm_fp8_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_bmm_fp8_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_bmm_fp8_args, view)

/* Of a call with a [3, 5, 256], w [3, 40, 256]. */
static const test_refusal refusals[] = {
    {"a is bf16", "a is bf16, not f32 or e4m3", {SET(a.dtype, TDM_BF16), SET(a.shape[0], 1)}},
    {"a has rank 2", "a has rank 2, not 3", {SET(a.rank, 2)}},
    {"2 groups in a", "a has 2 groups, w 3", {SET(a.shape[0], 2)}},
    {"a has 128 columns", "a has 128 columns, w 256", {SET(a.shape[2], 128)}},
    {"K is 200", "200 columns|128", {SET(a.shape[2], 200), SET(w.shape[2], 200)}},
    {"a's groups overlap", "a has stride 1024 in dimension 0", {SET(a.stride[0], 1024)}},
    {"a starts at byte 264", "a starts at byte 264", {SET(a.offset_bytes, 264), SET(a.shape[1], 4)}},
    {"a is absent", "a", {ABSENT(a)}},
    {"a_scale is absent", "a is e4m3 but a_scale is absent", {ABSENT(a_scale)}},
    {"a_scale is stray",
     "a_scale is given but a is f32",
     {SET(a.dtype, TDM_F32), SET(a.shape[0], 1), SET(a.shape[1], 1), SET(w.shape[0], 1)}},
    {"a_scale is for 4 rows", "a_scale is [3, 2, 4], not [3, 2, 5]", {SET(a_scale.shape[2], 4)}},
    {"a_scale of rank 2", "a_scale has rank 2, not 3", {SET(a_scale.rank, 2)}},
    {"a_scale has row stride 5", "a_scale has row stride 5|8", {SET(a_scale.stride[1], 5)}},
    {"a_scale has group stride 12", "a_scale|stride 12", {SET(a_scale.stride[0], 12)}},
    {"a_scale has group stride 18", "a_scale has group stride 18|4 from 16", {SET(a_scale.stride[0], 18)}},
    {"w is f32", "w is f32, not e4m3", {SET(w.dtype, TDM_F32), SET(w.shape[0], 1), SET(w.shape[1], 9)}},
    {"w_scale is absent", "w_scale", {ABSENT(w_scale)}},
    {"w_scale has 2 rows", "w_scale is [3, 2, 2], not [3, 1, 2]", {SET(w_scale.shape[1], 2)}},
    {"out has 40 columns", "out is [5, 40], not [5, 120]", {SET(out.shape[1], 40)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"out is w_scale's memory", "out|overlaps w_scale", {COPY(w_scale.buffer, out.buffer)}},
    {"n_tokens is f32", "n_tokens is f32", {COPY(n_tokens, w_scale), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1)}},
};

Test(bmm_fp8, refusals) {
  const bmm_case c = {3, 5, 40, 256, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0};
  bmm b;
  open_bmm(&b, &c);
  test_rig_refusals(&b.rig, &tdm_op_bmm_fp8, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&b.rig);
}

static tdm_status no_map(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  (void)tile, (void)out_map;
  ++*(int*)ctx;
  return TDM_OK;
}

/* What the reference does and the kernels do not. */
Test(bmm_fp8, limits_of_the_kernel) {
  static const struct {
    bmm_case c;
    const char* words; /* NULL: it can */
  } limits[] = {
      {{2, 5, 128, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0}, NULL},
      {{2, 5, 128, 256, -1, TDM_E4M3, TDM_BF16, 3, 0, 0, 1}, NULL},
      {{1, 1, 128, 128, -1, TDM_E4M3, TDM_F32, 0, 0, 0, 0}, NULL},
      {{2, 5, 130, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0}, "N 130|128"},
      {{2, 5, 128, 384, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0}, "K 384|256"},
      {{2, 5, 128, 256, -1, TDM_F32, TDM_BF16, 0, 0, 0, 0}, "f32 activations"},
      {{2, 5, 128, 256, -1, TDM_E4M3, TDM_BF16, 0, 1, 0, 0}, "w (33024)|128"},
  };
  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
    const bmm_case* c = &limits[i].c;
    bmm b;
    open_bmm(&b, c);
    tdm_gemm_fp8_sm90_plan plan;
    tdm_gemm_fp8_params params;
    int maps = 0;
    tdm_bmm_fp8_sm90_make_plan(c->g, c->m, c->n, c->k, 132, &plan);
    tdm_status status = tdm_bmm_fp8_sm90_params(&b.args, &plan, NULL, NULL, no_map, &maps, &params);
    if (limits[i].words != NULL) {
      test_expect_failure(b.rig.label, status, TDM_UNSUPPORTED, limits[i].words);
    } else {
      cr_expect_eq(status, TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
      cr_expect_eq(maps, 3);
      cr_expect_eq(params.group_rows, c->g > 1 ? c->m + c->a_gap : 0);
      cr_expect_eq(params.group_scale_rows, c->g > 1 ? c->k / 128 : 0);
    }
    test_rig_close(&b.rig);
  }
}

/* How a sum is cut follows from the weights' shape, whatever the rows and the SMs. */
Test(bmm_fp8, segments_follow_the_shape) {
  static const int64_t shapes[][3] = {
      {8, 1024, 8192}, {16, 1024, 4096}, {2, 1024, 4096}, {1, 1024, 4096}, {3, 128, 512}};
  static const int64_t rows[] = {1, 8, 9, 64, 65, 128, 129, 1500};
  for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
    tdm_gemm_fp8_sm90_plan first;
    tdm_bmm_fp8_sm90_make_plan(shapes[s][0], 1, shapes[s][1], shapes[s][2], 132, &first);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
      for (int32_t sms = 1; sms <= 132; sms += 131) {
        tdm_gemm_fp8_sm90_plan plan;
        tdm_bmm_fp8_sm90_make_plan(shapes[s][0], rows[r], shapes[s][1], shapes[s][2], sms, &plan);
        cr_expect_eq(plan.segments, first.segments);
        cr_expect_eq(plan.granule, first.granule);
        cr_expect_eq(plan.upright, rows[r] > 64 && rows[r] <= 128 && shapes[s][0] * shapes[s][1] < 512 * sms);
        cr_expect_eq(plan.swapped, !plan.upright);
        cr_expect_leq(plan.launch.grid, (uint32_t)sms);
        cr_expect_gt(plan.launch.shared_bytes, 0);
      }
    }
  }
}

Test(bmm_fp8, plan) {
  const bmm_case c = {2, 5, 128, 256, -1, TDM_E4M3, TDM_BF16, 0, 0, 0, 0};
  bmm b;
  open_bmm(&b, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_bmm_fp8.plan(&b.args, 0, &plan);
  cr_expect_eq(plan.flops, 2.0 * 2 * 5 * 128 * 256);
  cr_expect_eq(plan.bytes, 2 * (5.0 * 256 + 5.0 * 2 * 4 + 128.0 * 256 + 1.0 * 2 * 4 + 5.0 * 128 * 2));
  test_rig_close(&b.rig);
}
