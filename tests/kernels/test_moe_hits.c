#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

/* The list of experts that moe_route makes and moe_fc1 and moe_fc2 follow. */

static void set_list(const tdm_view* hits, const int32_t* experts, int32_t n) {
  int32_t* values = tdm_view_data(hits);
  values[0] = n;
  memcpy(values + 1, experts, (size_t)n * sizeof *values);
}

/* ---- making it -------------------------------------------------------------------------------------------------- */

Test(moe_hits, route_lists_what_alpha_has) {
  static const struct {
    int64_t rows, live;
    bool broken;
  } cases[] = {{1, 1, false}, {3, 3, false}, {40, 40, false}, {17, 5, false}, {6, 0, false}, {5, 5, true}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "%lld rows, %lld live", (long long)cases[i].rows, (long long)cases[i].live);
    test_tensor* logits = test_rig_tensor(&rig, "logits", TDM_F32, 2, (int64_t[]){cases[i].rows, 32});
    test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){cases[i].rows, 34});
    test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){35});
    test_view_set_normal(&logits->view, &rig.random, 2.0f);
    if (cases[i].broken) oracle_set(&logits->view, 2 * 32 + 7, NAN);
    test_tensor_allow(alpha, &alpha->view);
    test_tensor_allow(hits, &hits->view);
    tdm_moe_route_args args = {.size = sizeof args,
                               .logits = logits->view,
                               .alpha = alpha->view,
                               .hits = hits->view,
                               .top_k = 3,
                               .n_group = 4,
                               .topk_group = 2,
                               .n_shared = 2,
                               .norm_topk_prob = true,
                               .routed_scaling_factor = 2.5f};
    if (cases[i].live < cases[i].rows) args.n_tokens = test_rig_count(&rig, "n", (int32_t)cases[i].live)->view;
    cr_assert_eq(TEST_RUN(&rig, moe_route, &args), TDM_OK, "%s", tdm_last_error()->message);
    const int32_t* got = tdm_view_data(&hits->view);
    int32_t n = 0;
    for (int32_t e = 0; e < 34; e++) {
      bool hit = false;
      for (int64_t row = 0; row < cases[i].live; row++)
        hit = hit || *(float*)test_view_at(&alpha->view, row * 34 + e) != 0.0f;
      if (!hit) continue;
      cr_assert_eq(got[1 + n], e, "%s: hit %d", rig.label, n);
      n++;
    }
    cr_assert_eq(got[0], n, "%s", rig.label);
    test_rig_close(&rig);
  }
}

/* ---- following it ----------------------------------------------------------------------------------------------- */

enum { EXPERTS = 6, INTERMEDIATE = 256, HIDDEN = 256, ROWS = 7 };

static const int32_t some[] = {1, 2, 5};

static bool is_listed(int64_t e) {
  return e == 1 || e == 2 || e == 5;
}

Test(moe_hits, fc1_computes_these_and_leaves_the_others) {
  test_rig rig;
  test_rig_open(&rig);
  const int64_t columns = EXPERTS * INTERMEDIATE;
  test_tensor* x_scale = test_rig_scales(&rig, "x_scale", ROWS, HIDDEN, 0);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_E4M3, ROWS, HIDDEN, 0, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w13", TDM_E4M3, 3, (int64_t[]){EXPERTS, 2 * INTERMEDIATE, HIDDEN});
  test_tensor* w_scale =
      test_rig_tensor(&rig, "w13_scale", TDM_F32, 3, (int64_t[]){EXPERTS, 2 * INTERMEDIATE / 128, HIDDEN / 128});
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.002f, 0.006f);
  test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){1 + EXPERTS});
  test_tensor *out[2], *out_scale[2];
  for (int listed = 0; listed < 2; listed++) {
    out[listed] = test_rig_tensor(&rig, listed ? "some" : "all", TDM_E4M3, 2, (int64_t[]){ROWS, columns});
    out_scale[listed] = test_rig_scales(&rig, listed ? "some scales" : "all scales", ROWS, columns, 0);
    for (int64_t e = 0; e < EXPERTS; e++) {
      if (listed && !is_listed(e)) continue;
      const tdm_view part = tdm_view_slice(out[listed]->view, 1, e * INTERMEDIATE, INTERMEDIATE);
      tdm_view scales = tdm_view_slice(out_scale[listed]->view, 0, e * INTERMEDIATE / 128, INTERMEDIATE / 128);
      scales.shape[1] = tdm_scale_stride(ROWS);
      test_tensor_allow(out[listed], &part);
      test_tensor_allow(out_scale[listed], &scales);
    }
    set_list(&hits->view, some, 3);
    tdm_moe_fc1_args args = {.size = sizeof args,
                             .x = x->view,
                             .x_scale = x_scale->view,
                             .w13 = w->view,
                             .w13_scale = w_scale->view,
                             .hits = listed ? hits->view : (tdm_view){0},
                             .out = out[listed]->view,
                             .out_scale = out_scale[listed]->view};
    cr_assert_eq(TEST_RUN(&rig, moe_fc1, &args), TDM_OK, "%s", tdm_last_error()->message);
  }
  for (int i = 0; i < 3; i++) {
    const tdm_view want = tdm_view_slice(out[0]->view, 1, some[i] * INTERMEDIATE, INTERMEDIATE);
    const tdm_view got = tdm_view_slice(out[1]->view, 1, some[i] * INTERMEDIATE, INTERMEDIATE);
    const tdm_view want_scales = tdm_view_slice(out_scale[0]->view, 0, some[i] * INTERMEDIATE / 128, 2);
    const tdm_view got_scales = tdm_view_slice(out_scale[1]->view, 0, some[i] * INTERMEDIATE / 128, 2);
    oracle_expect_same_bits("columns", &got, &want);
    oracle_expect_same_bits("scales", &got_scales, &want_scales);
  }
  test_rig_close(&rig);
}

/* The experts left out hold NaN: nothing of them is read. */
Test(moe_hits, fc2_sums_these_alone) {
  test_rig rig;
  test_rig_open(&rig);
  const int64_t depth = EXPERTS * INTERMEDIATE;
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, ROWS, depth, 0, 1.0f, NULL);
  test_tensor* w = test_rig_tensor(&rig, "w2", TDM_BF16, 2, (int64_t[]){200, depth});
  test_tensor* alpha = test_rig_tensor(&rig, "alpha", TDM_F32, 2, (int64_t[]){ROWS, EXPERTS});
  test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){1 + EXPERTS});
  test_view_set_normal(&w->view, &rig.random, 0.1f);
  for (int64_t i = 0; i < ROWS * EXPERTS; i++)
    oracle_set(&alpha->view, i, is_listed(i % EXPERTS) ? test_random_uniform(&rig.random, 0.1f, 1.0f) : 0.0f);
  test_tensor* out[2];
  for (int listed = 0; listed < 2; listed++) {
    out[listed] = test_rig_tensor(&rig, listed ? "some" : "all", TDM_F32, 2, (int64_t[]){ROWS, 200});
    test_tensor_allow(out[listed], &out[listed]->view);
    if (listed) {
      test_tensor_allow(x, &x->view);
      for (int64_t i = 0; i < ROWS * depth; i++)
        if (!is_listed(i % depth / INTERMEDIATE)) oracle_set(&x->view, i, NAN);
    }
    set_list(&hits->view, some, 3);
    tdm_moe_fc2_args args = {.size = sizeof args,
                             .x = x->view,
                             .w2 = w->view,
                             .alpha = alpha->view,
                             .hits = listed ? hits->view : (tdm_view){0},
                             .out = out[listed]->view,
                             .n_experts = EXPERTS};
    cr_assert_eq(TEST_RUN(&rig, moe_fc2, &args), TDM_OK, "%s", tdm_last_error()->message);
  }
  oracle_expect_same_bits("fc2", &out[1]->view, &out[0]->view);
  set_list(&hits->view, some, 0);
  test_rig_close(&rig);
}

/* ---- what is wrong with it -------------------------------------------------------------------------------------- */

Test(moe_hits, a_list_that_does_not_ascend_is_refused) {
  static const struct {
    const char* name;
    int32_t n, experts[3];
    const char* words;
  } cases[] = {{"too many", 7, {0, 1, 2}, "hits counts 7 of 6"},
               {"negative count", -1, {0}, "hits counts -1 of 6"},
               {"beyond", 3, {0, 1, 6}, "hits[3] is 6, after 1"},
               {"negative", 1, {-1}, "hits[1] is -1"},
               {"twice", 3, {0, 3, 3}, "hits[3] is 3, after 3"}};
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 1, EXPERTS * 128, 0, 1.0f, NULL);
  test_tensor* w = test_rig_tensor(&rig, "w2", TDM_BF16, 2, (int64_t[]){128, EXPERTS * 128});
  test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){1 + EXPERTS});
  test_tensor* out = test_rig_tensor(&rig, "out", TDM_F32, 2, (int64_t[]){1, 128});
  test_view_set_normal(&w->view, &rig.random, 0.1f);
  tdm_moe_fc2_args args = {
      .size = sizeof args, .x = x->view, .w2 = w->view, .hits = hits->view, .out = out->view, .n_experts = EXPERTS};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int32_t* values = tdm_view_data(&hits->view);
    values[0] = cases[i].n;
    memcpy(values + 1, cases[i].experts, sizeof cases[i].experts);
    test_expect_failure(cases[i].name, TEST_RUN(&rig, moe_fc2, &args), TDM_INVALID_ARGUMENT, cases[i].words);
  }
  args.hits.shape[0] = EXPERTS;
  test_expect_failure("short", TEST_RUN(&rig, moe_fc2, &args), TDM_INVALID_ARGUMENT, "hits|[6]|7");
  args.hits.shape[0] = 1 + EXPERTS;
  args.hits.dtype = TDM_F32;
  test_expect_failure("floats", TEST_RUN(&rig, moe_fc2, &args), TDM_INVALID_ARGUMENT, "hits|f32");
  test_rig_close(&rig);
}

Test(moe_hits, route_needs_alpha_for_it) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* logits = test_rig_tensor(&rig, "logits", TDM_F32, 2, (int64_t[]){2, 8});
  test_tensor* ids = test_rig_tensor(&rig, "ids", TDM_I32, 2, (int64_t[]){2, 2});
  test_tensor* hits = test_rig_tensor(&rig, "hits", TDM_I32, 1, (int64_t[]){9});
  tdm_moe_route_args args = {
      .size = sizeof args, .logits = logits->view, .ids = ids->view, .hits = hits->view, .top_k = 2};
  test_expect_failure("no alpha", TEST_RUN(&rig, moe_route, &args), TDM_INVALID_ARGUMENT, "hits without alpha");
  test_rig_close(&rig);
}
