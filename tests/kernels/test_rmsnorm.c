#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/common/convert.h"
#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

/* Which operands a case has. */
enum {
  DELTA = 1,
  RESIDUAL = 2, /* residual_out in memory of its own */
  IN_PLACE = 4, /* residual_out is x */
  WEIGHT = 8,
  OUT = 16,
  QUANT = 32,
  POW2 = 64
};

typedef struct norm_case {
  int64_t m, d;
  int64_t live; /* -1: no count */
  unsigned has;
  tdm_dtype x, other; /* of x; of delta, residual_out (when not x itself), weight and out */
  int64_t spare;      /* how much wider than needed the strides are */
} norm_case;

static const norm_case cases[] = {
    {1, 384, -1, WEIGHT | OUT, TDM_BF16, TDM_BF16, 0},
    {1, 1, -1, OUT, TDM_F32, TDM_F32, 0},
    {2, 512, -1, WEIGHT | QUANT, TDM_BF16, TDM_BF16, 0},
    {3, 576, 2, WEIGHT | OUT, TDM_F32, TDM_F32, 8},
    {7, 384, -1, DELTA | IN_PLACE | WEIGHT | QUANT, TDM_BF16, TDM_BF16, 16},
    {16, 130, -1, DELTA | WEIGHT | OUT, TDM_F32, TDM_BF16, 6},
    {17, 7168, -1, DELTA | RESIDUAL | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0},
    {37, 1536, 33, WEIGHT | QUANT | POW2, TDM_BF16, TDM_BF16, 576},
    {37, 128, 0, DELTA | RESIDUAL | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0},
    {64, 256, -1, DELTA | RESIDUAL, TDM_F32, TDM_BF16, 0},
    {65, 129, 64, DELTA | IN_PLACE, TDM_BF16, TDM_F32, 0},
    {65, 256, -1, RESIDUAL | WEIGHT | OUT, TDM_F32, TDM_BF16, 0},
    {100, 384, 97, DELTA | RESIDUAL | WEIGHT | OUT, TDM_BF16, TDM_F32, 24},
    {128, 128, -1, OUT | QUANT, TDM_F32, TDM_BF16, 0},
    {129, 384, -1, DELTA | IN_PLACE | WEIGHT | OUT | QUANT | POW2, TDM_F32, TDM_F32, 0},
    {257, 256, 250, DELTA | RESIDUAL | WEIGHT | QUANT, TDM_BF16, TDM_BF16, 128},
};

typedef struct norm {
  test_rig rig;
  test_tensor *x, *delta, *residual, *weight, *out, *q, *scales;
  float *x_before, *delta_values; /* what went in */
  tdm_rmsnorm_args args;
} norm;

static test_tensor* matrix(test_rig* rig, const char* name, tdm_dtype dtype, const norm_case* c) {
  return test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, c->d}, (int64_t[]){c->d + c->spare, 1});
}

static void allow_rows(test_tensor* tensor, int64_t live) {
  if (live == 0) return;
  tdm_view written = tdm_view_slice(tensor->view, 0, 0, live);
  test_tensor_allow(tensor, &written);
}

static void open_norm(norm* n, const norm_case* c) {
  test_rig* rig = &n->rig;
  int64_t live = c->live < 0 ? c->m : c->live;
  *n = (norm){.args = {.size = sizeof n->args}};
  test_rig_open(rig);
  test_rig_label(rig, "rmsnorm m %lld d %lld live %lld has 0x%x", (long long)c->m, (long long)c->d, (long long)c->live,
                 c->has);
  n->x = matrix(rig, "x", c->x, c);
  if (live > 0) {
    tdm_view read = tdm_view_slice(n->x->view, 0, 0, live);
    test_view_set_normal(&read, &rig->random, 2.0f);
  }
  n->args.x = n->x->view;
  if (c->has & DELTA) {
    n->delta =
        test_rig_strided(rig, "delta", c->other, 2, (int64_t[]){c->m, c->d}, (int64_t[]){c->d + 2 * c->spare, 1});
    if (live > 0) {
      tdm_view read = tdm_view_slice(n->delta->view, 0, 0, live);
      test_view_set_normal(&read, &rig->random, 1.0f);
    }
    n->args.delta = n->delta->view;
    n->delta_values = test_view_values(&n->delta->view);
  }
  if (c->has & (RESIDUAL | IN_PLACE)) {
    n->residual = c->has & IN_PLACE ? n->x : matrix(rig, "residual_out", c->other, c);
    allow_rows(n->residual, live);
    n->args.residual_out = n->residual->view;
  }
  if (c->has & WEIGHT) {
    n->weight = test_rig_tensor(rig, "weight", c->other, 1, &c->d);
    test_view_set_normal(&n->weight->view, &rig->random, 1.0f);
    n->args.weight = n->weight->view;
  }
  if (c->has & OUT) {
    n->out = matrix(rig, "out", c->other, c);
    allow_rows(n->out, live);
    n->args.out = n->out->view;
  }
  if (c->has & QUANT) {
    n->q = matrix(rig, "out_q", TDM_E4M3, c);
    n->scales = test_rig_scales(rig, "out_scale", c->m, c->d, 4);
    allow_rows(n->q, live);
    test_allow_scales(n->scales, live);
    n->args.out_q = n->q->view;
    n->args.out_scale = n->scales->view;
    n->args.pow2_scale = (c->has & POW2) != 0;
  }
  if (c->live >= 0) n->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
  n->x_before = test_view_values(&n->x->view);
}

static void close_norm(norm* n) {
  free(n->x_before);
  free(n->delta_values);
  test_rig_close(&n->rig);
}

/* The residual and the normalised rows in double, with the one rounding in between that the contract names. */
static void expected_values(const norm* n, const norm_case* c, int64_t live, double eps, double* residual, double* y) {
  float* weight = n->weight != NULL ? test_view_values(&n->weight->view) : NULL;
  for (int64_t m = 0; m < live; m++) {
    double squares = 0.0;
    for (int64_t i = m * c->d; i < (m + 1) * c->d; i++) {
      float r = n->delta != NULL ? n->x_before[i] + n->delta_values[i] : n->x_before[i];
      if (n->residual != NULL && n->residual->view.dtype == TDM_BF16) r = tdm_bf16_to_f32(tdm_f32_to_bf16(r));
      residual[i] = (double)r;
      squares += (double)r * (double)r;
    }
    double root = sqrt(squares / (double)c->d + eps);
    for (int64_t i = m * c->d; i < (m + 1) * c->d; i++) {
      y[i] = residual[i] / root * (weight != NULL ? (double)weight[i % c->d] : 1.0);
    }
  }
  free(weight);
}

/* out_q and out_scale against y: the scale to f32 accuracy; the dequantised value to half a step of e4m3, which is 2^-4
 * of the value or 2^-10 of the scale, whichever is more. */
static void expect_quantised(const norm* n, const norm_case* c, int64_t live, const double* y) {
  for (int64_t m = 0; m < live; m++) {
    for (int64_t block = 0; block < c->d / 128; block++) {
      double amax = 1e-4;
      for (int64_t j = 0; j < 128; j++) amax = fmax(amax, fabs(y[m * c->d + block * 128 + j]));
      double expected = amax / 448.0;
      if (c->has & POW2) expected = exp2(ceil(log2(expected)));
      double scale = (double)*(float*)test_view_at(&n->scales->view, block * c->m + m);
      cr_expect_float_eq(scale, expected, 1e-6 * expected, "%s: scale (%lld, %lld) is %.9g, expected %.9g",
                         n->rig.label, (long long)m, (long long)block, scale, expected);
      for (int64_t j = 0; j < 128; j++) {
        int64_t i = m * c->d + block * 128 + j;
        double value = scale * (double)tdm_e4m3_to_f32(*(uint8_t*)test_view_at(&n->q->view, i));
        double half_step = fmax(0x1p-4 * fabs(y[i]), 0x1p-10 * scale);
        cr_assert_float_eq(value, y[i], 1.00001 * half_step, "%s: (%lld, %lld) is %.9g, expected %.9g", n->rig.label,
                           (long long)m, (long long)(i % c->d), value, y[i]);
      }
    }
  }
  test_expect_zero_pads(&n->rig, n->scales, live);
}

static double tolerance(tdm_dtype dtype) {
  return dtype == TDM_BF16 ? 2.5e-3 : 3e-7;
}

Test(rmsnorm, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const norm_case* c = &cases[i];
    int64_t live = c->live < 0 ? c->m : c->live;
    norm n;
    open_norm(&n, c);
    cr_assert_eq(TEST_RUN(&n.rig, rmsnorm, &n.args), TDM_OK, "%s: %s", n.rig.label, tdm_last_error()->message);
    double* residual = malloc((size_t)(live * c->d + 1) * sizeof *residual);
    double* y = malloc((size_t)(live * c->d + 1) * sizeof *y);
    expected_values(&n, c, live, 1e-6, residual, y);
    if (n.residual != NULL) {
      float* got = test_view_values(&n.residual->view);
      test_expect_close(n.rig.label, got, residual, live, c->d, 0.0);
      free(got);
    }
    if (n.out != NULL) {
      float* got = test_view_values(&n.out->view);
      test_expect_close(n.rig.label, got, y, live, c->d, tolerance(c->other));
      free(got);
    }
    if (n.q != NULL) expect_quantised(&n, c, live, y);
    free(residual);
    free(y);
    close_norm(&n);
  }
}

/* Scratch of exactly the plan's size. */
Test(rmsnorm, direct) {
  const norm_case c = {5, 384, -1, DELTA | IN_PLACE | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0};
  norm n;
  open_norm(&n, &c);
  cr_expect_eq(test_rig_run_direct(&n.rig, &tdm_op_rmsnorm, &n.args), TDM_OK, "%s", tdm_last_error()->message);
  close_norm(&n);
}

Test(rmsnorm, eps_counts) {
  const norm_case c = {3, 256, -1, WEIGHT | OUT, TDM_F32, TDM_F32, 0};
  norm n;
  open_norm(&n, &c);
  double residual[3 * 256];
  double y[3 * 256];
  float got[3 * 256];
  n.args.eps = 7.0f;
  cr_assert_eq(TEST_RUN(&n.rig, rmsnorm, &n.args), TDM_OK);
  expected_values(&n, &c, c.m, 7.0, residual, y);
  test_view_get(&n.out->view, got);
  test_expect_close("eps 7", got, y, c.m, c.d, 3e-7);
  close_norm(&n);
}

/* What is fused gives the bits of its parts: the residual add alone, the norm of what that stored, its quantisation. */
Test(rmsnorm, fused_is_the_parts) {
  const norm_case c = {9, 256, -1, DELTA | RESIDUAL | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0};
  norm n;
  open_norm(&n, &c);
  test_rig* rig = &n.rig;
  test_tensor* sum = matrix(rig, "sum", TDM_BF16, &c);
  test_tensor* y = matrix(rig, "y", TDM_F32, &c);
  test_tensor* q = matrix(rig, "q", TDM_E4M3, &c);
  test_tensor* scales = test_rig_scales(rig, "scales", c.m, c.d, 4);
  cr_assert_eq(TEST_RUN(rig, rmsnorm, &n.args), TDM_OK, "%s", tdm_last_error()->message);

  tdm_rmsnorm_args add = {.size = sizeof add, .x = n.x->view, .delta = n.delta->view, .residual_out = sum->view};
  tdm_rmsnorm_args norm_only = {.size = sizeof norm_only, .x = sum->view, .weight = n.weight->view, .out = y->view};
  tdm_quant_args quantise = {.size = sizeof quantise, .x = y->view, .out_q = q->view, .out_scale = scales->view};
  allow_rows(sum, c.m);
  allow_rows(y, c.m);
  allow_rows(q, c.m);
  test_allow_scales(scales, c.m);
  cr_assert_eq(TEST_RUN(rig, rmsnorm, &add), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, rmsnorm, &norm_only), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, quant, &quantise), TDM_OK, "%s", tdm_last_error()->message);
  test_expect_bits("residual", n.residual->memory, sum->memory, (int64_t)sum->bytes);
  test_expect_bits("out_q", n.q->memory, q->memory, (int64_t)q->bytes);
  test_expect_bits("out_scale", n.scales->memory, scales->memory, (int64_t)scales->bytes);
  close_norm(&n);
}

Test(rmsnorm, a_row_does_not_depend_on_the_batch) {
  const norm_case c = {21, 384, -1, DELTA | RESIDUAL | WEIGHT | OUT, TDM_BF16, TDM_F32, 0};
  norm n;
  open_norm(&n, &c);
  test_tensor* residual = test_rig_tensor(&n.rig, "residual alone", TDM_F32, 2, (int64_t[]){1, c.d});
  test_tensor* out = test_rig_tensor(&n.rig, "out alone", TDM_F32, 2, (int64_t[]){1, c.d});
  test_tensor_allow(residual, &residual->view);
  test_tensor_allow(out, &out->view);
  cr_assert_eq(TEST_RUN(&n.rig, rmsnorm, &n.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t m = 0; m < c.m; m++) {
    tdm_rmsnorm_args args = n.args;
    args.x = tdm_view_slice(args.x, 0, m, 1);
    args.delta = tdm_view_slice(args.delta, 0, m, 1);
    args.residual_out = residual->view;
    args.out = out->view;
    cr_assert_eq(TEST_RUN(&n.rig, rmsnorm, &args), TDM_OK, "%s", tdm_last_error()->message);
    test_expect_bits("residual", test_view_at(&residual->view, 0), test_view_at(&n.residual->view, m * c.d), c.d * 4);
    test_expect_bits("out", test_view_at(&out->view, 0), test_view_at(&n.out->view, m * c.d), c.d * 4);
  }
  close_norm(&n);
}

Test(rmsnorm, nan_stays_in_its_row) {
  static const float bad[] = {NAN, INFINITY};
  for (int i = 0; i < 2; i++) {
    const norm_case c = {6, 256, -1, DELTA | WEIGHT | OUT | QUANT, TDM_BF16, TDM_F32, 0};
    norm n;
    open_norm(&n, &c);
    tdm_store_f32(test_view_at(&n.x->view, 4 * c.d + 200), TDM_BF16, 0, bad[i]);
    cr_assert_eq(TEST_RUN(&n.rig, rmsnorm, &n.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < c.m; m++) {
      int64_t odd_scales = 0;
      int64_t odd_values = 0;
      for (int64_t b = 0; b < 2; b++) odd_scales += isnan(*(float*)test_view_at(&n.scales->view, b * c.m + m)) != 0;
      for (int64_t j = 0; j < c.d; j++) odd_values += isnan(*(float*)test_view_at(&n.out->view, m * c.d + j)) != 0;
      /* An infinity makes the root infinite: the row becomes 0, itself NaN. */
      int64_t expected = m != 4 ? 0 : isnan(bad[i]) ? c.d : 1;
      cr_expect_eq(odd_values, expected, "row %lld: %lld NaN", (long long)m, (long long)odd_values);
      cr_expect_eq(odd_scales, m != 4 ? 0 : isnan(bad[i]) ? 2 : 1, "row %lld", (long long)m);
    }
    close_norm(&n);
  }
}

#define SET(member, value)       TEST_SET(tdm_rmsnorm_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_rmsnorm_args, member, value)
#define COPY(member, from)       TEST_COPY(tdm_rmsnorm_args, member, from)
#define ABSENT(view)             TEST_ABSENT(tdm_rmsnorm_args, view)

/* Of a call with everything: x, delta, residual_out, out [5, 256] bf16, weight [256] bf16, out_q and out_scale. */
static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"x has rank 1", "x has rank 1", {SET(x.rank, 1)}},
    {"x starts at byte 258", "x starts at byte 258", {SET(x.offset_bytes, 258), SET(x.shape[0], 4)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"delta has 4 rows", "delta is [4, 256], not [5, 256]", {SET(delta.shape[0], 4)}},
    {"delta is i32", "delta is i32", {SET(delta.dtype, TDM_I32), SET(delta.shape[0], 1)}},
    {"residual_out has 128 columns", "residual_out is [5, 128], not [5, 256]", {SET(residual_out.shape[1], 128)}},
    {"residual_out is half over x",
     "residual_out|overlaps x",
     {COPY(residual_out.buffer, x.buffer), SET(residual_out.offset_bytes, 512)}},
    {"residual_out is delta", "residual_out|overlaps delta", {COPY(residual_out, delta)}},
    {"weight has 255 values", "weight is [255], not [256]", {SET(weight.shape[0], 255)}},
    {"weight has rank 2",
     "weight has rank 2",
     {SET(weight.rank, 2), SET(weight.shape[1], 1), SET(weight.stride[1], 1)}},
    {"weight is strided", "weight has last stride 2", {COPY(weight.buffer, x.buffer), SET(weight.stride[0], 2)}},
    {"weight without a norm",
     "weight is given but out and out_q are absent",
     {ABSENT(out), ABSENT(out_q), ABSENT(out_scale)}},
    {"nothing to do",
     "out, out_q and residual_out are all absent",
     {ABSENT(out), ABSENT(out_q), ABSENT(out_scale), ABSENT(residual_out), ABSENT(weight)}},
    {"out is x", "out|overlaps x", {COPY(out, x)}},
    {"out is residual_out", "overlaps out", {COPY(out, residual_out)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"out_q is bf16", "out_q is bf16", {SET(out_q.dtype, TDM_BF16), SET(out_q.shape[0], 2)}},
    {"D is 192 with out_q",
     "192|128",
     {SET(x.shape[1], 192), SET(delta.shape[1], 192), SET(residual_out.shape[1], 192), SET(weight.shape[0], 192),
      SET(out.shape[1], 192), SET(out_q.shape[1], 192)}},
    {"out_scale is absent", "out_scale is absent", {ABSENT(out_scale)}},
    {"out_scale is stray", "out_scale is given but out_q is absent", {ABSENT(out_q)}},
    {"out_scale is [2, 4]", "out_scale is [2, 4], not [2, 5]", {SET(out_scale.shape[1], 4)}},
    {"eps is negative", "eps is -1", {SET_FLOAT(eps, -1.0f)}},
    {"eps is NaN", "eps is nan", {SET_FLOAT(eps, NAN)}},
    {"quant_eps is infinite", "quant_eps is inf", {SET_FLOAT(quant_eps, INFINITY)}},
};

Test(rmsnorm, refusals) {
  const norm_case c = {5, 256, -1, DELTA | RESIDUAL | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0};
  norm n;
  open_norm(&n, &c);
  test_rig_refusals(&n.rig, &tdm_op_rmsnorm, &n.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  close_norm(&n);
}

Test(rmsnorm, plan) {
  const norm_case c = {5, 256, -1, DELTA | IN_PLACE | WEIGHT | OUT | QUANT, TDM_BF16, TDM_BF16, 0};
  norm n;
  open_norm(&n, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_rmsnorm.plan(&n.args, 0, &plan);
  cr_expect_eq(plan.bytes, 5.0 * 256 * (4 * 2 + 1) + 256 * 2 + 5.0 * 2 * 4);
  cr_expect_gt(plan.flops, 0.0);
  close_norm(&n);
}
