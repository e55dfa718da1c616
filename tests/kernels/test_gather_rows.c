#include <criterion/criterion.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

typedef struct gather_case {
  int64_t m, l, h;
  int64_t live; /* -1: no count */
  tdm_dtype dtype;
  int64_t x_spare, out_spare;
} gather_case;

static const gather_case cases[] = {
    {1, 1, 1, -1, TDM_F32, 0, 0},      {5, 2, 384, -1, TDM_BF16, 0, 8},   {37, 3, 130, 2, TDM_F32, 6, 0},
    {100, 16, 576, 0, TDM_BF16, 0, 0}, {3, 65, 129, 64, TDM_BF16, 7, 15}, {257, 129, 64, -1, TDM_F32, 0, 0},
};

typedef struct gather {
  test_rig rig;
  test_tensor *x, *rows, *out;
  tdm_gather_rows_args args;
} gather;

static void open_gather(gather* g, const gather_case* c) {
  test_rig* rig = &g->rig;
  test_rig_open(rig);
  test_rig_label(rig, "gather_rows m %lld l %lld h %lld live %lld", (long long)c->m, (long long)c->l, (long long)c->h,
                 (long long)c->live);
  g->x = test_rig_strided(rig, "x", c->dtype, 2, (int64_t[]){c->m, c->h}, (int64_t[]){c->h + c->x_spare, 1});
  g->rows = test_rig_tensor(rig, "rows", TDM_I32, 1, &c->l);
  g->out = test_rig_strided(rig, "out", c->dtype, 2, (int64_t[]){c->l, c->h}, (int64_t[]){c->h + c->out_spare, 1});
  test_view_set_normal(&g->x->view, &rig->random, 1.0f);
  int64_t live = c->live < 0 ? c->l : c->live;
  for (int64_t l = 0; l < live; l++) {
    *(int32_t*)test_view_at(&g->rows->view, l) = (int32_t)test_random_below(&rig->random, c->m);
  }
  if (live > 0) {
    tdm_view written = tdm_view_slice(g->out->view, 0, 0, live);
    test_tensor_allow(g->out, &written);
    *(int32_t*)test_view_at(&g->rows->view, live - 1) = (int32_t)(c->m - 1);
  }
  g->args = (tdm_gather_rows_args){.size = sizeof g->args};
  g->args.x = g->x->view;
  g->args.rows = g->rows->view;
  g->args.out = g->out->view;
  if (c->live >= 0) g->args.n_rows = test_rig_count(rig, "n_rows", (int32_t)c->live)->view;
}

Test(gather_rows, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const gather_case* c = &cases[i];
    gather g;
    open_gather(&g, c);
    cr_assert_eq(TEST_RUN(&g.rig, gather_rows, &g.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t l = 0; l < (c->live < 0 ? c->l : c->live); l++) {
      int32_t row = *(int32_t*)test_view_at(&g.rows->view, l);
      test_expect_bits(g.rig.label, test_view_at(&g.out->view, l * c->h), test_view_at(&g.x->view, row * c->h),
                       c->h * (int64_t)tdm_dtype_bytes(c->dtype));
    }
    test_rig_close(&g.rig);
  }
}

Test(gather_rows, rows_outside_x_fail_the_step) {
  static const int32_t bad[] = {-1, 5};
  for (int i = 0; i < 2; i++) {
    const gather_case c = {5, 4, 16, -1, TDM_BF16, 0, 0};
    gather g;
    open_gather(&g, &c);
    *(int32_t*)test_view_at(&g.rows->view, 1) = bad[i];
    test_expect_failure("row", TEST_RUN(&g.rig, gather_rows, &g.args), TDM_INVALID_ARGUMENT,
                        i == 0 ? "gather_rows|rows[1]|-1|5 rows" : "gather_rows|rows[1] is 5");
    test_rig_close(&g.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_gather_rows_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_gather_rows_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_gather_rows_args, view)

/* Of a call with x [9, 64] bf16, rows [5] and out [5, 64]. */
static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"x has rank 3", "x has rank 3", {SET(x.rank, 3), SET(x.shape[2], 1), SET(x.stride[2], 1)}},
    {"rows is f32", "rows is f32", {SET(rows.dtype, TDM_F32)}},
    {"rows has rank 2", "rows has rank 2", {SET(rows.rank, 2), SET(rows.shape[1], 1), SET(rows.stride[1], 1)}},
    {"out is f32", "out is f32, not bf16", {SET(out.dtype, TDM_F32), SET(out.shape[0], 2)}},
    {"out has 6 rows", "out is [4, 64], not [5, 64]", {SET(out.shape[0], 4)}},
    {"out has 63 columns", "out is [5, 63], not [5, 64]", {SET(out.shape[1], 63)}},
    {"out starts at byte 264", "out starts at byte 264", {SET(out.offset_bytes, 264)}},
    {"out overlaps x", "out|overlaps x", {COPY(out.buffer, x.buffer)}},
    {"n_rows has two elements", "n_rows is i32 [2]", {COPY(n_rows, rows), SET(n_rows.shape[0], 2)}},
};

Test(gather_rows, refusals) {
  const gather_case c = {9, 5, 64, -1, TDM_BF16, 0, 0};
  gather g;
  open_gather(&g, &c);
  test_rig_refusals(&g.rig, &tdm_op_gather_rows, &g.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&g.rig);
}
