#include <criterion/criterion.h>
#include <math.h>

#include "kernels/ops.h"
#include "tests/support/rig.h"

/* Rows of six logits. */
static const struct {
  const char* name;
  float logits[6];
  int32_t expected;
} rows[] = {
    {"the largest", {0.5f, -1.0f, 3.0f, 2.0f, 2.5f, -7.0f}, 2},
    {"the first", {9.0f, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f}, 0},
    {"the last", {1.0f, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f}, 5},
    {"the lower of equals", {0.0f, 4.0f, 1.0f, 4.0f, 4.0f, 0.0f}, 1},
    {"zeros of both signs are equal", {-1.0f, -0.0f, 0.0f, -0.0f, 0.0f, -2.0f}, 1},
    {"NaN first", {NAN, -3.0f, -2.0f, -9.0f, -2.0f, NAN}, 2},
    {"NaN before minus infinity", {NAN, NAN, -INFINITY, NAN, -INFINITY, NAN}, 2},
    {"nothing but NaN", {NAN, NAN, NAN, NAN, NAN, NAN}, 0},
    {"plus infinity", {1.0f, INFINITY, NAN, 3e38f, INFINITY, 0.0f}, 1},
    {"nothing but minus infinity", {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
    {"subnormals", {0.0f, 1e-45f, 3e-45f, -3e-45f, 0.0f, 1e-45f}, 2},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

typedef struct argmax {
  test_rig rig;
  test_tensor *logits, *out;
  tdm_argmax_args args;
} argmax;

static void open_argmax(argmax* a, int64_t l, int64_t v, int64_t spare) {
  test_rig_open(&a->rig);
  test_rig_label(&a->rig, "argmax l %lld v %lld", (long long)l, (long long)v);
  a->logits = test_rig_strided(&a->rig, "logits", TDM_F32, 2, (int64_t[]){l, v}, (int64_t[]){v + spare, 1});
  a->out = test_rig_tensor(&a->rig, "out", TDM_I32, 1, &l);
  a->args = (tdm_argmax_args){.size = sizeof a->args, .logits = a->logits->view, .out = a->out->view};
}

Test(argmax, rows) {
  argmax a;
  open_argmax(&a, ROWS, 6, 2);
  for (int64_t i = 0; i < ROWS * 6; i++) *(float*)test_view_at(&a.logits->view, i) = rows[i / 6].logits[i % 6];
  test_tensor_allow(a.out, &a.out->view);
  cr_assert_eq(TEST_RUN(&a.rig, argmax, &a.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t l = 0; l < ROWS; l++) {
    int32_t got = *(int32_t*)test_view_at(&a.out->view, l);
    cr_expect_eq(got, rows[l].expected, "%s: %d, expected %d", rows[l].name, got, rows[l].expected);
  }
  test_rig_close(&a.rig);
}

static const struct {
  int64_t l, v, live;
} shapes[] = {{1, 1, -1}, {3, 7, 2}, {17, 1025, 17}, {64, 129, 0}, {5, 129280, 3}, {257, 33, 250}};

Test(argmax, shapes) {
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    argmax a;
    int64_t live = shapes[i].live < 0 ? shapes[i].l : shapes[i].live;
    open_argmax(&a, shapes[i].l, shapes[i].v, 0);
    if (shapes[i].live >= 0) a.args.n_rows = test_rig_count(&a.rig, "n_rows", (int32_t)live)->view;
    int32_t expected[257];
    for (int64_t l = 0; l < live; l++) { /* one value of each row is raised above all others */
      tdm_view row = tdm_view_slice(a.logits->view, 0, l, 1);
      test_view_set_normal(&row, &a.rig.random, 1.0f);
      expected[l] = (int32_t)test_random_below(&a.rig.random, shapes[i].v);
      *(float*)test_view_at(&row, expected[l]) = 100.0f;
    }
    if (live > 0) {
      tdm_view written = tdm_view_slice(a.out->view, 0, 0, live);
      test_tensor_allow(a.out, &written);
    }
    cr_assert_eq(TEST_RUN(&a.rig, argmax, &a.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t l = 0; l < live; l++) cr_expect_eq(*(int32_t*)test_view_at(&a.out->view, l), expected[l]);
    test_rig_close(&a.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_argmax_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_argmax_args, member, from)

/* Of a call with logits [5, 64] and out [5]. */
static const test_refusal refusals[] = {
    {"logits is bf16", "logits is bf16, not f32", {SET(logits.dtype, TDM_BF16)}},
    {"logits has rank 1", "logits has rank 1", {SET(logits.rank, 1)}},
    {"logits is absent", "logits", {TEST_ABSENT(tdm_argmax_args, logits)}},
    {"logits is transposed", "logits has last stride 5", {SET(logits.stride[0], 1), SET(logits.stride[1], 5)}},
    {"out is i64", "out is i64", {SET(out.dtype, TDM_I64), SET(out.shape[0], 2)}},
    {"out has 4 elements", "out is [4], not [5]", {SET(out.shape[0], 4)}},
    {"out overlaps logits", "out|overlaps logits", {COPY(out.buffer, logits.buffer)}},
    {"out is n_rows", "out|overlaps n_rows", {COPY(n_rows, out), SET(n_rows.shape[0], 1)}},
};

Test(argmax, refusals) {
  argmax a;
  open_argmax(&a, 5, 64, 0);
  test_rig_refusals(&a.rig, &tdm_op_argmax, &a.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&a.rig);
}
