#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/device/launch.h"
#include "kernels/moe_fc2/moe_fc2.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { BLOCK = 128 };

typedef enum routing {
  NO_ALPHA = 1, /* alpha left out */
  DENSE,        /* no weight is 0 */
  TOP_2,        /* two random experts a row */
  ALL_TO_ONE,   /* everything to the last expert */
  NOBODY        /* all 0, one of them -0 */
} routing;

typedef struct fc2_case {
  int64_t m;
  int32_t experts;
  int64_t intermediate, hidden;
  tdm_dtype x, w, out, addend; /* addend 0: none */
  routing how;
  int64_t live;
} fc2_case;

#define Q    TDM_E4M3
#define B    TDM_BF16
#define F    TDM_F32
#define NONE ((tdm_dtype)0)

static const fc2_case cases[] = {
    {1, 1, 128, 128, Q, Q, F, NONE, NO_ALPHA, 1}, {1, 9, 128, 384, Q, Q, B, NONE, TOP_2, 1}, /* the golden model's */
    {2, 4, 128, 1, Q, Q, F, NONE, DENSE, 2},      {3, 8, 256, 200, Q, Q, F, F, TOP_2, 3},    /* a tail of columns */
    {7, 24, 128, 136, Q, Q, F, B, TOP_2, 7},      {16, 5, 384, 384, Q, Q, B, B, ALL_TO_ONE, 13},
    {17, 33, 128, 128, Q, Q, F, NONE, DENSE, 17}, {37, 16, 128, 24, Q, Q, B, F, TOP_2, 37},
    {65, 8, 128, 128, Q, Q, B, NONE, NOBODY, 65}, {129, 3, 128, 64, Q, Q, F, NONE, TOP_2, 128},
    {64, 2, 128, 128, Q, Q, F, F, NOBODY, 64},    {1, 8, 256, 136, B, B, F, NONE, TOP_2, 1},
    {5, 17, 128, 128, B, B, B, F, DENSE, 5},      {100, 1, 256, 40, B, B, F, NONE, NO_ALPHA, 99},
    {1, 9, 128, 384, F, Q, F, NONE, TOP_2, 1},    {7, 24, 128, 200, F, Q, F, F, DENSE, 7},
    {3, 4, 256, 128, F, B, B, B, TOP_2, 3},       {16, 3, 128, 129, F, F, F, F, ALL_TO_ONE, 16},
    {7, 3, 128, 128, Q, Q, F, F, DENSE, 0},
};

/* The operands of one call, in rows that lie apart. */
typedef struct bench {
  test_tensor *x, *x_scale, *w, *w_scale, *alpha, *addend, *out;
  tdm_moe_fc2_args args;
} bench;

static void fill_alpha(test_rig* rig, const tdm_view* alpha, routing how) {
  int64_t experts = alpha->shape[1];
  for (int64_t i = 0; i < test_view_count(alpha); i++) {
    float weight = test_random_uniform(&rig->random, 0.05f, 1.0f);
    bool chosen = how == DENSE || (how == ALL_TO_ONE && i % experts == experts - 1);
    oracle_set(alpha, i, chosen ? weight : 0.0f);
  }
  for (int64_t m = 0; m < alpha->shape[0] && how == TOP_2; m++) {
    for (int j = 0; j < 2; j++) {
      int64_t expert = test_random_below(&rig->random, experts);
      oracle_set(alpha, m * experts + expert, test_random_uniform(&rig->random, 0.05f, 1.0f));
    }
  }
  if (how == NOBODY) oracle_set(alpha, experts / 2, -0.0f);
}

static void make_bench(test_rig* rig, bench* b, const fc2_case* c) {
  int64_t depth = c->experts * c->intermediate;
  *b = (bench){0};
  if (c->x == Q) b->x_scale = test_rig_scales(rig, "x_scale", c->m, depth, 4);
  b->x = test_rig_activation(rig, "x", c->x, c->m, depth, depth + 16, 1.0f, b->x_scale);
  b->w = test_rig_strided(rig, "w2", c->w, 2, (int64_t[]){c->hidden, depth}, (int64_t[]){depth + 32, 1});
  test_view_set_normal(&b->w->view, &rig->random, c->w == Q ? 30.0f : 0.1f);
  b->out = test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 9, 1});
  b->args = (tdm_moe_fc2_args){
      .size = sizeof b->args, .x = b->x->view, .w2 = b->w->view, .out = b->out->view, .n_experts = c->experts};
  if (c->x == Q) b->args.x_scale = b->x_scale->view;
  if (c->w == Q) {
    int64_t deep = depth / BLOCK;
    b->w_scale =
        test_rig_strided(rig, "w2_scale", F, 2, (int64_t[]){(c->hidden + 127) / 128, deep}, (int64_t[]){deep + 3, 1});
    oracle_fill_uniform(&b->w_scale->view, &rig->random, 0.002f, 0.006f);
    b->args.w2_scale = b->w_scale->view;
  }
  if (c->how != NO_ALPHA) {
    b->alpha = test_rig_strided(rig, "alpha", F, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 3, 1});
    fill_alpha(rig, &b->alpha->view, c->how);
    b->args.alpha = b->alpha->view;
  }
  if (c->addend != NONE) {
    b->addend =
        test_rig_strided(rig, "addend", c->addend, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 7, 1});
    test_view_set_normal(&b->addend->view, &rig->random, 1.0f);
    b->args.addend = b->addend->view;
  }
}

static void allow(bench* b, int64_t live) {
  if (live == 0) return;
  tdm_view part = tdm_view_slice(b->out->view, 0, 0, live);
  test_tensor_allow(b->out, &part);
}

static float f32_at(const test_tensor* tensor, int64_t index, float absent) {
  return tensor != NULL ? *(float*)test_view_at(&tensor->view, index) : absent;
}

/* Sum over the blocks of experts [begin, end) for row m and column n, every step rounded as the GPU rounds. */
static float rounded_partial(const bench* b, const double* x, const double* w, int64_t m, int64_t n, int64_t begin,
                             int64_t end) {
  int64_t rows = b->args.x.shape[0], depth = b->args.x.shape[1], experts = b->args.n_experts;
  int64_t blocks = depth / experts / BLOCK;
  float partial = 0;
  for (int64_t kb = begin * blocks; kb < end * blocks; kb++) {
    float alpha = f32_at(b->alpha, m * experts + kb / blocks, 1.0f);
    if (alpha == 0.0f) continue;
    double sum = 0;
    for (int64_t k = kb * BLOCK; k < (kb + 1) * BLOCK; k++) sum += x[m * depth + k] * w[n * depth + k];
    float folded = f32_at(b->x_scale, kb * rows + m, 1.0f) * alpha;
    float scale = folded * f32_at(b->w_scale, n / BLOCK * (depth / BLOCK) + kb, 1.0f);
    float product = scale * (float)sum;
    partial = partial + product;
  }
  return partial;
}

/* The same, nothing rounded. */
static double exact_sum(const bench* b, const double* x, const double* w, int64_t m, int64_t n) {
  int64_t depth = b->args.x.shape[1], experts = b->args.n_experts, intermediate = depth / experts;
  double total = 0;
  for (int64_t k = 0; k < depth; k++) {
    double alpha = (double)f32_at(b->alpha, m * experts + k / intermediate, 1.0f);
    double scale = (double)f32_at(b->w_scale, n / BLOCK * (depth / BLOCK) + k / BLOCK, 1.0f);
    if (alpha != 0.0) total += x[m * depth + k] * alpha * w[n * depth + k] * scale;
  }
  return total;
}

/* [live, H] before the last rounding; free() it. */
static double* expected(const bench* b, int64_t live) {
  int64_t hidden = b->args.w2.shape[0], experts = b->args.n_experts;
  int32_t splits = tdm_moe_fc2_splits(experts, hidden, b->args.x.shape[1] / experts, b->args.x.dtype == Q);
  double *x = oracle_values(&b->args.x), *w = oracle_values(&b->args.w2), *y = oracle_zeros(live * hidden + 1);
  double* addend = b->addend != NULL ? oracle_values(&b->args.addend) : NULL;
  for (int64_t i = 0; i < live * hidden; i++) {
    if (b->args.x.dtype == F) {
      y[i] = exact_sum(b, x, w, i / hidden, i % hidden) + (addend != NULL ? addend[i] : 0.0);
      continue;
    }
    float total = 0;
    for (int32_t s = 0; s < splits; s++) {
      total += rounded_partial(b, x, w, i / hidden, i % hidden, experts * s / splits, experts * (s + 1) / splits);
    }
    if (addend != NULL) total += (float)addend[i];
    y[i] = (double)total;
  }
  free(x);
  free(w);
  free(addend);
  return y;
}

static void run(test_rig* rig, bench* b, int64_t live) {
  if (live < b->args.x.shape[0]) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)live)->view;
  allow(b, live);
  double* y = expected(b, live);
  cr_assert_eq(TEST_RUN(rig, moe_fc2, &b->args), TDM_OK, "%s: %s", rig->label, tdm_last_error()->message);
  if (live > 0) {
    /* The quantised path has no freedom at all: slack 0. */
    tdm_view out = tdm_view_slice(b->args.out, 0, 0, live);
    oracle_expect_rounded(rig->label, &out, y, b->args.x.dtype == F ? 1e-7 : 0.0);
  }
  free(y);
}

Test(moe_fc2, adds_experts_as_the_formula) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const fc2_case* c = &cases[i];
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "case %zu: M %lld, E %d, I %lld, H %lld, %s by %s, routing %d", i, (long long)c->m, c->experts,
                   (long long)c->intermediate, (long long)c->hidden, tdm_dtype_name(c->x), tdm_dtype_name(c->w),
                   (int)c->how);
    make_bench(&rig, &b, c);
    if (c->live < c->m) { /* what is not live is not read */
      tdm_view dead = tdm_view_slice(b.args.x, 0, c->live, c->m - c->live);
      test_view_poison(&dead);
    }
    run(&rig, &b, c->live);
    cr_assert_eq(test_rig_run_direct(&rig, &tdm_op_moe_fc2, &b.args), TDM_OK, "%s", rig.label);
    test_rig_close(&rig);
  }
}

Test(moe_fc2, an_expert_that_a_token_did_not_choose_does_not_reach_it) {
  static const tdm_dtype dtypes[] = {Q, B, F};
  for (size_t n = 0; n < 3; n++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "NaN in expert 1, %s", tdm_dtype_name(dtypes[n]));
    make_bench(&rig, &b, &(fc2_case){6, 4, 128, 136, dtypes[n], dtypes[n], F, NONE, DENSE, 6});
    for (int64_t m = 0; m < 6; m++) {
      if (m != 2) oracle_set(&b.args.alpha, m * 4 + 1, m == 4 ? -0.0f : 0.0f);
      oracle_set(&b.args.x, m * 512 + 128 + 5, NAN); /* all activations of expert 1; only row 2 chose it */
      if (b.x_scale != NULL) *(float*)test_view_at(&b.args.x_scale, 6 + m) = NAN;
    }
    oracle_set(&b.args.w2, 77 * 512 + 128 + 9, NAN); /* and its weights */
    allow(&b, 6);
    cr_assert_eq(TEST_RUN(&rig, moe_fc2, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t i = 0; i < 6 * 136; i++) {
      float value = *(float*)test_view_at(&b.args.out, i);
      cr_assert_eq(isnan(value) != 0, i / 136 == 2, "%s: row %lld, column %lld is %g", rig.label, (long long)(i / 136),
                   (long long)(i % 136), (double)value);
    }
    test_rig_close(&rig);
  }
}

Test(moe_fc2, nan_and_infinity_stay_in_their_row) {
  static const struct {
    const char* what;
    float alpha, x, addend;
  } poisons[] = {
      {"NaN weight", NAN, 1.0f, 1.0f},     {"infinite weight", INFINITY, 1.0f, 1.0f},
      {"NaN activation", 1.0f, NAN, 1.0f}, {"infinite activation", 1.0f, INFINITY, 1.0f},
      {"NaN addend", 1.0f, 1.0f, NAN},     {"infinite addend", 1.0f, 1.0f, -INFINITY},
  };
  for (size_t n = 0; n < sizeof poisons / sizeof poisons[0]; n++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "%s in row 3", poisons[n].what);
    make_bench(&rig, &b, &(fc2_case){5, 8, 256, 24, B, B, F, F, DENSE, 5});
    oracle_set(&b.args.alpha, 3 * 8 + 6, poisons[n].alpha);
    oracle_set(&b.args.x, 3 * 2048 + 1700, poisons[n].x);
    oracle_set(&b.args.addend, 3 * 24 + 11, poisons[n].addend);
    run(&rig, &b, 5);
    test_rig_close(&rig);
  }
}

Test(moe_fc2, a_row_alone_has_the_same_bits) {
  static const tdm_dtype dtypes[][2] = {{Q, Q}, {B, B}, {F, Q}};
  for (size_t n = 0; n < 3; n++) {
    test_rig rig;
    bench b, one;
    test_rig_open(&rig);
    make_bench(&rig, &b, &(fc2_case){17, 24, 128, 136, dtypes[n][0], dtypes[n][1], F, NONE, TOP_2, 17});
    make_bench(&rig, &one, &(fc2_case){1, 24, 128, 136, dtypes[n][0], dtypes[n][1], F, NONE, TOP_2, 1});
    one.args.w2 = b.args.w2;
    one.args.w2_scale = b.args.w2_scale;
    allow(&b, 17);
    allow(&one, 1);
    cr_assert_eq(TEST_RUN(&rig, moe_fc2, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < 17; m++) {
      test_rig_label(&rig, "row %lld, %s by %s", (long long)m, tdm_dtype_name(dtypes[n][0]),
                     tdm_dtype_name(dtypes[n][1]));
      one.args.x = tdm_view_slice(b.args.x, 0, m, 1);
      for (int64_t e = 0; e < 24; e++) {
        *(float*)test_view_at(&one.args.alpha, e) = f32_at(b.alpha, m * 24 + e, 0.0f);
        if (b.x_scale != NULL) *(float*)test_view_at(&one.args.x_scale, e) = f32_at(b.x_scale, e * 17 + m, 0.0f);
      }
      cr_assert_eq(TEST_RUN(&rig, moe_fc2, &one.args), TDM_OK, "%s", tdm_last_error()->message);
      tdm_view row = tdm_view_slice(b.args.out, 0, m, 1);
      oracle_expect_same_bits(rig.label, &one.args.out, &row);
    }
    test_rig_close(&rig);
  }
}

Test(moe_fc2, splits_follow_from_the_shape) {
  static const struct {
    int64_t experts, hidden, intermediate;
  } shapes[] = {
      {257, 7168, 256},                    /* DeepSeek-V3, TP 8 */
      {257, 7168, 2048}, {257, 4096, 256}, /* DeepSeek-V4 Flash */
      {385, 7168, 384},  {9, 384, 128},    /* golden */
      {1, 7168, 18432},  {2, 1, 1048576},  {33, 128, 128},
  };
  cr_expect_eq(tdm_moe_fc2_splits(257, 7168, 256, true), 2, "halves of a long sum");
  cr_expect_eq(tdm_moe_fc2_splits(257, 7168, 256, false), 1);
  for (size_t i = 0; i < 2 * (sizeof shapes / sizeof shapes[0]); i++) {
    const size_t shape = i / 2;
    int64_t experts = shapes[shape].experts;
    int32_t splits = tdm_moe_fc2_splits(experts, shapes[shape].hidden, shapes[shape].intermediate, i % 2);
    cr_expect(splits >= 1 && splits <= experts, "shape %zu: %d splits", shape, splits);
    cr_expect_eq(tdm_moe_fc2_split_begin(experts, splits, 0), 0);
    cr_expect_eq(tdm_moe_fc2_split_begin(experts, splits, splits), experts);
    for (int32_t s = 0; s < splits; s++) {
      int64_t count = tdm_moe_fc2_split_begin(experts, splits, s + 1) - tdm_moe_fc2_split_begin(experts, splits, s);
      cr_expect(count == experts / splits || count == experts / splits + 1, "shape %zu: split %d has %lld experts",
                shape, s, (long long)count);
    }
  }
}

/* Or the cases above would not see an order of splits. */
Test(moe_fc2, some_cases_have_several_splits) {
  int several = 0;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    if (cases[i].x == Q)
      several += tdm_moe_fc2_splits(cases[i].experts, cases[i].hidden, cases[i].intermediate, true) > 1;
  }
  cr_expect_geq(several, 2, "%d cases", several);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_moe_fc2_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_moe_fc2_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_moe_fc2_args, member)

static const test_refusal refusals[] = {
    {"integer x", "x|i8", {SET(x.dtype, TDM_I8)}},
    {"x of rank 1", "x|rank 1", {SET(x.rank, 1)}},
    {"n_experts left out", "n_experts|0", {SET(n_experts, 0)}},
    {"negative experts", "n_experts|-4", {SET(n_experts, -4)}},
    {"3 experts in 512", "512|n_experts 3", {SET(n_experts, 3)}},
    {"8 experts of 64", "512|n_experts 8|128", {SET(n_experts, 8)}},
    {"w2 of other depth", "w2|384|512", {SET(w2.shape[1], 384)}},
    {"w2 of rank 3", "w2|rank 3", {SET(w2.rank, 3), SET(w2.shape[2], 1), SET(w2.stride[2], 1)}},
    {"rows of w2 overlap", "w2|stride 128", {SET(w2.stride[0], 128)}},
    {"no w2", "w2|absent", {ABSENT(w2)}},
    {"no x_scale", "x_scale|absent", {ABSENT(x_scale)}},
    {"no w2_scale", "w2_scale|absent", {ABSENT(w2_scale)}},
    {"x_scale of 3 blocks", "x_scale|3|4", {SET(x_scale.shape[0], 3)}},
    {"w2_scale of 1 row", "w2_scale|1|2", {SET(w2_scale.shape[0], 1)}},
    {"alpha of 3 experts", "alpha|3|4", {SET(alpha.shape[1], 3)}},
    {"alpha of 4 rows", "alpha|4|5", {SET(alpha.shape[0], 4)}},
    {"bf16 alpha", "alpha|bf16", {SET(alpha.dtype, TDM_BF16)}},
    {"addend of 128", "addend|128|136", {SET(addend.shape[1], 128)}},
    {"fp8 addend", "addend|e4m3", {SET(addend.dtype, TDM_E4M3)}},
    {"out of 128", "out|128|136", {SET(out.shape[1], 128)}},
    {"fp8 out", "out|e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"no out", "out|absent", {ABSENT(out)}},
    {"out is addend", "out|overlaps|addend", {COPY(out, addend)}},
    {"a count of floats", "n_tokens|f32", {COPY(n_tokens, alpha)}},
};

static const test_refusal limits[] = {
    {"bf16 by fp8", "x is bf16|w2 e4m3", {SET(x.dtype, TDM_BF16), SET(x.shape[0], 1)}},
    {"fp8 by bf16", "x is e4m3|w2 bf16", {SET(w2.dtype, TDM_BF16), SET(w2.shape[0], 1)}},
};

Test(moe_fc2, refuses_bad_arguments) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc2_case){5, 4, 128, 136, Q, Q, F, F, DENSE, 5});
  test_rig_refusals(&rig, &tdm_op_moe_fc2, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_refusals(&rig, &tdm_op_moe_fc2, &b.args, TDM_UNSUPPORTED, limits, sizeof limits / sizeof limits[0]);
  test_rig_close(&rig);
}

Test(moe_fc2, refuses_a_wrong_count) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc2_case){5, 4, 128, 136, Q, Q, F, F, DENSE, 5});
  b.args.n_tokens = test_rig_count(&rig, "n_tokens", -3)->view;
  test_expect_failure("count", TEST_RUN(&rig, moe_fc2, &b.args), TDM_INVALID_ARGUMENT, "moe_fc2|-3|5");
  test_rig_close(&rig);
}

Test(moe_fc2, plan_counts_operations_bytes_and_splits) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(fc2_case){5, 24, 128, 136, Q, Q, B, F, DENSE, 5});
  for (int32_t sms = 0; sms <= 132; sms += 66) {
    tdm_plan plan = {.splits = 1};
    tdm_op_moe_fc2.plan(&b.args, sms, &plan);
    cr_expect_eq(plan.splits, tdm_moe_fc2_splits(24, 136, 128, true), "%d SMs: %d", sms, plan.splits);
    cr_expect_eq(plan.flops, 2.0 * 5 * 136 * 24 * 128, "%g", plan.flops);
    double bytes = 5 * 3072 + 4.0 * 24 * 5 + 136 * 3072 + 4.0 * 2 * 24 + 4.0 * 5 * 24 + 4.0 * 5 * 136 + 2.0 * 5 * 136;
    cr_expect_eq(plan.bytes, bytes, "%g, expected %g", plan.bytes, bytes);
    cr_expect_neq(plan.scratch_bytes, 0, "%d SMs: the reference's panel, the kernels' partial sums", sms);
  }
  test_rig_close(&rig);
}

/* What a CUDA lane would launch for bf16; no GPU is needed to know. */
Test(moe_fc2, plans_bf16_kernels) {
  static const struct {
    int64_t m;
    int32_t experts, sms;
    const char* variant;
  } plans[] = {
      {1, 24, 132, "tdm_moe_fc2_bf16_n64t8_sm90"},      {16, 24, 66, "tdm_moe_fc2_bf16_n64t16_sm90"},
      {64, 24, 132, "tdm_moe_fc2_bf16_n64t64_sm90"},    {128, 24, 8, "tdm_moe_fc2_bf16_n64t128_sm90"},
      {129, 24, 132, "tdm_moe_fc2_bf16_n128t128_sm90"}, {7, 1, 132, "tdm_moe_fc2_bf16_n64t8_sm90"},
  };
  enum { HIDDEN = 136 }; /* 3 tiles of 64 */
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    make_bench(&rig, &b, &(fc2_case){plans[i].m, plans[i].experts, 128, HIDDEN, B, B, F, NONE, DENSE, plans[i].m});
    tdm_plan plan = {.splits = 1};
    tdm_op_moe_fc2.plan(&b.args, plans[i].sms, &plan);
    const int32_t splits = tdm_moe_fc2_splits(plans[i].experts, HIDDEN, 128, false);
    cr_assert_eq(splits > 1, plans[i].experts > 1, "an expert is not cut, 24 of them are: %d splits", splits);
    cr_expect_str_eq(plan.variant, plans[i].variant, "plan %zu", i);
    cr_expect_eq(plan.splits, splits, "plan %zu: %d splits", i, plan.splits);
    const size_t tile = (size_t)tdm_gemm_token_tile(plans[i].m), m_tiles = ((size_t)plans[i].m + tile - 1) / tile;
    const size_t tiles = splits > 1 ? 3 * m_tiles : 0;
    cr_expect_eq(plan.scratch_bytes, tiles * (size_t)splits * 64 * tile * 4, "plan %zu: %zu bytes", i,
                 plan.scratch_bytes);
    cr_expect_eq(plan.state_bytes, tiles * 4, "plan %zu: %zu bytes of state", i, plan.state_bytes);
    test_rig_close(&rig);
  }
}
