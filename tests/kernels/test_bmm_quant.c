#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bmm_quant/bmm_quant_sm90.h"
#include "kernels/common/convert.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

typedef struct bmm_case {
  int64_t b, m, n, k;
  int64_t live;      /* -1: no count */
  bool heads_inside; /* a from [M, B, K], as attention has it */
  bool pow2;
  int64_t a_gap, q_gap, scale_gap; /* elements between rows; columns / 4 of scales */
} bmm_case;

static const bmm_case cases[] = {
    {1, 1, 128, 1, -1, false, false, 0, 0, 0},       {2, 2, 128, 64, -1, true, true, 8, 0, 0},
    {16, 3, 128, 512, -1, true, false, 0, 0, 0},     {3, 7, 256, 72, 5, true, false, 0, 128, 1},
    {4, 16, 128, 512, 16, true, true, 64, 16, 0},    {2, 17, 128, 200, 0, false, false, 0, 0, 2},
    {4, 37, 128, 512, 33, true, false, 0, 3, 0},     {1, 64, 384, 129, -1, false, false, 8, 0, 0},
    {2, 65, 128, 320, 64, true, true, 0, 0, 1},      {1, 129, 128, 96, 127, true, false, 0, 0, 0},
    {2, 257, 128, 32, -1, false, false, 24, 256, 3},
};

typedef struct bmm {
  test_rig rig;
  test_tensor *a, *w, *q, *scale;
  tdm_bmm_quant_args args;
} bmm;

static void open_bmm(bmm* g, const bmm_case* c) {
  test_rig* rig = &g->rig;
  test_rig_open(rig);
  test_rig_label(rig, "bmm_quant b %lld m %lld n %lld k %lld live %lld", (long long)c->b, (long long)c->m,
                 (long long)c->n, (long long)c->k, (long long)c->live);
  const int64_t row = c->k + c->a_gap, columns = c->b * c->n;
  const int64_t inside[] = {row, c->b * row, 1}, outside[] = {c->m * row, row, 1};
  g->a = test_rig_strided(rig, "a", TDM_BF16, 3, (int64_t[]){c->b, c->m, c->k}, c->heads_inside ? inside : outside);
  g->w = test_rig_strided(rig, "w", TDM_BF16, 3, (int64_t[]){c->b, c->n, c->k}, (int64_t[]){2 * c->n * c->k, c->k, 1});
  g->q = test_rig_strided(rig, "out_q", TDM_E4M3, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + c->q_gap, 1});
  g->scale = test_rig_scales(rig, "out_scale", c->m, columns, 4 * c->scale_gap);
  test_view_set_normal(&g->w->view, &rig->random, 0.05f);
  const int64_t live = c->live < 0 ? c->m : c->live;
  if (live > 0) {
    const tdm_view read = tdm_view_slice(g->a->view, 1, 0, live), written = tdm_view_slice(g->q->view, 0, 0, live);
    test_view_set_normal(&read, &rig->random, 1.0f); /* the dead rows stay NaN */
    test_tensor_allow(g->q, &written);
  }
  test_allow_scales(g->scale, live);
  g->args = (tdm_bmm_quant_args){.size = sizeof g->args,
                                 .a = g->a->view,
                                 .w = g->w->view,
                                 .out_q = g->q->view,
                                 .out_scale = g->scale->view,
                                 .pow2_scale = c->pow2};
  if (c->live >= 0) g->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* The scale as the formula says, without the op's code. */
static float block_scale(const float* values, float eps, bool pow2) {
  float amax = eps;
  for (int i = 0; i < 128; i++) amax = fmaxf(amax, fabsf(values[i]));
  float scale = amax * (1.0f / 448.0f);
  if (!pow2) return scale;
  int exponent;
  float fraction = frexpf(scale, &exponent);
  return ldexpf(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
}

static void expect_block(const bmm* g, const bmm_case* c, const double* a, const double* w, int64_t m, int64_t block) {
  const int64_t b = block * 128 / c->n, first = block * 128 % c->n, columns = c->b * c->n;
  float values[128];
  for (int64_t i = 0; i < 128; i++) {
    double sum = 0.0;
    for (int64_t p = 0; p < c->k; p++) sum += a[(b * c->m + m) * c->k + p] * w[(b * c->n + first + i) * c->k + p];
    values[i] = tdm_bf16_to_f32(tdm_f32_to_bf16((float)sum));
  }
  const float want = block_scale(values, 1e-4f, c->pow2);
  const float got = *(float*)test_view_at(&g->args.out_scale, block * c->m + m);
  cr_assert_eq(got, want, "%s: scale (%lld, %lld) is %.9g, expected %.9g", g->rig.label, (long long)block, (long long)m,
               (double)got, (double)want);
  for (int64_t i = 0; i < 128; i++) {
    const uint8_t code = *(uint8_t*)test_view_at(&g->args.out_q, m * columns + block * 128 + i);
    const uint8_t expected = tdm_f32_to_e4m3(values[i] / want);
    cr_assert_eq(code, expected, "%s: (%lld, %lld) is 0x%02x, expected 0x%02x", g->rig.label, (long long)m,
                 (long long)(block * 128 + i), code, expected);
  }
}

Test(bmm_quant, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const bmm_case* c = &cases[i];
    const int64_t live = c->live < 0 ? c->m : c->live;
    bmm g;
    open_bmm(&g, c);
    cr_assert_eq(TEST_RUN(&g.rig, bmm_quant, &g.args), TDM_OK, "%s: %s", g.rig.label, tdm_last_error()->message);
    double *a = oracle_values(&g.args.a), *w = oracle_values(&g.args.w);
    for (int64_t m = 0; m < live; m++)
      for (int64_t block = 0; block < c->b * c->n / 128; block++) expect_block(&g, c, a, w, m, block);
    test_expect_zero_pads(&g.rig, g.scale, live);
    cr_expect_eq(test_rig_run_direct(&g.rig, &tdm_op_bmm_quant, &g.args), TDM_OK);
    free(a);
    free(w);
    test_rig_close(&g.rig);
  }
}

/* The same bits as gemm_bf16 and quant, one after the other. */
Test(bmm_quant, is_gemm_bf16_then_quant) {
  enum { B = 4, M = 37, K = 512, COLUMNS = B * 128 };
  for (int pow2 = 0; pow2 < 2; pow2++) {
    const bmm_case c = {B, M, 128, K, 35, true, pow2 == 1, 0, 0, 0};
    bmm g;
    open_bmm(&g, &c);
    test_rig* rig = &g.rig;
    test_tensor* heads = test_rig_tensor(rig, "heads", TDM_BF16, 3, (int64_t[]){M, B, 128});
    test_tensor* q = test_rig_tensor(rig, "q", TDM_E4M3, 2, (int64_t[]){M, COLUMNS});
    test_tensor* scale = test_rig_scales(rig, "scale", M, COLUMNS, 0);
    test_tensor_allow(heads, &heads->view);
    test_tensor_allow(q, &q->view);
    test_tensor_allow(scale, &scale->view);
    const tdm_gemm_bf16_args product = {.size = sizeof product,
                                        .n_tokens = g.args.n_tokens,
                                        .a = g.args.a,
                                        .w = g.args.w,
                                        .out = tdm_view_transpose(heads->view, 0, 1)};
    tdm_quant_args quant = {.size = sizeof quant,
                            .n_tokens = g.args.n_tokens,
                            .x = heads->view,
                            .out_q = q->view,
                            .out_scale = scale->view,
                            .pow2_scale = c.pow2};
    quant.x.rank = 2, quant.x.shape[1] = quant.x.stride[0] = COLUMNS, quant.x.stride[1] = 1;
    cr_assert_eq(TEST_RUN(rig, gemm_bf16, &product), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(rig, quant, &quant), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(rig, bmm_quant, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    oracle_expect_same_bits("values", &g.args.out_q, &q->view);
    oracle_expect_same_bits("scales", &g.args.out_scale, &scale->view);
    test_rig_close(rig);
  }
}

Test(bmm_quant, nan_and_infinity_stay_in_their_block) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  const bmm_case c = {3, 9, 128, 70, -1, true, false, 0, 0, 0};
  for (int n = 0; n < 3; n++) {
    bmm g;
    open_bmm(&g, &c);
    oracle_set(&g.args.a, (1 * 9 + 4) * 70 + 69, bad[n]); /* batch 1, token 4 */
    cr_assert_eq(TEST_RUN(&g.rig, bmm_quant, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < 9; m++) {
      for (int64_t column = 0; column < 3 * 128; column++) {
        const bool here = m == 4 && column / 128 == 1;
        const uint8_t code = *(uint8_t*)test_view_at(&g.args.out_q, m * 3 * 128 + column);
        cr_expect_eq((code & 0x7f) == 0x7f, here, "%d: (%lld, %lld)", n, (long long)m, (long long)column);
        cr_expect_eq(isnan(*(float*)test_view_at(&g.args.out_scale, column / 128 * 9 + m)), here, "%d: (%lld, %lld)", n,
                     (long long)m, (long long)column);
      }
    }
    test_rig_close(&g.rig);
  }
}

#define SET(member, value)       TEST_SET(tdm_bmm_quant_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_bmm_quant_args, member, value)
#define COPY(member, from)       TEST_COPY(tdm_bmm_quant_args, member, from)
#define ABSENT(member)           TEST_ABSENT(tdm_bmm_quant_args, member)

/* Of a call with a [3, 5, 64], w [3, 128, 64] and out_q [5, 384]. */
static const test_refusal refusals[] = {
    {"a is f32", "a is f32, not bf16", {SET(a.dtype, TDM_F32), SET(a.shape[1], 1)}},
    {"a has rank 2", "a has rank 2, not 3", {SET(a.rank, 2)}},
    {"a's last stride is 2", "a has last stride 2, not 1", {SET(a.stride[2], 2), SET(a.shape[0], 1)}},
    {"a starts at byte 258", "a starts at byte 258", {SET(a.offset_bytes, 258), SET(a.shape[0], 2)}},
    {"a has 2 batches", "a has 2 batches, w 3", {SET(a.shape[0], 2)}},
    {"a has 32 columns", "a has 32 columns, w 64", {SET(a.shape[2], 32)}},
    {"a is absent", "a", {ABSENT(a)}},
    {"w is e4m3", "w is e4m3, not bf16", {SET(w.dtype, TDM_E4M3)}},
    {"w has rank 2", "w has rank 2, not 3", {SET(w.rank, 2)}},
    {"w transposed", "w has last stride 64, not 1", {SET(w.stride[2], 64), SET(w.stride[1], 1), SET(w.shape[0], 1)}},
    {"w is absent", "w", {ABSENT(w)}},
    {"out_q in bf16", "out_q is bf16, not e4m3", {SET(out_q.dtype, TDM_BF16), SET(out_q.shape[0], 1)}},
    {"out_q has 4 rows", "out_q is [4, 384], not [5, 384]", {SET(out_q.shape[0], 4)}},
    {"out_q has 256 columns", "out_q is [5, 256], not [5, 384]", {SET(out_q.shape[1], 256)}},
    {"out_q is absent", "out_q|absent", {ABSENT(out_q)}},
    {"scales of 4 tokens", "out_scale is [3, 4], not [3, 5]", {SET(out_scale.shape[1], 4)}},
    {"scales with row stride 5", "out_scale has row stride 5|8", {SET(out_scale.stride[0], 5)}},
    {"scales in bf16", "out_scale is bf16", {SET(out_scale.dtype, TDM_BF16)}},
    {"scales are absent", "out_scale|absent", {ABSENT(out_scale)}},
    {"quant_eps is negative", "quant_eps|-0.0001", {SET_FLOAT(quant_eps, -1e-4f)}},
    {"n_tokens is bf16", "n_tokens is bf16 [1]", {COPY(n_tokens, w), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1)}},
    {"out_q in a", "out_q|overlaps a", {COPY(out_q.buffer, a.buffer)}},
};

static const test_refusal limits[] = {
    {"72 rows a batch", "w has 72 rows, not a multiple of 128", {SET(w.shape[1], 72)}},
};

Test(bmm_quant, refusals) {
  const bmm_case c = {3, 5, 128, 64, -1, true, false, 0, 0, 0};
  bmm g;
  open_bmm(&g, &c);
  test_rig_refusals(&g.rig, &tdm_op_bmm_quant, &g.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_refusals(&g.rig, &tdm_op_bmm_quant, &g.args, TDM_UNSUPPORTED, limits, sizeof limits / sizeof limits[0]);
  test_rig_close(&g.rig);
}

Test(bmm_quant, bad_count) {
  static const int32_t counts[] = {6, -1};
  for (int i = 0; i < 2; i++) {
    const bmm_case c = {2, 5, 128, 64, 0, true, false, 0, 0, 0};
    bmm g;
    open_bmm(&g, &c);
    *(int32_t*)test_view_at(&g.args.n_tokens, 0) = counts[i];
    test_expect_failure("bad count", TEST_RUN(&g.rig, bmm_quant, &g.args), TDM_INVALID_ARGUMENT,
                        i == 0 ? "bmm_quant|6|5" : "bmm_quant|-1");
    test_rig_close(&g.rig);
  }
}

Test(bmm_quant, plan) {
  static const struct {
    int64_t batch, m;
    int32_t sms;
    const char* kernel;
    uint32_t grid;
  } plans[] = {
      {128, 1, 132, "tdm_bmm_quant_t16_sm90", 128},    {128, 17, 132, "tdm_bmm_quant_t32_sm90", 128},
      {128, 64, 132, "tdm_bmm_quant_t64_sm90", 128},   {128, 65, 132, "tdm_bmm_quant_t128_sm90", 128},
      {128, 200, 132, "tdm_bmm_quant_t128_sm90", 132}, {16, 1, 132, "tdm_bmm_quant_t16_sm90", 16},
      {16, 64, 132, "tdm_bmm_quant_t16_sm90", 64},     {16, 65, 132, "tdm_bmm_quant_t32_sm90", 48},
      {16, 128, 132, "tdm_bmm_quant_t32_sm90", 64},    {16, 256, 132, "tdm_bmm_quant_t64_sm90", 64},
      {16, 1500, 132, "tdm_bmm_quant_t128_sm90", 132}, {16, 64, 5, "tdm_bmm_quant_t64_sm90", 5},
  };
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    tdm_gemm_bf16_sm90_plan kernel;
    tdm_bmm_quant_sm90_make_plan(plans[i].batch, plans[i].m, 128, plans[i].sms, &kernel);
    cr_expect_str_eq(kernel.launch.kernel, plans[i].kernel, "%lld x %lld on %d", (long long)plans[i].batch,
                     (long long)plans[i].m, plans[i].sms);
    cr_expect_eq(kernel.launch.grid, plans[i].grid, "%lld x %lld on %d: %u", (long long)plans[i].batch,
                 (long long)plans[i].m, plans[i].sms, kernel.launch.grid);
    cr_expect(kernel.launch.shared_bytes > 0 && kernel.launch.shared_bytes <= 232448);
    cr_expect_eq(kernel.segments, 1);
    cr_expect_eq(kernel.partial_bytes + kernel.counter_bytes, 0);
  }
  const bmm_case c = {4, 5, 128, 512, -1, true, false, 0, 0, 0};
  bmm g;
  open_bmm(&g, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_bmm_quant.plan(&g.args, 0, &plan);
  cr_expect_eq(plan.flops, 2.0 * 4 * 5 * 128 * 512 + 2.0 * 4 * 5 * 128);
  cr_expect_eq(plan.bytes, 4.0 * (5 * 512 * 2 + 128 * 512 * 2 + 5 * 128 + 5 * 4));
  tdm_op_bmm_quant.plan(&g.args, 132, &plan);
  cr_expect_str_eq(plan.variant, "tdm_bmm_quant_t16_sm90");
  cr_expect_eq(plan.scratch_bytes + plan.state_bytes, 0);
  test_rig_close(&g.rig);
}

/* What the promise of equal bits rests on. */
Test(bmm_quant, gemm_bf16_does_not_cut_up_to_512) {
  for (int64_t batch = 1; batch <= 300; batch++) {
    for (int64_t n = 128; n <= 512; n += 128) {
      for (int64_t k = 64; k <= 512; k += 64) {
        tdm_gemm_bf16_sm90_plan kernel;
        tdm_gemm_bf16_sm90_make_plan(batch, 64, n, k, false, 132, &kernel);
        cr_assert_eq(kernel.segments, 1, "%lld x %lld x %lld", (long long)batch, (long long)n, (long long)k);
      }
    }
  }
}
