#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { MAX_EXPERTS = 1024 };

typedef struct route_case {
  int64_t m, experts;
  int32_t top_k, n_group, topk_group, n_shared;
  bool norm, with_bias;
  float factor;
} route_case;

static const route_case cases[] = {
    {1, 1, 1, 1, 1, 0, true, false, 1.0f},       {2, 8, 3, 4, 2, 1, true, true, 2.5f}, /* the golden model's */
    {3, 8, 8, 1, 1, 0, false, true, 1.0f},       {7, 12, 4, 3, 2, 0, true, true, 1.0f},
    {16, 64, 6, 1, 1, 2, false, false, 16.0f},   {17, 7, 2, 7, 3, 1, true, true, 2.5f},   /* groups of one expert */
    {37, 160, 6, 8, 3, 2, false, true, 16.0f},   {64, 256, 8, 8, 4, 1, true, true, 2.5f}, /* DeepSeek-V3's */
    {65, 256, 8, 8, 4, 0, true, true, 2.5f},     {100, 384, 8, 1, 1, 1, true, true, 2.827f},
    {129, 1024, 32, 16, 1, 3, true, true, 0.5f},
};

/* The operands of one call; logits in rows that have a gap. */
typedef struct bench {
  test_tensor *logits, *bias, *ids, *weights, *alpha;
  tdm_moe_route_args args;
} bench;

static void make_bench(test_rig* rig, bench* b, const route_case* c) {
  int64_t wide = c->experts + c->n_shared;
  b->logits =
      test_rig_strided(rig, "logits", TDM_F32, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 4, 1});
  b->ids = test_rig_strided(rig, "ids", TDM_I32, 2, (int64_t[]){c->m, c->top_k}, (int64_t[]){c->top_k + 1, 1});
  b->weights = test_rig_strided(rig, "weights", TDM_F32, 2, (int64_t[]){c->m, c->top_k}, (int64_t[]){c->top_k + 3, 1});
  b->alpha = test_rig_strided(rig, "alpha", TDM_F32, 2, (int64_t[]){c->m, wide}, (int64_t[]){wide + 5, 1});
  b->args = (tdm_moe_route_args){
      .size = sizeof b->args,
      .logits = b->logits->view,
      .ids = b->ids->view,
      .weights = b->weights->view,
      .alpha = b->alpha->view,
      .top_k = c->top_k,
      .n_group = c->n_group,
      .topk_group = c->topk_group,
      .n_shared = c->n_shared,
      .norm_topk_prob = c->norm,
      .routed_scaling_factor = c->factor,
  };
  test_view_set_normal(&b->logits->view, &rig->random, 2.0f);
  b->bias = NULL;
  if (c->with_bias) { /* wide enough for negative biased scores */
    b->bias = test_rig_tensor(rig, "bias", TDM_F32, 1, (int64_t[]){c->experts});
    test_view_set_normal(&b->bias->view, &rig->random, 0.5f);
    b->args.bias = b->bias->view;
  }
}

static void allow(bench* b, int64_t live) {
  test_tensor* const outputs[] = {b->ids, b->weights, b->alpha};
  for (int i = 0; i < 3 && live > 0; i++) {
    tdm_view part = tdm_view_slice(outputs[i]->view, 0, 0, live);
    test_tensor_allow(outputs[i], &part);
  }
}

typedef struct candidate {
  double score; /* biased; NaN is -inf */
  int64_t index;
} candidate;

static int by_score(const void* a, const void* b) {
  const candidate *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  return x->index < y->index ? -1 : 1;
}

/* f32 sigmoid from a long double one. */
static float sigmoid(double logit) {
  return (float)(1.0L / (1.0L + expl(-(long double)logit)));
}

/* One row by sorting: groups, then the experts of the kept ones. */
static void expected_ids(const bench* b, int64_t row, int32_t* ids) {
  const tdm_moe_route_args* args = &b->args;
  int64_t experts = args->logits.shape[1], size = experts / args->n_group, kept = 0;
  static candidate all[MAX_EXPERTS], groups[MAX_EXPERTS], left[MAX_EXPERTS];
  for (int64_t g = 0; g < args->n_group; g++) {
    for (int64_t e = g * size; e < (g + 1) * size; e++) {
      float score = sigmoid((double)*(float*)test_view_at(&args->logits, row * experts + e));
      if (b->bias != NULL) score += *(float*)test_view_at(&args->bias, e);
      all[e] = (candidate){isnan(score) ? -(double)INFINITY : (double)score, e};
    }
    memcpy(left, all + g * size, (size_t)size * sizeof *left);
    qsort(left, (size_t)size, sizeof *left, by_score);
    groups[g] = (candidate){(double)((float)left[0].score + (size > 1 ? (float)left[1].score : 0.0f)), g};
  }
  qsort(groups, (size_t)args->n_group, sizeof *groups, by_score);
  for (int32_t j = 0; j < args->topk_group; j++) {
    memcpy(left + kept, all + groups[j].index * size, (size_t)size * sizeof *left);
    kept += size;
  }
  qsort(left, (size_t)kept, sizeof *left, by_score);
  for (int32_t j = 0; j < args->top_k; j++) ids[j] = (int32_t)left[j].index;
}

static bool row_has_nan(const bench* b, int64_t row) {
  int64_t experts = b->args.logits.shape[1];
  for (int64_t e = 0; e < experts; e++) {
    if (isnan(*(float*)test_view_at(&b->args.logits, row * experts + e))) return true;
  }
  return false;
}

/* ids, weights and alpha of a row. */
static void expect_row(const test_rig* rig, const bench* b, int64_t row) {
  const tdm_moe_route_args* args = &b->args;
  int64_t experts = args->logits.shape[1], wide = experts + args->n_shared;
  int32_t ids[32];
  double weights[32], sum = 0;
  double* alpha = oracle_zeros(wide);
  expected_ids(b, row, ids);
  for (int32_t j = 0; j < args->top_k; j++) {
    weights[j] = (double)sigmoid((double)*(float*)test_view_at(&args->logits, row * experts + ids[j]));
    sum += weights[j];
  }
  for (int32_t j = 0; j < args->top_k; j++) {
    int32_t id = *(int32_t*)test_view_at(&args->ids, row * args->top_k + j);
    cr_assert_eq(id, ids[j], "%s: row %lld chose %d as number %d, expected %d", rig->label, (long long)row, id, j,
                 ids[j]);
    if (args->norm_topk_prob) weights[j] /= sum + 1e-20;
    weights[j] = row_has_nan(b, row) ? (double)NAN : weights[j] * (double)args->routed_scaling_factor;
    alpha[ids[j]] = weights[j];
  }
  for (int32_t j = 0; j < args->n_shared; j++) alpha[experts + j] = 1.0;
  tdm_view weights_row = tdm_view_slice(args->weights, 0, row, 1), alpha_row = tdm_view_slice(args->alpha, 0, row, 1);
  oracle_expect_rounded(rig->label, &weights_row, weights, 1e-6);
  oracle_expect_rounded(rig->label, &alpha_row, alpha, 1e-6);
  for (int64_t e = 0; e < wide; e++) { /* zeros and ones exactly */
    float value = *(float*)test_view_at(&alpha_row, e);
    if (alpha[e] == 0.0 || e >= experts)
      cr_expect_eq((double)value, alpha[e], "%s: alpha[%lld]", rig->label, (long long)e);
  }
  free(alpha);
}

static void run(test_rig* rig, bench* b, int64_t live) {
  if (live < b->args.logits.shape[0]) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)live)->view;
  allow(b, live);
  cr_assert_eq(TEST_RUN(rig, moe_route, &b->args), TDM_OK, "%s: %s", rig->label, tdm_last_error()->message);
  for (int64_t row = 0; row < live; row++) expect_row(rig, b, row);
}

Test(moe_route, chooses_as_a_sort_does) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    for (int dead = 0; dead < 3; dead++) {
      test_rig rig;
      bench b;
      test_rig_open(&rig);
      test_rig_label(&rig, "case %zu, %d rows not live", i, dead);
      make_bench(&rig, &b, &cases[i]);
      if (dead <= cases[i].m) run(&rig, &b, cases[i].m - dead);
      test_rig_close(&rig);
    }
  }
}

Test(moe_route, ties_go_to_the_lower_index) {
  /* Logits out of few values, so that experts and groups tie in every row; also values where the sigmoid saturates. */
  static const float few[] = {-100.0f, -1.0f, 0.0f, 1.0f, 60.0f, 100.0f};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    for (int values = 1; values <= 6; values++) {
      test_rig rig;
      bench b;
      test_rig_open(&rig);
      test_rig_label(&rig, "case %zu, %d values", i, values);
      make_bench(&rig, &b, &cases[i]);
      for (int64_t j = 0; j < test_view_count(&b.args.logits); j++) {
        oracle_set(&b.args.logits, j, few[test_random_below(&rig.random, values)]);
      }
      for (int64_t e = 0; b.bias != NULL && e < cases[i].experts; e++) {
        oracle_set(&b.args.bias, e, (float)(test_random_below(&rig.random, 3) - 1));
      }
      run(&rig, &b, cases[i].m);
      test_rig_close(&rig);
    }
  }
}

/* 8 experts in 4 groups, 2 kept, 3 chosen: written out. */
static const struct {
  const char* what;
  float logits[8], bias[8];
  int32_t ids[3];
} known[] = {
    {"all equal", {0}, {0}, {0, 1, 2}},
    {"the best two groups", {1, 1, 0, 9, 2, 2, 0, 0}, {0}, {3, 4, 5}},
    {"bias decides, not the score", {5, 5, 5, 5, 0, 0, 0, 0}, {0, 0, 0, 0, 1, 1, 1, 2}, {7, 4, 5}},
    /* Groups 0 and 1 are kept for one large member each; expert 1 at -0.1 goes before the masked 0.1s of 5 and 7. */
    {"a negative score before masked ones", {0}, {0.5f, -0.6f, -0.9f, 0.5f, -0.45f, -0.4f, -0.45f, -0.4f}, {0, 3, 1}},
    {"infinite logits", {-INFINITY, 0, INFINITY, 0, 0, 0, 0, 0}, {0}, {2, 3, 4}},
    {"NaN scores lowest", {NAN, NAN, 1, 1, 0, 0, NAN, 9}, {0}, {2, 3, 4}},
    {"NaN in a kept group goes before all others", {NAN, NAN, NAN, 1, NAN, NAN, NAN, NAN}, {0}, {3, 0, 1}},
    {"nothing but NaN", {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}, {0}, {0, 1, 2}},
    {"infinite bias", {0}, {0, 0, 0, 0, 0, INFINITY, 0, 0}, {5, 0, 1}},
    {"NaN and infinite bias in a group", {0}, {0, 0, 0, 0, NAN, INFINITY, 0, 0}, {0, 1, 2}},
    {"the same in the first group", {0}, {INFINITY, NAN, 0, 0, 0, 0, 0, 0}, {2, 3, 4}},
};

Test(moe_route, known_choices) {
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    test_rig_label(&rig, "%s", known[i].what);
    make_bench(&rig, &b, &(route_case){1, 8, 3, 4, 2, 1, true, true, 1.0f});
    test_view_set(&b.logits->view, known[i].logits);
    test_view_set(&b.bias->view, known[i].bias);
    allow(&b, 1);
    cr_assert_eq(TEST_RUN(&rig, moe_route, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int j = 0; j < 3; j++) {
      int32_t id = *(int32_t*)test_view_at(&b.ids->view, j);
      cr_expect_eq(id, known[i].ids[j], "%s: number %d is %d, expected %d", rig.label, j, id, known[i].ids[j]);
      float weight = *(float*)test_view_at(&b.weights->view, j);
      cr_expect_eq(isnan(weight) != 0, row_has_nan(&b, 0), "%s: weight %d is %g", rig.label, j, (double)weight);
    }
    test_rig_close(&rig);
  }
}

Test(moe_route, nan_and_infinity_stay_in_their_row) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  test_rig_label(&rig, "NaN in row 3, infinities in row 5");
  make_bench(&rig, &b, &(route_case){9, 16, 4, 4, 2, 1, true, true, 2.5f});
  oracle_set(&b.args.logits, 3 * 16 + 2, NAN);
  oracle_set(&b.args.logits, 5 * 16 + 7, INFINITY);
  oracle_set(&b.args.logits, 5 * 16 + 8, -INFINITY);
  run(&rig, &b, 9);
  test_rig_close(&rig);
}

Test(moe_route, weights_of_underflowing_scores_are_zero) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(route_case){1, 4, 2, 1, 1, 0, true, false, 2.5f});
  test_view_set(&b.logits->view, (float[]){-200.0f, -200.0f, -INFINITY, -300.0f});
  run(&rig, &b, 1);
  cr_expect_eq(*(float*)test_view_at(&b.weights->view, 0), 0.0f);
  test_rig_close(&rig);
}

Test(moe_route, each_output_alone_and_a_row_alone_have_the_same_bits) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  test_rig_label(&rig, "all outputs");
  make_bench(&rig, &b, &(route_case){17, 32, 5, 4, 2, 1, true, true, 2.5f});
  run(&rig, &b, 17);
  test_tensor* ids = test_rig_tensor(&rig, "ids alone", TDM_I32, 2, (int64_t[]){1, 5});
  test_tensor* weights = test_rig_tensor(&rig, "weights alone", TDM_F32, 2, (int64_t[]){1, 5});
  test_tensor* alpha = test_rig_tensor(&rig, "alpha alone", TDM_F32, 2, (int64_t[]){1, 33});
  test_tensor_allow(ids, &ids->view);
  test_tensor_allow(weights, &weights->view);
  test_tensor_allow(alpha, &alpha->view);
  for (int64_t row = 0; row < 17; row++) {
    for (int output = 0; output < 3; output++) {
      test_tensor* const tensor[] = {ids, weights, alpha};
      const tdm_view* const whole[] = {&b.ids->view, &b.weights->view, &b.alpha->view};
      test_rig_label(&rig, "output %d of row %lld", output, (long long)row);
      tdm_moe_route_args args = b.args;
      args.logits = tdm_view_slice(args.logits, 0, row, 1);
      args.ids = output == 0 ? ids->view : (tdm_view){0};
      args.weights = output == 1 ? weights->view : (tdm_view){0};
      args.alpha = output == 2 ? alpha->view : (tdm_view){0};
      cr_assert_eq(TEST_RUN(&rig, moe_route, &args), TDM_OK, "%s", tdm_last_error()->message);
      tdm_view part = tdm_view_slice(*whole[output], 0, row, 1);
      oracle_expect_same_bits(rig.label, &tensor[output]->view, &part);
    }
  }
  test_rig_close(&rig);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)       TEST_SET(tdm_moe_route_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_moe_route_args, member, value)
#define COPY(member, other)      TEST_COPY(tdm_moe_route_args, member, other)
#define ABSENT(member)           TEST_ABSENT(tdm_moe_route_args, member)

static const test_refusal refusals[] = {
    {"bf16 logits", "logits|bf16", {SET(logits.dtype, TDM_BF16)}},
    {"logits of rank 1", "logits|rank 1", {SET(logits.rank, 1)}},
    {"no logits", "logits|absent", {ABSENT(logits)}},
    {"short bias", "bias|8|16", {SET(bias.shape[0], 8)}},
    {"bf16 bias", "bias|bf16", {SET(bias.dtype, TDM_BF16)}},
    {"no output", "ids, weights and alpha", {ABSENT(ids), ABSENT(weights), ABSENT(alpha)}},
    {"3 ids", "ids|3|4", {SET(ids.shape[1], 3)}},
    {"float ids", "ids|f32", {SET(ids.dtype, TDM_F32)}},
    {"weights of 4 rows", "weights|4|5", {SET(weights.shape[0], 4)}},
    {"alpha without the shared expert", "alpha|16|17", {SET(alpha.shape[1], 16)}},
    {"bf16 alpha", "alpha|bf16", {SET(alpha.dtype, TDM_BF16)}},
    {"top_k left out", "top_k|0", {SET(top_k, 0)}},
    {"top_k beyond the kept groups", "top_k|9|8", {SET(top_k, 9)}},
    {"negative top_k", "top_k|-1", {SET(top_k, -1)}},
    {"3 groups of 16", "n_group|3|16", {SET(n_group, 3)}},
    {"negative groups", "n_group|-4", {SET(n_group, -4)}},
    {"5 groups kept of 4", "topk_group|5|4", {SET(topk_group, 5)}},
    {"negative groups kept", "topk_group|-1", {SET(topk_group, -1)}},
    {"negative shared experts", "n_shared|-1", {SET(n_shared, -1)}},
    {"negative factor", "routed_scaling_factor|-2.5", {SET_FLOAT(routed_scaling_factor, -2.5f)}},
    {"infinite factor", "routed_scaling_factor|inf", {SET_FLOAT(routed_scaling_factor, INFINITY)}},
    {"NaN factor", "routed_scaling_factor|nan", {SET_FLOAT(routed_scaling_factor, NAN)}},
    {"a count of 16", "n_tokens", {COPY(n_tokens, bias)}},
    {"weights in the logits", "weights|overlaps|logits", {COPY(weights.buffer, logits.buffer)}},
};

Test(moe_route, refuses_bad_arguments) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(route_case){5, 16, 4, 4, 2, 1, true, true, 2.5f});
  test_rig_refusals(&rig, &tdm_op_moe_route, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

static const test_refusal limits[] = {
    {"33 chosen", "top_k|33|32", {SET(top_k, 33), ABSENT(ids), ABSENT(weights)}},
};

Test(moe_route, names_its_limits) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &(route_case){1, 64, 32, 1, 1, 0, true, false, 1.0f});
  test_rig_refusals(&rig, &tdm_op_moe_route, &b.args, TDM_UNSUPPORTED, limits, sizeof limits / sizeof limits[0]);
  make_bench(&rig, &b, &(route_case){1, 1025, 8, 1, 1, 0, true, false, 1.0f});
  test_expect_failure("1025 experts", tdm_append_moe_route(test_rig_program(&rig), rig.lane, "wide", &b.args),
                      TDM_UNSUPPORTED, "moe_route|1025|1024");
  test_rig_close(&rig);
}

Test(moe_route, zero_means_the_default) {
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  test_rig_label(&rig, "no groups, no factor");
  make_bench(&rig, &b, &(route_case){3, 16, 4, 1, 1, 0, false, true, 1.0f});
  tdm_moe_route_args args = b.args;
  args.n_group = args.topk_group = 0;
  args.routed_scaling_factor = 0.0f;
  allow(&b, 3);
  cr_assert_eq(TEST_RUN(&rig, moe_route, &args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t row = 0; row < 3; row++) expect_row(&rig, &b, row);
  test_rig_close(&rig);
}

Test(moe_route, refuses_a_wrong_count) {
  static const int32_t counts[] = {-1, 6, INT32_MIN};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    make_bench(&rig, &b, &(route_case){5, 16, 4, 4, 2, 1, true, true, 2.5f});
    b.args.n_tokens = test_rig_count(&rig, "n_tokens", counts[i])->view;
    char words[64];
    snprintf(words, sizeof words, "moe_route|%d|5", counts[i]);
    test_expect_failure("count", TEST_RUN(&rig, moe_route, &b.args), TDM_INVALID_ARGUMENT, words);
    test_rig_close(&rig);
  }
}
