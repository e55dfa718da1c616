#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/moe_fc1/moe_fc1_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { BLOCK = 128 };

typedef struct fc1_case {
  int64_t m, experts, intermediate, hidden;
  tdm_dtype x, w;
  float limit, quant_eps;
  bool pow2;
  int64_t live;
} fc1_case;

#define Q TDM_E4M3
#define B TDM_BF16
#define F TDM_F32

static const fc1_case cases[] = {
    {1, 1, 128, 128, Q, Q, 0.0f, 0.0f, false, 1},
    {2, 3, 128, 384, Q, Q, 0.0f, 0.0f, false, 2},
    {3, 2, 256, 256, Q, Q, 1.0f, 0.0f, true, 3},
    {7, 9, 128, 128, Q, Q, 0.0f, 10.0f, false, 7}, /* every block below the floor */
    {16, 1, 384, 512, Q, Q, 0.0f, 0.0f, true, 13},
    {17, 2, 128, 640, Q, Q, 0.5f, 0.0f, false, 17},
    {37, 1, 128, 256, Q, Q, 0.0f, 1e-10f, false, 34},
    {129, 2, 128, 128, Q, Q, 0.0f, 0.0f, false, 129},
    {1, 2, 128, 256, B, B, 0.0f, 0.0f, false, 1},
    {3, 1, 256, 384, B, B, 1.0f, 0.0f, false, 3},
    {65, 2, 128, 128, B, B, 0.0f, 0.0f, false, 64},
    {1, 9, 128, 384, F, Q, 0.0f, 0.0f, false, 1},
    {5, 2, 256, 256, F, Q, 2.0f, 0.0f, false, 5},
    {64, 1, 128, 128, F, B, 0.0f, 0.0f, false, 64},
    {100, 2, 128, 128, F, F, 0.0f, 0.0f, false, 99},
    {7, 3, 128, 128, F, Q, 0.0f, 0.0f, false, 0},
    {7, 3, 128, 128, Q, Q, 0.0f, 0.0f, false, 0},
};

/* The operands of one call; rows, experts and scales lie apart. */
typedef struct bench {
  test_tensor *x, *x_scale, *w, *w_scale, *out, *out_scale;
  tdm_moe_fc1_args args;
} bench;

static void make_bench(test_rig* rig, bench* b, const fc1_case* c) {
  int64_t rows = 2 * c->intermediate, columns = c->experts * c->intermediate;
  float deviation = 2.0f / sqrtf((float)c->hidden); /* gate and up around 2 */
  *b = (bench){0};
  if (c->x == Q) b->x_scale = test_rig_scales(rig, "x_scale", c->m, c->hidden, 4);
  b->x = test_rig_activation(rig, "x", c->x, c->m, c->hidden, c->hidden + 16, 1.0f, b->x_scale);
  b->w = test_rig_strided(rig, "w13", c->w, 3, (int64_t[]){c->experts, rows, c->hidden},
                          (int64_t[]){rows * (c->hidden + 32) + 64, c->hidden + 32, 1});
  test_view_set_normal(&b->w->view, &rig->random, c->w == Q ? 30.0f : deviation);
  if (c->w == Q) {
    int64_t deep = c->hidden / BLOCK;
    b->w_scale = test_rig_strided(rig, "w13_scale", F, 3, (int64_t[]){c->experts, rows / BLOCK, deep},
                                  (int64_t[]){rows / BLOCK * (deep + 1) + 3, deep + 1, 1});
    oracle_fill_uniform(&b->w_scale->view, &rig->random, 0.5f * deviation / 30.0f, 1.5f * deviation / 30.0f);
  }
  b->out = test_rig_strided(rig, "out", c->x, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 16, 1});
  if (c->x == Q) b->out_scale = test_rig_scales(rig, "out_scale", c->m, columns, 8);
  b->args = (tdm_moe_fc1_args){
      .size = sizeof b->args,
      .x = b->x->view,
      .w13 = b->w->view,
      .out = b->out->view,
      .swiglu_limit = c->limit,
      .quant_eps = c->quant_eps,
      .pow2_scale = c->pow2,
  };
  if (c->x == Q) {
    b->args.x_scale = b->x_scale->view;
    b->args.out_scale = b->out_scale->view;
  }
  if (c->w == Q) b->args.w13_scale = b->w_scale->view;
}

static void allow(bench* b, int64_t live) {
  if (live == 0) return;
  tdm_view part = tdm_view_slice(b->out->view, 0, 0, live);
  test_tensor_allow(b->out, &part);
  if (b->out_scale != NULL) test_allow_scales(b->out_scale, live);
}

/* x [M, H] and w13 [E, 2I, H] with their scales multiplied in. */
static double* plain_x(const bench* b) {
  double* x = oracle_values(&b->args.x);
  int64_t m = b->args.x.shape[0], hidden = b->args.x.shape[1];
  for (int64_t i = 0; i < m * hidden && b->x_scale != NULL; i++) {
    x[i] *= (double)*(float*)test_view_at(&b->args.x_scale, i % hidden / BLOCK * m + i / hidden);
  }
  return x;
}

static double* plain_w(const bench* b) {
  double* w = oracle_values(&b->args.w13);
  int64_t rows = b->args.w13.shape[1], hidden = b->args.w13.shape[2];
  for (int64_t i = 0; i < test_view_count(&b->args.w13) && b->w_scale != NULL; i++) {
    int64_t expert = i / hidden / rows, row = i / hidden % rows;
    int64_t block = (expert * rows / BLOCK + row / BLOCK) * (hidden / BLOCK) + i % hidden / BLOCK;
    w[i] *= (double)*(float*)test_view_at(&b->args.w13_scale, block);
  }
  return w;
}

/* silu(gate) * up, [M, E * I], in double throughout; free() it. */
static double* expected(const bench* b) {
  int64_t m = b->args.x.shape[0], hidden = b->args.x.shape[1], experts = b->args.w13.shape[0];
  int64_t intermediate = b->args.w13.shape[1] / 2;
  double limit = b->args.swiglu_limit > 0.0f ? (double)b->args.swiglu_limit : (double)INFINITY;
  double *x = plain_x(b), *w = plain_w(b), *v = oracle_zeros(m * experts * intermediate);
  for (int64_t i = 0; i < m * experts * intermediate; i++) {
    int64_t column = i % intermediate, expert = i / intermediate % experts;
    int64_t row = expert * 2 * intermediate + column / BLOCK * 2 * BLOCK + column % BLOCK;
    const double* xi = x + i / (experts * intermediate) * hidden;
    double gate = 0, up = 0;
    for (int64_t k = 0; k < hidden; k++) {
      gate += xi[k] * w[row * hidden + k];
      up += xi[k] * w[(row + BLOCK) * hidden + k];
    }
    if (gate > limit) gate = limit;
    if (up > limit) up = limit;
    if (up < -limit) up = -limit;
    v[i] = gate / (1.0 + exp(-gate)) * up;
  }
  free(x);
  free(w);
  return v;
}

/* Scales of quantised rows, and codes against v divided by the scale that was written. */
static void expect_quantised(const test_rig* rig, const bench* b, const double* v, int64_t live) {
  int64_t columns = b->args.out.shape[1];
  double eps = b->args.quant_eps > 0.0f ? (double)b->args.quant_eps : 1e-4;
  double* codes = oracle_zeros(live * columns);
  double* scales = oracle_zeros(live * columns / BLOCK);
  for (int64_t i = 0; i < live * columns; i += BLOCK) {
    int64_t row = i / columns, block = i % columns / BLOCK;
    double amax = eps;
    for (int64_t k = i; k < i + BLOCK; k++) amax = fabs(v[k]) > amax || isnan(v[k]) ? fabs(v[k]) : amax;
    double* scale = &scales[block * live + row];
    *scale = amax / 448.0;
    if (b->args.pow2_scale) *scale = exp2(ceil(log2(*scale)));
    double written = (double)*(float*)test_view_at(&b->args.out_scale, block * b->args.out.shape[0] + row);
    for (int64_t k = i; k < i + BLOCK; k++) codes[k] = v[k] / written;
  }
  tdm_view out = tdm_view_slice(b->args.out, 0, 0, live), out_scale = tdm_view_slice(b->args.out_scale, 1, 0, live);
  oracle_expect_rounded(rig->label, &out_scale, scales, 1e-6);
  oracle_expect_rounded(rig->label, &out, codes, 2e-6);
  test_expect_zero_pads(rig, b->out_scale, live);
  free(codes);
  free(scales);
}

static void run(test_rig* rig, bench* b, int64_t live) {
  if (live < b->args.x.shape[0]) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)live)->view;
  allow(b, live);
  double* v = expected(b);
  cr_assert_eq(TEST_RUN(rig, moe_fc1, &b->args), TDM_OK, "%s: %s", rig->label, tdm_last_error()->message);
  if (live > 0 && b->out_scale != NULL) {
    expect_quantised(rig, b, v, live);
  } else if (live > 0) {
    tdm_view out = tdm_view_slice(b->args.out, 0, 0, live);
    oracle_expect_rounded(rig->label, &out, v, 1e-6);
  }
  free(v);
}

Test(moe_fc1, multiplies_and_quantises_as_the_formula) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const fc1_case* c = &cases[i];
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "case %zu: M %lld, E %lld, I %lld, H %lld, %s by %s", i, (long long)c->m,
                   (long long)c->experts, (long long)c->intermediate, (long long)c->hidden, tdm_dtype_name(c->x),
                   tdm_dtype_name(c->w));
    make_bench(&rig, &b, c);
    if (c->live < c->m) { /* what is not live is not read */
      tdm_view dead = tdm_view_slice(b.args.x, 0, c->live, c->m - c->live);
      test_view_poison(&dead);
    }
    run(&rig, &b, c->live);
    cr_assert_eq(test_rig_run_direct(&rig, &tdm_op_moe_fc1, &b.args), TDM_OK, "%s", rig.label);
    test_rig_close(&rig);
  }
}

Test(moe_fc1, zero_rows_get_the_floor_as_scale) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  test_rig_label(&rig, "zero row");
  make_bench(&rig, &b, &(fc1_case){3, 2, 128, 128, Q, Q, 0.0f, 0.0f, false, 3});
  for (int64_t k = 0; k < 128; k++) oracle_set(&b.args.x, 128 + k, 0.0f);
  run(&rig, &b, 3);
  cr_expect_eq(*(float*)test_view_at(&b.args.out_scale, 1), 1e-4f * (1.0f / 448.0f));
  test_rig_close(&rig);
}

Test(moe_fc1, nan_stays_in_its_row_and_in_its_expert) {
  static const tdm_dtype dtypes[] = {Q, B, F};
  for (size_t n = 0; n < 3; n++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "NaN in row 2 of %s, in expert 1's weights", tdm_dtype_name(dtypes[n]));
    make_bench(&rig, &b, &(fc1_case){5, 3, 256, 256, dtypes[n], dtypes[n], 1.0f, 0.0f, false, 5});
    oracle_set(&b.args.x, 2 * 256 + 131, NAN);
    run(&rig, &b, 5);                                     /* against a reference with the same NaN */
    oracle_set(&b.args.w13, (512 + 300) * 256 + 17, NAN); /* expert 1, block 1 */
    run(&rig, &b, 5);
    test_rig_close(&rig);
  }
}

Test(moe_fc1, an_infinite_scale_stays_in_its_row) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc1_case){5, 1, 128, 256, Q, Q, 0.0f, 0.0f, false, 5});
  *(float*)test_view_at(&b.args.x_scale, 5 + 3) = INFINITY; /* block 1 of row 3 */
  allow(&b, 5);
  cr_assert_eq(TEST_RUN(&rig, moe_fc1, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t m = 0; m < 5; m++) {
    float scale = *(float*)test_view_at(&b.args.out_scale, m);
    cr_expect_eq(isnan(scale) != 0, m == 3, "row %lld has scale %g", (long long)m, (double)scale);
  }
  test_rig_close(&rig);
}

Test(moe_fc1, a_row_alone_has_the_same_bits) {
  static const tdm_dtype dtypes[][2] = {{Q, Q}, {B, B}, {F, Q}};
  for (size_t n = 0; n < 3; n++) {
    test_rig rig;
    bench b, one;
    test_rig_open(&rig);
    make_bench(&rig, &b, &(fc1_case){17, 2, 128, 384, dtypes[n][0], dtypes[n][1], 0.0f, 0.0f, false, 17});
    make_bench(&rig, &one, &(fc1_case){1, 2, 128, 384, dtypes[n][0], dtypes[n][1], 0.0f, 0.0f, false, 1});
    one.args.w13 = b.args.w13;
    one.args.w13_scale = b.args.w13_scale;
    allow(&b, 17);
    allow(&one, 1);
    cr_assert_eq(TEST_RUN(&rig, moe_fc1, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < 17; m++) {
      test_rig_label(&rig, "row %lld, %s by %s", (long long)m, tdm_dtype_name(dtypes[n][0]),
                     tdm_dtype_name(dtypes[n][1]));
      one.args.x = tdm_view_slice(b.args.x, 0, m, 1);
      for (int64_t kb = 0; kb < 3 && b.x_scale != NULL; kb++) {
        *(float*)test_view_at(&one.args.x_scale, kb) = *(float*)test_view_at(&b.args.x_scale, kb * 17 + m);
      }
      cr_assert_eq(TEST_RUN(&rig, moe_fc1, &one.args), TDM_OK, "%s", tdm_last_error()->message);
      tdm_view row = tdm_view_slice(b.args.out, 0, m, 1);
      oracle_expect_same_bits(rig.label, &one.args.out, &row);
      if (b.out_scale == NULL) continue;
      tdm_view scales = tdm_view_slice(b.args.out_scale, 1, m, 1);
      oracle_expect_same_bits(rig.label, &one.args.out_scale, &scales);
    }
    test_rig_close(&rig);
  }
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)       TEST_SET(tdm_moe_fc1_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_moe_fc1_args, member, value)
#define COPY(member, other)      TEST_COPY(tdm_moe_fc1_args, member, other)
#define ABSENT(member)           TEST_ABSENT(tdm_moe_fc1_args, member)

static const test_refusal refusals[] = {
    {"integer x", "x|i8", {SET(x.dtype, TDM_I8)}},
    {"x of rank 3", "x|rank 3", {SET(x.rank, 3), SET(x.shape[2], 1), SET(x.stride[2], 1)}},
    {"200 hidden", "x|200|128", {SET(x.shape[1], 200)}},
    {"w13 of other hidden", "w13|128|256", {SET(w13.shape[2], 128)}},
    {"384 gate and up rows", "w13|384|256", {SET(w13.shape[1], 384)}},
    {"w13 of rank 2", "w13|rank 2", {SET(w13.rank, 2)}},
    {"ue8m0 weights", "w13|ue8m0", {SET(w13.dtype, TDM_UE8M0)}},
    {"experts overlap", "w13|stride", {SET(w13.stride[0], 256)}},
    {"no w13", "w13|absent", {ABSENT(w13)}},
    {"no x_scale", "x_scale|absent", {ABSENT(x_scale)}},
    {"no w13_scale", "w13_scale|absent", {ABSENT(w13_scale)}},
    {"no out_scale", "out_scale|absent", {ABSENT(out_scale)}},
    {"x_scale of 1 block", "x_scale|1|2", {SET(x_scale.shape[0], 1)}},
    {"x_scale of odd stride", "x_scale|stride 15", {SET(x_scale.stride[0], 15)}},
    {"w13_scale of 1 expert", "w13_scale|1|2", {SET(w13_scale.shape[0], 1)}},
    {"bf16 scales", "w13_scale|bf16", {SET(w13_scale.dtype, TDM_BF16)}},
    {"out of one expert", "out|256|512", {SET(out.shape[1], 256)}},
    {"out of 4 rows", "out|4|5", {SET(out.shape[0], 4)}},
    {"bf16 out of fp8 x", "out|bf16|e4m3", {SET(out.dtype, TDM_BF16), SET(out.shape[0], 2)}},
    {"out_scale too tight", "out_scale|stride 6|8", {SET(out_scale.stride[0], 6)}},
    {"negative limit", "swiglu_limit|-1", {SET_FLOAT(swiglu_limit, -1.0f)}},
    {"NaN limit", "swiglu_limit|nan", {SET_FLOAT(swiglu_limit, NAN)}},
    {"negative eps", "quant_eps|-1", {SET_FLOAT(quant_eps, -1.0f)}},
    {"out in the weights", "out|overlaps|w13", {COPY(out.buffer, w13.buffer)}},
};

static const test_refusal limits[] = {
    {"bf16 by fp8", "x is bf16|w13 e4m3", {SET(x.dtype, TDM_BF16), SET(x.shape[0], 1)}},
    {"fp8 by bf16", "x is e4m3|w13 bf16", {SET(w13.dtype, TDM_BF16), SET(w13.shape[0], 1)}},
};

Test(moe_fc1, refuses_bad_arguments) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc1_case){5, 2, 256, 256, Q, Q, 0.0f, 0.0f, false, 5});
  test_rig_refusals(&rig, &tdm_op_moe_fc1, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_refusals(&rig, &tdm_op_moe_fc1, &b.args, TDM_UNSUPPORTED, limits, sizeof limits / sizeof limits[0]);
  make_bench(&rig, &b, &(fc1_case){5, 2, 128, 128, F, F, 0.0f, 0.0f, false, 5});
  b.args.out_scale = b.args.x;
  test_expect_failure("scales of f32", tdm_append_moe_fc1(test_rig_program(&rig), rig.lane, "scales", &b.args),
                      TDM_INVALID_ARGUMENT, "moe_fc1|out_scale|f32");
  test_rig_close(&rig);
}

Test(moe_fc1, refuses_a_wrong_count) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc1_case){5, 1, 128, 128, F, F, 0.0f, 0.0f, false, 5});
  b.args.n_tokens = test_rig_count(&rig, "n_tokens", 6)->view;
  test_expect_failure("count", TEST_RUN(&rig, moe_fc1, &b.args), TDM_INVALID_ARGUMENT, "moe_fc1|6|5");
  test_rig_close(&rig);
}

Test(moe_fc1, plan_counts_operations_and_bytes) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc1_case){5, 2, 256, 384, Q, Q, 0.0f, 0.0f, false, 5});
  tdm_plan plan = {.splits = 1};
  tdm_op_moe_fc1.plan(&b.args, 132, &plan);
  cr_expect_eq(plan.flops, 2.0 * 5 * 2 * 512 * 384, "%g", plan.flops);
  double bytes = 5 * 384 + 4.0 * 3 * 5 + 2 * 512 * 384 + 4.0 * 2 * 4 * 3 + 5 * 512 + 4.0 * 4 * 5;
  cr_expect_eq(plan.bytes, bytes, "%g, expected %g", plan.bytes, bytes);
  cr_expect_eq(plan.scratch_bytes, 0);
  test_rig_close(&rig);
}

/* What a CUDA lane would launch for bf16; no GPU is needed to know. */
Test(moe_fc1, plans_bf16_kernels) {
  static const struct {
    int64_t m, experts, intermediate, hidden;
    int32_t sms;
    const char* variant;
    int32_t splits;
    size_t scratch, state;
  } plans[] = {
      {1, 8, 2048, 128, 132, "tdm_moe_fc1_bf16_t8_sm90", 1, 0, 0},
      {17, 8, 2048, 128, 132, "tdm_moe_fc1_bf16_t24_sm90", 1, 0, 0},
      {64, 8, 2048, 128, 16, "tdm_moe_fc1_bf16_t64_sm90", 1, 0, 0},
      {129, 8, 2048, 128, 132, "tdm_moe_fc1_bf16_t128_sm90", 1, 0, 0},
      /* 2 tiles of 256 rows: cut, the same for any number of rows and SMs; f32 partials and two counters a tile */
      {1, 1, 256, 7168, 132, "tdm_moe_fc1_bf16_t8_sm90", 16, 2 * 16 * 256 * 8 * 4, 2 * 2 * 4},
      {129, 1, 256, 7168, 8, "tdm_moe_fc1_bf16_t128_sm90", 16, 2 * 2 * 16 * 256 * 128 * 4, 2 * 2 * 2 * 4},
  };
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    make_bench(&rig, &b,
               &(fc1_case){plans[i].m, plans[i].experts, plans[i].intermediate, plans[i].hidden, B, B, 0.0f, 0.0f,
                           false, plans[i].m});
    tdm_plan plan = {.splits = 1};
    tdm_op_moe_fc1.plan(&b.args, plans[i].sms, &plan);
    cr_expect_str_eq(plan.variant, plans[i].variant, "plan %zu", i);
    cr_expect_eq(plan.splits, plans[i].splits, "plan %zu: %d splits", i, plan.splits);
    cr_expect_eq(plan.scratch_bytes, plans[i].scratch, "plan %zu: %zu bytes of scratch", i, plan.scratch_bytes);
    cr_expect_eq(plan.state_bytes, plans[i].state, "plan %zu: %zu bytes of state", i, plan.state_bytes);
    test_rig_close(&rig);
  }
}

/* FP8: CTAs share tiles, and have room for the sums of one each, unless whole tiles come out even for certain. */
Test(moe_fc1, plans_fp8_kernels) {
  static const struct {
    int64_t m, n;
    int32_t sms;
    bool some;
    const char* kernel;
    uint32_t grid, shares; /* shares: so many CTAs */
  } plans[] = {
      {1, 131072, 132, false, "tdm_moe_fc1_swap_t8_sm90", 132, 132},
      {16, 65536, 116, false, "tdm_moe_fc1_swap_t16_sm90", 116, 116},
      {24, 65536, 132, true, "tdm_moe_fc1_swap_t24_sm90", 132, 132},
      {32, 65536, 128, true, "tdm_moe_fc1_swap_t32_sm90", 128, 128}, /* the list may be shorter */
      {32, 65536, 128, false, "tdm_moe_fc1_swap_t32_sm90", 128, 0},
      {64, 65536, 132, false, "tdm_moe_fc1_t64_sm90", 132, 0}, /* upright: whole tiles */
      {257, 65536, 132, false, "tdm_moe_fc1_t128_sm90", 132, 0},
      {32, 65536, 1000, true, "tdm_moe_fc1_swap_t32_sm90", 512, 0}, /* a tile each */
  };
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    tdm_moe_fc1_sm90_plan plan;
    tdm_moe_fc1_sm90_make_plan(plans[i].m, plans[i].n, 7168, plans[i].sms, plans[i].some, &plan);
    const size_t shares = plans[i].shares, sums = shares * 256 * (size_t)plan.tokens * sizeof(float);
    cr_expect_str_eq(plan.launch.kernel, plans[i].kernel, "plan %zu", i);
    cr_expect_eq(plan.segments, 1, "plan %zu: %d", i, plan.segments);
    cr_expect_eq(plan.launch.grid, plans[i].grid, "plan %zu: %u", i, plan.launch.grid);
    cr_expect_eq(plan.partial_bytes, sums, "plan %zu: %zu", i, plan.partial_bytes);
    cr_expect_eq(plan.counter_bytes, shares > 0 ? (1 + shares) * 4 : 0, "plan %zu: %zu", i, plan.counter_bytes);
    cr_expect_leq(plan.launch.shared_bytes, TDM_SHARED_BYTES, "plan %zu: %u", i, plan.launch.shared_bytes);
  }
}
