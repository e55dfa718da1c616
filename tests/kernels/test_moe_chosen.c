#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/moe_fc1/moe_fc1_few_sm90.h"
#include "kernels/moe_fc1/moe_fc1_grouped_sm90.h"
#include "kernels/moe_fc2/moe_fc2.h"
#include "kernels/moe_fc2/moe_fc2_grouped_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

/* The experts that a row chose, as bits: what moe_route writes and moe_fc1 and moe_fc2 go by. */

static uint32_t word_at(const tdm_view* chosen, int64_t row, int64_t word) {
  return (uint32_t)((const int32_t*)tdm_view_data(chosen))[row * chosen->stride[0] + word];
}

/* ---- making them ------------------------------------------------------------------------------------------------ */

typedef struct route_case {
  int64_t rows, live, experts;
  int32_t n_shared;
  bool with_hits, broken;
} route_case;

static const route_case route_cases[] = {{1, 1, 8, 0, false, false},   {3, 3, 32, 0, false, false},
                                         {40, 40, 32, 2, true, false}, {17, 5, 24, 7, false, false},
                                         {17, 5, 24, 9, true, false},  {6, 0, 64, 1, false, false},
                                         {5, 5, 96, 0, false, true},   {3, 2, 1020, 4, false, false}};

static void expect_bits_of_alpha(const test_rig* rig, const tdm_view* chosen, const tdm_view* alpha, int64_t live) {
  const int64_t experts = alpha->shape[1];
  for (int64_t m = 0; m < live; m++)
    for (int64_t w = 0; w < chosen->shape[1]; w++) {
      uint32_t want = 0;
      for (int64_t e = 32 * w; e < 32 * w + 32 && e < experts; e++)
        if (*(const float*)test_view_at(alpha, m * experts + e) != 0.0f) want |= UINT32_C(1) << (e - 32 * w);
      cr_assert_eq(word_at(chosen, m, w), want, "%s: row %d, word %d: %08x, expected %08x", rig->label, (int)m, (int)w,
                   word_at(chosen, m, w), want);
    }
}

Test(moe_chosen, route_marks_what_alpha_has) {
  for (size_t i = 0; i < sizeof route_cases / sizeof *route_cases; i++) {
    const route_case* c = &route_cases[i];
    const int64_t wide = c->experts + c->n_shared, words = (wide + 31) / 32;
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "%d rows, %d live, %d experts", (int)c->rows, (int)c->live, (int)wide);
    test_tensor* logits = test_rig_tensor(&rig, "logits", TDM_F32, 2, (int64_t[]){c->rows, c->experts});
    test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, wide});
    test_tensor* chosen =
        test_rig_strided(&rig, "chosen", TDM_I32, 2, (int64_t[]){c->rows, words}, (int64_t[]){words + 3, 1});
    test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){1 + wide});
    test_view_set_normal(&logits->view, &rig.random, 2.0f);
    if (c->broken) oracle_set(&logits->view, 2 * c->experts + 7, NAN);
    test_tensor_allow(alpha, &alpha->view);
    if (c->with_hits) test_tensor_allow(hits, &hits->view);
    if (c->live > 0) {
      const tdm_view part = tdm_view_slice(chosen->view, 0, 0, c->live);
      test_tensor_allow(chosen, &part);
    }
    tdm_moe_route_args args = {.size = sizeof args,
                               .logits = logits->view,
                               .alpha = alpha->view,
                               .chosen = chosen->view,
                               .top_k = 3,
                               .n_group = 4,
                               .topk_group = 2,
                               .n_shared = c->n_shared,
                               .norm_topk_prob = true,
                               .routed_scaling_factor = 2.5f};
    if (c->with_hits) args.hits = hits->view;
    if (c->live < c->rows) args.n_tokens = test_rig_count(&rig, "n", (int32_t)c->live)->view;
    cr_assert_eq(TEST_RUN(&rig, moe_route, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
    expect_bits_of_alpha(&rig, &chosen->view, &alpha->view, c->live);
    test_rig_close(&rig);
  }
}

/* ---- going by them ---------------------------------------------------------------------------------------------- */

enum { EXPERTS = 35, WORDS = 2, INTERMEDIATE = 256, HIDDEN = 256, ROWS = 7, NOBODYS = 3, EVERYBODYS = 34 };

static bool has(int64_t row, int64_t e) {
  return e != NOBODYS && (e == EVERYBODYS || (row * 5 + e * 11) % 7 == 0);
}

static void set_bit(const tdm_view* chosen, int64_t row, int64_t bit) {
  int32_t* word = (int32_t*)tdm_view_data(chosen) + row * chosen->stride[0] + bit / 32;
  *word = (int32_t)((uint32_t)*word | UINT32_C(1) << bit % 32);
}

/* Rows at or beyond `live` keep their 0xff. */
static test_tensor* make_chosen(test_rig* rig, int64_t live) {
  test_tensor* chosen =
      test_rig_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){ROWS, WORDS}, (int64_t[]){WORDS + 2, 1});
  for (int64_t m = 0; m < live; m++) {
    for (int64_t w = 0; w < WORDS; w++) ((int32_t*)tdm_view_data(&chosen->view))[m * (WORDS + 2) + w] = 0;
    for (int64_t e = 0; e < EXPERTS; e++)
      if (has(m, e)) set_bit(&chosen->view, m, e);
  }
  return chosen;
}

typedef struct product_case {
  tdm_dtype dtype;
  int64_t live;
} product_case;

static const product_case product_cases[] = {{TDM_E4M3, ROWS}, {TDM_E4M3, 5}, {TDM_BF16, ROWS}, {TDM_BF16, 3},
                                             {TDM_F32, ROWS},  {TDM_E4M3, 0}, {TDM_BF16, 1}};

static void begin(test_rig* rig, const char* op, const product_case* c) {
  test_rig_open(rig);
  test_rig_label(rig, "%s, %s, %d live", op, tdm_dtype_name(c->dtype), (int)c->live);
}

/* A row's columns of an expert, and the scales of them. */
static tdm_view columns_of(const test_tensor* x, int64_t row, int64_t e) {
  return tdm_view_slice(tdm_view_slice(x->view, 0, row, 1), 1, e * INTERMEDIATE, INTERMEDIATE);
}

static tdm_view scales_of(const test_tensor* scales, int64_t row, int64_t e) {
  const int64_t blocks = INTERMEDIATE / 128;
  return tdm_view_slice(tdm_view_slice(scales->view, 0, e * blocks, blocks), 1, row, 1);
}

/* The weights of the expert that no row chose are NaN. */
static void run_fc1(const product_case* c) {
  test_rig rig;
  begin(&rig, "moe_fc1", c);
  const bool fp8 = c->dtype == TDM_E4M3;
  const int64_t columns = EXPERTS * INTERMEDIATE;
  test_tensor* x_scale = fp8 ? test_rig_scales(&rig, "x_scale", ROWS, HIDDEN, 0) : NULL;
  test_tensor* x = test_rig_activation(&rig, "x", c->dtype, ROWS, HIDDEN, 0, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w13", c->dtype, 3, (int64_t[]){EXPERTS, 2 * INTERMEDIATE, HIDDEN});
  test_tensor* w_scale =
      test_rig_tensor(&rig, "w13_scale", TDM_F32, 3, (int64_t[]){EXPERTS, 2 * INTERMEDIATE / 128, HIDDEN / 128});
  test_view_set_normal(&w->view, &rig.random, fp8 ? 30.0f : 0.1f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.002f, 0.006f);
  const tdm_view nobodys = tdm_view_slice(w->view, 0, NOBODYS, 1);
  test_view_poison(&nobodys);
  test_tensor* chosen = make_chosen(&rig, c->live);
  test_tensor *out[2], *out_scale[2] = {NULL, NULL};
  for (int some = 0; some < 2; some++) {
    out[some] = test_rig_tensor(&rig, some ? "some" : "all", c->dtype, 2, (int64_t[]){ROWS, columns});
    if (fp8) out_scale[some] = test_rig_scales(&rig, some ? "some scales" : "all scales", ROWS, columns, 0);
    for (int64_t m = 0; m < c->live; m++)
      for (int64_t e = 0; e < EXPERTS; e++) {
        if (some && !has(m, e)) continue;
        const tdm_view part = columns_of(out[some], m, e);
        test_tensor_allow(out[some], &part);
      }
    if (fp8 && !some) test_allow_scales(out_scale[some], c->live);
    for (int64_t m = 0; fp8 && some && m < c->live; m++)
      for (int64_t e = 0; e < EXPERTS; e++) {
        if (!has(m, e)) continue;
        const tdm_view part = scales_of(out_scale[some], m, e);
        test_tensor_allow(out_scale[some], &part);
      }
    tdm_moe_fc1_args args = {.size = sizeof args, .x = x->view, .w13 = w->view, .out = out[some]->view};
    if (fp8) {
      args.x_scale = x_scale->view;
      args.w13_scale = w_scale->view;
      args.out_scale = out_scale[some]->view;
    }
    if (some) args.chosen = chosen->view;
    if (c->live < ROWS) args.n_tokens = test_rig_count(&rig, "n", (int32_t)c->live)->view;
    cr_assert_eq(TEST_RUN(&rig, moe_fc1, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
  }
  for (int64_t m = 0; m < c->live; m++)
    for (int64_t e = 0; e < EXPERTS; e++) {
      if (!has(m, e)) continue;
      const tdm_view want = columns_of(out[0], m, e), got = columns_of(out[1], m, e);
      oracle_expect_same_bits(rig.label, &got, &want);
      if (!fp8) continue;
      const tdm_view want_scales = scales_of(out_scale[0], m, e), got_scales = scales_of(out_scale[1], m, e);
      oracle_expect_same_bits(rig.label, &got_scales, &want_scales);
    }
  test_rig_close(&rig);
}

Test(moe_chosen, fc1_computes_the_rows_that_chose) {
  for (size_t i = 0; i < sizeof product_cases / sizeof *product_cases; i++) run_fc1(&product_cases[i]);
}

/* Rows whose weight is 0 though they chose the expert. */
static bool weighs_nothing(int64_t row, int64_t e) {
  return e == EVERYBODYS && row % 2 == 1;
}

/* NaN to all that must not be read: activations and weights of experts that a row does not sum. */
static void spoil(const product_case* c, test_tensor* x, test_tensor* x_scale, test_tensor* w, test_tensor* alpha) {
  test_tensor_allow(x, &x->view);
  if (x_scale) test_tensor_allow(x_scale, &x_scale->view);
  test_tensor_allow(w, &w->view);
  test_tensor_allow(alpha, &alpha->view);
  for (int64_t m = 0; m < ROWS; m++)
    for (int64_t e = 0; e < EXPERTS; e++) {
      if (m < c->live && has(m, e) && !weighs_nothing(m, e)) continue;
      const tdm_view part = columns_of(x, m, e);
      test_view_poison(&part);
      if (x_scale) {
        const tdm_view scales = scales_of(x_scale, m, e);
        test_view_poison(&scales);
      }
      if (m >= c->live || !has(m, e)) oracle_set(&alpha->view, m * EXPERTS + e, m % 2 ? NAN : 1.0f);
    }
  const tdm_view nobodys = tdm_view_slice(w->view, 1, NOBODYS * INTERMEDIATE, INTERMEDIATE);
  test_view_poison(&nobodys);
}

static void run_fc2(const product_case* c) {
  test_rig rig;
  begin(&rig, "moe_fc2", c);
  const bool fp8 = c->dtype == TDM_E4M3;
  const int64_t depth = EXPERTS * INTERMEDIATE, hidden = 200;
  test_tensor* x_scale = fp8 ? test_rig_scales(&rig, "x_scale", ROWS, depth, 0) : NULL;
  test_tensor* x = test_rig_activation(&rig, "x", c->dtype, ROWS, depth, 0, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w2", c->dtype, 2, (int64_t[]){hidden, depth});
  test_tensor* w_scale = test_rig_tensor(&rig, "w2_scale", TDM_F32, 2, (int64_t[]){2, depth / 128});
  test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){ROWS, EXPERTS});
  test_tensor* chosen = make_chosen(&rig, c->live);
  test_view_set_normal(&w->view, &rig.random, fp8 ? 30.0f : 0.1f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.002f, 0.006f);
  for (int64_t i = 0; i < ROWS * EXPERTS; i++) {
    const bool weighs = has(i / EXPERTS, i % EXPERTS) && !weighs_nothing(i / EXPERTS, i % EXPERTS);
    oracle_set(&alpha->view, i, weighs ? test_random_uniform(&rig.random, 0.1f, 1.0f) : 0.0f);
  }
  test_tensor* out[2];
  for (int some = 0; some < 2; some++) {
    out[some] = test_rig_tensor(&rig, some ? "some" : "all", TDM_F32, 2, (int64_t[]){ROWS, hidden});
    if (c->live > 0) {
      const tdm_view part = tdm_view_slice(out[some]->view, 0, 0, c->live);
      test_tensor_allow(out[some], &part);
    }
    if (some) spoil(c, x, x_scale, w, alpha);
    tdm_moe_fc2_args args = {.size = sizeof args,
                             .x = x->view,
                             .w2 = w->view,
                             .alpha = alpha->view,
                             .out = out[some]->view,
                             .n_experts = EXPERTS};
    if (fp8) {
      args.x_scale = x_scale->view;
      args.w2_scale = w_scale->view;
    }
    if (some) args.chosen = chosen->view;
    if (c->live < ROWS) args.n_tokens = test_rig_count(&rig, "n", (int32_t)c->live)->view;
    cr_assert_eq(TEST_RUN(&rig, moe_fc2, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
  }
  if (c->live > 0) {
    const tdm_view want = tdm_view_slice(out[0]->view, 0, 0, c->live),
                   got = tdm_view_slice(out[1]->view, 0, 0, c->live);
    oracle_expect_same_bits(rig.label, &got, &want);
    cr_expect(isfinite(*(const float*)tdm_view_data(&got)), "%s", rig.label);
  }
  test_rig_close(&rig);
}

Test(moe_chosen, fc2_sums_what_a_row_chose) {
  for (size_t i = 0; i < sizeof product_cases / sizeof *product_cases; i++) run_fc2(&product_cases[i]);
}

/* Without alpha every expert that was chosen has weight 1. */
Test(moe_chosen, fc2_needs_no_alpha) {
  test_rig rig;
  begin(&rig, "moe_fc2 without alpha", &(product_case){TDM_BF16, ROWS});
  const int64_t depth = EXPERTS * INTERMEDIATE;
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, ROWS, depth, 0, 1.0f, NULL);
  test_tensor* w = test_rig_tensor(&rig, "w2", TDM_BF16, 2, (int64_t[]){128, depth});
  test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){ROWS, EXPERTS});
  test_tensor* chosen = make_chosen(&rig, ROWS);
  test_view_set_normal(&w->view, &rig.random, 0.1f);
  for (int64_t i = 0; i < ROWS * EXPERTS; i++) oracle_set(&alpha->view, i, has(i / EXPERTS, i % EXPERTS) ? 1.0f : 0.0f);
  test_tensor* out[2];
  for (int some = 0; some < 2; some++) {
    out[some] = test_rig_tensor(&rig, some ? "some" : "all", TDM_F32, 2, (int64_t[]){ROWS, 128});
    test_tensor_allow(out[some], &out[some]->view);
    tdm_moe_fc2_args args = {
        .size = sizeof args, .x = x->view, .w2 = w->view, .out = out[some]->view, .n_experts = EXPERTS};
    if (some)
      args.chosen = chosen->view;
    else
      args.alpha = alpha->view;
    cr_assert_eq(TEST_RUN(&rig, moe_fc2, &args), TDM_OK, "%s", tdm_last_error()->message);
  }
  oracle_expect_same_bits(rig.label, &out[1]->view, &out[0]->view);
  test_rig_close(&rig);
}

/* ---- what is wrong with them ------------------------------------------------------------------------------------ */

typedef struct few {
  tdm_moe_fc1_args fc1;
  tdm_moe_fc2_args fc2;
} few;

/* Good args over six experts, five rows. */
static few make_few(test_rig* rig) {
  enum { N = 6, M = 5 };
  test_tensor* x = test_rig_activation(rig, "x", TDM_BF16, M, 128, 0, 1.0f, NULL);
  test_tensor* c = test_rig_activation(rig, "c", TDM_BF16, M, N * 128, 0, 1.0f, NULL);
  test_tensor* w13 = test_rig_tensor(rig, "w13", TDM_BF16, 3, (int64_t[]){N, 256, 128});
  test_tensor* w2 = test_rig_tensor(rig, "w2", TDM_BF16, 2, (int64_t[]){128, N * 128});
  test_tensor* chosen = test_rig_tensor(rig, "chosen", TDM_I32, 2, (int64_t[]){M, 1});
  test_tensor* c_out = test_rig_tensor(rig, "c_out", TDM_BF16, 2, (int64_t[]){M, N * 128});
  test_tensor* out = test_rig_tensor(rig, "out", TDM_F32, 2, (int64_t[]){M, 128});
  test_view_set_normal(&w13->view, &rig->random, 0.1f);
  test_view_set_normal(&w2->view, &rig->random, 0.1f);
  oracle_fill_i32(&chosen->view, (int32_t[]){1, 2, 63, 0, 32});
  test_tensor_allow(c_out, &c_out->view);
  test_tensor_allow(out, &out->view);
  return (few){.fc1 = {.size = sizeof(tdm_moe_fc1_args),
                       .x = x->view,
                       .w13 = w13->view,
                       .chosen = chosen->view,
                       .out = c_out->view},
               .fc2 = {.size = sizeof(tdm_moe_fc2_args),
                       .x = c->view,
                       .w2 = w2->view,
                       .chosen = chosen->view,
                       .out = out->view,
                       .n_experts = N}};
}

#define REFUSALS(type)                                                                                                 \
  {                                                                                                                    \
    {"of 4 rows", "chosen is [4, 1], not [5, 1]", {TEST_SET(type, chosen.shape[0], 4)}},                               \
        {"of 2 words",                                                                                                 \
         "chosen|[5, 2]|[5, 1]",                                                                                       \
         {TEST_SET(type, chosen.shape[1], 2), TEST_SET(type, chosen.stride[0], 2)}},                                   \
        {"floats", "chosen is f32, not i32", {TEST_SET(type, chosen.dtype, TDM_F32)}},                                 \
        {"a list", "chosen has rank 1, not 2", {TEST_SET(type, chosen.rank, 1)}},                                      \
        {"not aligned", "chosen starts at byte 4", {TEST_SET(type, chosen.offset_bytes, 4)}},                          \
        {"with hits", "hits and chosen are both given", {TEST_COPY(type, hits, chosen)}},                              \
  }

Test(moe_chosen, refuses_bad_arguments) {
  static const test_refusal fc1[] = REFUSALS(tdm_moe_fc1_args), fc2[] = REFUSALS(tdm_moe_fc2_args);
  test_rig rig;
  test_rig_open(&rig);
  const few f = make_few(&rig);
  test_rig_refusals(&rig, &tdm_op_moe_fc1, &f.fc1, TDM_INVALID_ARGUMENT, fc1, sizeof fc1 / sizeof *fc1);
  test_rig_refusals(&rig, &tdm_op_moe_fc2, &f.fc2, TDM_INVALID_ARGUMENT, fc2, sizeof fc2 / sizeof *fc2);
  test_rig_close(&rig);
}

Test(moe_chosen, bits_of_no_expert_are_refused) {
  static const struct {
    int64_t row, bit;
    const char* words;
  } cases[] = {{0, 6, "chosen of row 0 has expert 6 of 6"},
               {4, 31, "chosen of row 4 has expert 31 of 6"},
               {2, 17, "chosen of row 2 has expert 17 of 6"}};
  test_rig rig;
  test_rig_open(&rig);
  few f = make_few(&rig);
  cr_assert_eq(TEST_RUN(&rig, moe_fc1, &f.fc1), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(&rig, moe_fc2, &f.fc2), TDM_OK, "%s", tdm_last_error()->message);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int32_t* word = (int32_t*)tdm_view_data(&f.fc1.chosen) + cases[i].row;
    const int32_t before = *word;
    set_bit(&f.fc1.chosen, cases[i].row, cases[i].bit);
    test_expect_failure(cases[i].words, TEST_RUN(&rig, moe_fc1, &f.fc1), TDM_INVALID_ARGUMENT, cases[i].words);
    test_expect_failure(cases[i].words, TEST_RUN(&rig, moe_fc2, &f.fc2), TDM_INVALID_ARGUMENT, cases[i].words);
    *word = before;
  }
  test_rig_close(&rig);
}

Test(moe_chosen, route_names_what_is_missing) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* logits = test_rig_tensor(&rig, "logits", TDM_F32, 2, (int64_t[]){2, 1024});
  test_tensor* ids = test_rig_tensor(&rig, "ids", TDM_I32, 2, (int64_t[]){2, 2});
  test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){2, 1025});
  test_tensor* chosen = test_rig_tensor(&rig, "chosen", TDM_I32, 2, (int64_t[]){2, 33});
  tdm_moe_route_args args = {
      .size = sizeof args, .logits = logits->view, .ids = ids->view, .chosen = chosen->view, .top_k = 2, .n_shared = 1};
  test_expect_failure("no alpha", TEST_RUN(&rig, moe_route, &args), TDM_INVALID_ARGUMENT, "chosen without alpha");
  args.alpha = alpha->view;
  test_expect_failure("many", TEST_RUN(&rig, moe_route, &args), TDM_UNSUPPORTED, "chosen of 1025 experts|1024");
  args.chosen.shape[1] = 32;
  test_expect_failure("short", TEST_RUN(&rig, moe_route, &args), TDM_INVALID_ARGUMENT, "chosen|[2, 32]|[2, 33]");
  test_rig_close(&rig);
}

/* What a CUDA lane would launch; no GPU is needed to know. Everything fits into a CTA's shared memory. */
Test(moe_chosen, plans_kernels) {
  static const struct {
    int64_t m, experts, intermediate, hidden;
    const char *fc1, *fc2;
  } plans[] = {
      {9, 257, 256, 7168, "tdm_moe_fc1_grouped_t16_sm90", "tdm_moe_fc2_grouped_b2_t8_sm90"},
      {16, 257, 256, 7168, "tdm_moe_fc1_grouped_t16_sm90", "tdm_moe_fc2_grouped_b2_t8_sm90"},
      {17, 257, 256, 7168, "tdm_moe_fc1_grouped_t16_sm90", "tdm_moe_fc2_grouped_b2_t8_sm90"},
      {129, 257, 256, 7168, "tdm_moe_fc1_grouped_t32_sm90", "tdm_moe_fc2_grouped_b2_t16_sm90"},
      {1500, 257, 2048, 7168, "tdm_moe_fc1_grouped_t32_sm90", "tdm_moe_fc2_grouped_b2_t16_sm90"},
      {256, 385, 384, 7168, "tdm_moe_fc1_grouped_t32_sm90", "tdm_moe_fc2_grouped_b1_t16_sm90"},
      {8, 4, 128, 7168, "tdm_moe_fc1_grouped_segments_t32_sm90", "tdm_moe_fc2_grouped_b1_t8_sm90"},
  };
  for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
    const int64_t m = plans[i].m, experts = plans[i].experts, hidden = plans[i].hidden, inner = plans[i].intermediate;
    tdm_moe_fc1_sm90_plan fc1, dense;
    tdm_moe_fc2_grouped_sm90_plan fc2;
    tdm_moe_fc1_grouped_sm90_make_plan(m, experts, inner, hidden, 132, &fc1);
    tdm_moe_fc1_sm90_make_plan(m, experts * inner, hidden, 132, false, &dense);
    tdm_moe_fc2_grouped_sm90_make_plan(m, hidden, experts, inner, 132, &fc2);
    cr_expect_str_eq(fc1.launch.kernel, plans[i].fc1, "plan %zu", i);
    cr_expect_str_eq(fc2.launch.kernel, plans[i].fc2, "plan %zu", i);
    cr_expect_eq(fc1.segments, dense.segments, "plan %zu: %d, dense %d", i, fc1.segments, dense.segments);
    cr_expect_eq(fc2.segments, tdm_moe_fc2_splits(experts, hidden, inner, true), "plan %zu", i);
    cr_expect_leq(fc1.launch.shared_bytes, TDM_SHARED_BYTES, "plan %zu: %u", i, fc1.launch.shared_bytes);
    cr_expect_leq(fc2.launch.shared_bytes, TDM_SHARED_BYTES, "plan %zu: %u", i, fc2.launch.shared_bytes);
  }
}

/* Few rows: one has pieces of 16 gate rows, others of 32; what has few tiles or is long along K is not for it. */
Test(moe_chosen, plans_kernels_of_few_rows) {
  tdm_moe_fc1_sm90_plan plan;
  tdm_moe_fc1_few_sm90_make_plan(1, 257, 256, 7168, 132, &plan);
  cr_expect_str_eq(plan.launch.kernel, "tdm_moe_fc1_few_n16_sm90");
  tdm_moe_fc1_few_sm90_make_plan(8, 257, 256, 8192, 132, &plan);
  cr_expect_str_eq(plan.launch.kernel, "tdm_moe_fc1_few_n32_sm90");
  cr_expect_leq(plan.launch.shared_bytes, TDM_SHARED_BYTES, "%u", plan.launch.shared_bytes);
  cr_expect(tdm_moe_fc1_few_sm90_suits(8, 257, 256, 8192));
  cr_expect_not(tdm_moe_fc1_few_sm90_suits(9, 257, 256, 7168), "rows");
  cr_expect_not(tdm_moe_fc1_few_sm90_suits(8, 257, 256, 8320), "blocks along K");
  cr_expect_not(tdm_moe_fc1_few_sm90_suits(1, 4, 128, 7168), "tiles");
}

/* There are kernels for FP8 alone. */
Test(moe_chosen, cuda_devices_refuse_bf16) {
  test_rig rig;
  test_rig_open(&rig);
  few f = make_few(&rig);
  f.fc1.x.dtype = f.fc2.x.dtype = TDM_BF16;
  const struct {
    const tdm_op* op;
    const void* args;
    const char* words;
  } cases[] = {{&tdm_op_moe_fc1, &f.fc1, "moe_fc1: chosen with bf16 weights needs the host device"},
               {&tdm_op_moe_fc2, &f.fc2, "moe_fc2: chosen with bf16 weights needs the host device"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    static tdm_encoded_step encoded; /* large */
    const tdm_plan plan = {.splits = 1};
    const tdm_encode_env env = {.sms = 132};
    test_expect_failure(cases[i].op->name, cases[i].op->encode(cases[i].args, &plan, &env, &encoded), TDM_UNSUPPORTED,
                        cases[i].words);
    cr_expect_eq(encoded.n_launches, 0);
  }
  test_rig_close(&rig);
}
