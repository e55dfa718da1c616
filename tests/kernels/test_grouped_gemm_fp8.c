#include <criterion/criterion.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

enum { MAX_GROUPS = 6 };

typedef struct grouped_case {
  int64_t rows, n, k, groups, max_rows;
  int32_t start[MAX_GROUPS], count[MAX_GROUPS];
  tdm_dtype a, out;
  int64_t out_spare;
} grouped_case;

static const grouped_case cases[] = {
    {1, 1, 128, 1, 0, {0}, {1}, TDM_E4M3, TDM_F32, 0},
    /* contiguous, with empty groups */
    {37, 130, 256, 5, 0, {0, 7, 7, 20, 37}, {7, 0, 13, 17, 0}, TDM_E4M3, TDM_BF16, 0},
    /* masked: a capacity of 8 */
    {32, 200, 384, 4, 8, {0, 8, 16, 24}, {3, 8, 0, 1}, TDM_E4M3, TDM_F32, 4},
    /* any order, gaps */
    {40, 64, 128, 3, 12, {28, 1, 13}, {12, 5, 11}, TDM_E4M3, TDM_BF16, 8},
    /* all to one */
    {130, 128, 128, 4, 0, {0, 0, 0, 130}, {0, 0, 130, 0}, TDM_E4M3, TDM_F32, 0},
    {12, 72, 256, 2, 6, {0, 6}, {6, 2}, TDM_F32, TDM_BF16, 0},
};

typedef struct grouped {
  test_rig rig;
  test_tensor *start, *count, *a, *a_scale, *w, *w_scale, *out;
  tdm_grouped_gemm_fp8_args args;
} grouped;

static void open_grouped(grouped* g, const grouped_case* c) {
  test_rig* rig = &g->rig;
  test_rig_open(rig);
  test_rig_label(rig, "grouped_gemm_fp8 rows %lld n %lld k %lld groups %lld %s", (long long)c->rows, (long long)c->n,
                 (long long)c->k, (long long)c->groups, tdm_dtype_name(c->a));
  g->start = test_rig_tensor(rig, "row_start", TDM_I32, 1, &c->groups);
  g->count = test_rig_tensor(rig, "row_count", TDM_I32, 1, &c->groups);
  g->a_scale = c->a == TDM_E4M3 ? test_rig_scales(rig, "a_scale", c->rows, c->k, 0) : NULL;
  g->a = test_rig_activation(rig, "a", c->a, c->rows, c->k, c->k, 2.0f, g->a_scale);
  g->w = test_rig_tensor(rig, "w", TDM_E4M3, 3, (int64_t[]){c->groups, c->n, c->k});
  g->w_scale = test_rig_tensor(rig, "w_scale", TDM_F32, 3, (int64_t[]){c->groups, (c->n + 127) / 128, c->k / 128});
  g->out = test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->rows, c->n}, (int64_t[]){c->n + c->out_spare, 1});
  test_view_set_normal(&g->w->view, &rig->random, 100.0f);
  for (int64_t i = 0; i < test_view_count(&g->w_scale->view); i++)
    *(float*)test_view_at(&g->w_scale->view, i) = test_random_uniform(&rig->random, 1e-4f, 4e-4f);
  for (int64_t i = 0; i < c->groups; i++) {
    *(int32_t*)test_view_at(&g->start->view, i) = c->start[i];
    *(int32_t*)test_view_at(&g->count->view, i) = c->count[i];
    if (c->count[i] == 0) continue;
    tdm_view written = tdm_view_slice(g->out->view, 0, c->start[i], c->count[i]);
    test_tensor_allow(g->out, &written);
  }
  g->args = (tdm_grouped_gemm_fp8_args){.size = sizeof g->args,
                                        .row_start = g->start->view,
                                        .row_count = g->count->view,
                                        .a = g->a->view,
                                        .w = g->w->view,
                                        .w_scale = g->w_scale->view,
                                        .out = g->out->view,
                                        .max_rows = c->max_rows};
  if (g->a_scale != NULL) g->args.a_scale = g->a_scale->view;
}

static tdm_view matrix_of(const tdm_view* view, int64_t group) {
  tdm_view matrix = tdm_view_slice(*view, 0, group, 1);
  matrix.rank = 2;
  for (int i = 0; i < 2; i++) {
    matrix.shape[i] = view->shape[i + 1];
    matrix.stride[i] = view->stride[i + 1];
  }
  return matrix;
}

/* A group's rows have the bits that gemm_fp8 gives them with its weights. */
Test(grouped_gemm_fp8, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const grouped_case* c = &cases[i];
    grouped g;
    open_grouped(&g, c);
    test_tensor* all = test_rig_tensor(&g.rig, "all", c->out, 2, (int64_t[]){c->rows, c->n});
    test_tensor_allow(all, &all->view);
    int64_t scales = (c->n + 127) / 128 * (c->k / 128);
    test_tensor* scale = test_rig_tensor(&g.rig, "scale", TDM_F32, 2, (int64_t[]){(c->n + 127) / 128, c->k / 128});
    cr_assert_eq(TEST_RUN(&g.rig, grouped_gemm_fp8, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t group = 0; group < c->groups; group++) {
      memcpy(test_view_at(&scale->view, 0), test_view_at(&g.w_scale->view, group * scales), (size_t)scales * 4);
      tdm_gemm_fp8_args one = {.size = sizeof one,
                               .a = g.args.a,
                               .a_scale = g.args.a_scale,
                               .w = matrix_of(&g.args.w, group),
                               .w_scale = scale->view,
                               .out = all->view};
      cr_assert_eq(TEST_RUN(&g.rig, gemm_fp8, &one), TDM_OK, "%s", tdm_last_error()->message);
      for (int64_t row = c->start[group]; row < c->start[group] + c->count[group]; row++)
        test_expect_bits(g.rig.label, test_view_at(&g.out->view, row * c->n), test_view_at(&all->view, row * c->n),
                         c->n * (int64_t)tdm_dtype_bytes(c->out));
    }
    cr_expect_eq(test_rig_run_direct(&g.rig, &tdm_op_grouped_gemm_fp8, &g.args), TDM_OK);
    test_rig_close(&g.rig);
  }
}

/* Groups that the operands do not hold. */
Test(grouped_gemm_fp8, groups_outside_fail_the_step) {
  static const struct {
    int32_t start, count;
  } bad[] = {{-1, 2}, {3, -1}, {6, 5}, {0, 9}, {INT32_MAX, 1}, {0, INT32_MAX}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    const grouped_case c = {10, 16, 128, 2, 8, {0, 0}, {0, 0}, TDM_E4M3, TDM_F32, 0};
    grouped g;
    open_grouped(&g, &c);
    *(int32_t*)test_view_at(&g.start->view, 1) = bad[i].start;
    *(int32_t*)test_view_at(&g.count->view, 1) = bad[i].count;
    test_expect_failure("a group outside", TEST_RUN(&g.rig, grouped_gemm_fp8, &g.args), TDM_INVALID_ARGUMENT,
                        "grouped_gemm_fp8|group 1|10 rows|at most 8");
    test_rig_close(&g.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_grouped_gemm_fp8_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_grouped_gemm_fp8_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_grouped_gemm_fp8_args, view)

/* Of a call with a [10, 256], w [2, 200, 256]. */
static const test_refusal refusals[] = {
    {"a is bf16", "a is bf16, not f32 or e4m3", {SET(a.dtype, TDM_BF16), SET(a.shape[0], 4)}},
    {"a is absent", "a", {ABSENT(a)}},
    {"K is 200", "200", {SET(a.shape[1], 200), SET(w.shape[2], 200)}},
    {"w has 128 columns", "w is [2, 200, 128], not", {SET(w.shape[2], 128)}},
    {"w has rank 2", "w has rank 2", {SET(w.rank, 2)}},
    {"w is f32", "w is f32, not e4m3", {SET(w.dtype, TDM_F32), SET(w.shape[1], 40), SET(w.stride[0], 10240)}},
    {"row_start is f32", "row_start is f32", {SET(row_start.dtype, TDM_F32)}},
    {"row_start has 1 element", "row_start is [1], not [2]", {SET(row_start.shape[0], 1)}},
    {"row_count is absent", "row_count", {ABSENT(row_count)}},
    {"row_count has 1 element", "row_count is [1], not [2]", {SET(row_count.shape[0], 1)}},
    {"a_scale is absent", "a is e4m3 but a_scale is absent", {ABSENT(a_scale)}},
    {"a_scale is for 9 rows", "a_scale is [2, 9], not [2, 10]", {SET(a_scale.shape[1], 9)}},
    {"w_scale has 1 row", "w_scale is [2, 1, 2], not [2, 2, 2]", {SET(w_scale.shape[1], 1)}},
    {"out has 199 columns", "out is [10, 199], not [10, 200]", {SET(out.shape[1], 199)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"max_rows is -1", "max_rows is -1", {SET(max_rows, -1)}},
    {"max_rows is 11", "max_rows is 11, neither 0 (all) nor 1 to the 10 rows", {SET(max_rows, 11)}},
    {"out is a's memory", "out|overlaps a", {COPY(a.buffer, out.buffer)}},
};

Test(grouped_gemm_fp8, refusals) {
  const grouped_case c = {10, 200, 256, 2, 0, {0, 5}, {5, 5}, TDM_E4M3, TDM_F32, 0};
  grouped g;
  open_grouped(&g, &c);
  test_rig_refusals(&g.rig, &tdm_op_grouped_gemm_fp8, &g.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&g.rig);
}
