#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { POSITIONS = 97 };

/* Where heads and tokens lie. */
typedef enum layout {
  PACKED = 1,
  SLICE, /* the last 64 of heads 192 wide, rows with a gap */
  HEADS_OUTSIDE
} layout;

static const char* const layout_names[] = {"", "packed", "slice", "heads outside"};

static test_tensor* make_heads(test_rig* rig, const char* name, tdm_dtype dtype, int64_t m, int64_t h, layout how) {
  const int64_t shape[] = {m, h, 64};
  if (how == SLICE) return test_rig_strided(rig, name, dtype, 3, shape, (int64_t[]){h * 192 + 8, 192, 1});
  if (how == HEADS_OUTSIDE) return test_rig_strided(rig, name, dtype, 3, shape, (int64_t[]){64, m * 64 + 16, 1});
  return test_rig_tensor(rig, name, dtype, 3, shape);
}

static test_tensor* make_table(test_rig* rig) {
  test_tensor* table = test_rig_strided(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64}, (int64_t[]){68, 1});
  for (int64_t p = 0; p < POSITIONS; p++) {
    for (int64_t i = 0; i < 32; i++) {
      double angle = (double)p * pow(10000.0, -(double)i / 32.0);
      oracle_set(&table->view, p * 64 + i, (float)cos(angle));
      oracle_set(&table->view, p * 64 + 32 + i, (float)sin(angle));
    }
  }
  return table;
}

static test_tensor* make_positions(test_rig* rig, int64_t m) {
  test_tensor* positions = test_rig_tensor(rig, "positions", TDM_I32, 1, (int64_t[]){m});
  for (int64_t i = 0; i < m; i++) {
    *(int32_t*)test_view_at(&positions->view, i) = i == 0 ? POSITIONS - 1 : (int32_t)(i * 29 % POSITIONS);
  }
  return positions;
}

/* One vector, written out style by style. */
static void rotate(const double* x, const double* cs, tdm_rope_style style, bool inverse, double* y) {
  for (int i = 0; i < 32; i++) {
    double c = cs[i], s = inverse ? -cs[32 + i] : cs[32 + i];
    if (style == TDM_ROPE_DEINTERLEAVE) {
      y[i] = x[2 * i] * c - x[2 * i + 1] * s;
      y[32 + i] = x[2 * i + 1] * c + x[2 * i] * s;
    } else if (style == TDM_ROPE_INTERLEAVED) {
      y[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
      y[2 * i + 1] = x[2 * i + 1] * c + x[2 * i] * s;
    } else {
      y[i] = x[i] * c - x[32 + i] * s;
      y[32 + i] = x[32 + i] * c + x[i] * s;
    }
  }
}

/* What `args` should give, [m, h, 64]; free() it. */
static double* expected(const tdm_rope_args* args) {
  int64_t m = args->x.shape[0], h = args->x.shape[1];
  double* x = oracle_values(&args->x);
  double* table = oracle_values(&args->cos_sin);
  double* y = oracle_zeros(m * h * 64);
  for (int64_t i = 0; i < m * h; i++) {
    int32_t position = *(const int32_t*)test_view_at(&args->positions, i / h);
    rotate(x + i * 64, table + position * 64, args->style, args->inverse, y + i * 64);
  }
  free(x);
  free(table);
  return y;
}

typedef struct rope_case {
  int64_t m, h;
  tdm_dtype in, out;
  layout in_layout, out_layout;
  bool in_place;
} rope_case;

static const rope_case cases[] = {
    {1, 1, TDM_F32, TDM_F32, PACKED, PACKED, false},
    {2, 4, TDM_F32, TDM_F32, SLICE, PACKED, false},
    {3, 4, TDM_BF16, TDM_BF16, PACKED, SLICE, false},
    {7, 1, TDM_BF16, TDM_F32, HEADS_OUTSIDE, SLICE, false},
    {16, 3, TDM_F32, TDM_BF16, SLICE, HEADS_OUTSIDE, false},
    {17, 2, TDM_F32, TDM_F32, SLICE, SLICE, true},
    {37, 5, TDM_BF16, TDM_BF16, SLICE, SLICE, true},
    {64, 2, TDM_BF16, TDM_BF16, HEADS_OUTSIDE, HEADS_OUTSIDE, true},
    {65, 1, TDM_F32, TDM_F32, PACKED, PACKED, true},
    {100, 2, TDM_F32, TDM_BF16, PACKED, PACKED, false},
    {129, 3, TDM_BF16, TDM_BF16, PACKED, PACKED, false},
};

static void run_case(const rope_case* c, tdm_rope_style style, bool inverse, int64_t live) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "[%lld, %lld, 64] %s %s to %s %s%s, style %d%s, %lld live", (long long)c->m, (long long)c->h,
                 tdm_dtype_name(c->in), layout_names[c->in_layout], tdm_dtype_name(c->out), layout_names[c->out_layout],
                 c->in_place ? " in place" : "", (int)style, inverse ? " inverse" : "", (long long)live);
  test_tensor* x = make_heads(&rig, "x", c->in, c->m, c->h, c->in_layout);
  test_tensor* out = c->in_place ? x : make_heads(&rig, "out", c->out, c->m, c->h, c->out_layout);
  tdm_rope_args args = {
      .size = sizeof args,
      .x = x->view,
      .positions = make_positions(&rig, c->m)->view,
      .cos_sin = make_table(&rig)->view,
      .out = out->view,
      .style = style,
      .inverse = inverse,
  };
  if (live < c->m) args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)live)->view;
  tdm_view in_part = tdm_view_slice(args.x, 0, 0, live), out_part = tdm_view_slice(args.out, 0, 0, live);
  if (live > 0) {
    test_view_set_normal(&in_part, &rig.random, 1.0f);
    test_tensor_allow(out, &out_part);
  }
  double* ref = expected(&args);
  cr_assert_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
  if (live > 0) oracle_expect_rounded(rig.label, &out_part, ref, 2e-7);
  free(ref);
  test_rig_close(&rig);
}

Test(rope, rotates_as_the_formula) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    for (tdm_rope_style style = TDM_ROPE_DEINTERLEAVE; style <= TDM_ROPE_HALVES; style++) {
      run_case(&cases[i], style, false, cases[i].m);
      run_case(&cases[i], style, true, cases[i].m);
    }
  }
}

Test(rope, leaves_rows_that_are_not_live) {
  for (int64_t live = 0; live < 7; live += 3) run_case(&cases[3], TDM_ROPE_DEINTERLEAVE, false, live);
}

Test(rope, position_of_a_known_angle) {
  /* cos 0.6, sin 0.8: pair (5, 10) turns into (-5, 10). */
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = test_rig_tensor(&rig, "x", TDM_F32, 3, (int64_t[]){1, 1, 64});
  test_tensor* table = test_rig_tensor(&rig, "cos_sin", TDM_F32, 2, (int64_t[]){1, 64});
  test_tensor* position = test_rig_count(&rig, "positions", 0);
  test_tensor* out = test_rig_tensor(&rig, "out", TDM_BF16, 3, (int64_t[]){1, 1, 64});
  test_tensor_allow(out, &out->view);
  for (int i = 0; i < 64; i++) {
    oracle_set(&x->view, i, i % 2 == 0 ? 5.0f : 10.0f);
    oracle_set(&table->view, i, i < 32 ? 0.6f : 0.8f);
  }
  tdm_rope_args args = {.size = sizeof args,
                        .x = x->view,
                        .positions = position->view,
                        .cos_sin = table->view,
                        .out = out->view,
                        .style = TDM_ROPE_DEINTERLEAVE};
  cr_assert_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s", tdm_last_error()->message);
  double* y = oracle_values(&out->view);
  for (int i = 0; i < 64; i++) cr_expect_eq(y[i], i < 32 ? -5.0 : 10.0, "element %d is %g", i, y[i]);
  free(y);
  test_rig_close(&rig);
}

Test(rope, inverse_undoes_what_stays_in_place) {
  for (tdm_rope_style style = TDM_ROPE_INTERLEAVED; style <= TDM_ROPE_HALVES; style++) {
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "style %d", (int)style);
    test_tensor* x = make_heads(&rig, "x", TDM_F32, 37, 3, SLICE);
    test_view_set_normal(&x->view, &rig.random, 1.0f);
    double* before = oracle_values(&x->view);
    test_tensor_allow(x, &x->view);
    tdm_rope_args args = {.size = sizeof args,
                          .x = x->view,
                          .positions = make_positions(&rig, 37)->view,
                          .cos_sin = make_table(&rig)->view,
                          .out = x->view,
                          .style = style};
    cr_assert_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s", tdm_last_error()->message);
    args.inverse = true;
    cr_assert_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s", tdm_last_error()->message);
    oracle_expect_rounded(rig.label, &x->view, before, 5e-7);
    free(before);
    test_rig_close(&rig);
  }
}

Test(rope, nan_and_infinity_stay_in_their_row) {
  static const float poison[] = {NAN, INFINITY, -INFINITY};
  for (size_t i = 0; i < sizeof poison / sizeof poison[0]; i++) {
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "%g in row 2", (double)poison[i]);
    test_tensor* x = make_heads(&rig, "x", TDM_BF16, 5, 2, PACKED);
    test_tensor* out = make_heads(&rig, "out", TDM_BF16, 5, 2, PACKED);
    test_view_set_normal(&x->view, &rig.random, 1.0f);
    oracle_set(&x->view, 2 * 128 + 7, poison[i]);
    test_tensor_allow(out, &out->view);
    tdm_rope_args args = {.size = sizeof args,
                          .x = x->view,
                          .positions = make_positions(&rig, 5)->view,
                          .cos_sin = make_table(&rig)->view,
                          .out = out->view,
                          .style = TDM_ROPE_HALVES};
    double* ref = expected(&args);
    cr_assert_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s", tdm_last_error()->message);
    oracle_expect_rounded(rig.label, &out->view, ref, 2e-7);
    free(ref);
    test_rig_close(&rig);
  }
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_rope_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_rope_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_rope_args, member)

static const test_refusal refusals[] = {
    {"fp8 x", "x|e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"60 values a head", "x|60", {SET(x.shape[2], 60)}},
    {"x of rank 2", "x|rank 2", {SET(x.rank, 2)}},
    {"heads differ", "out|3|4", {SET(out.shape[1], 3)}},
    {"rows differ", "out|4|5", {SET(out.shape[0], 4)}},
    {"heads of out overlap", "out|stride", {SET(out.stride[1], 32)}},
    {"x misaligned", "x|264|16", {SET(x.offset_bytes, 264)}},
    {"values of x apart", "x|stride 2", {SET(x.stride[2], 2)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"positions in f32", "positions|f32", {SET(positions.dtype, TDM_F32)}},
    {"table in bf16", "cos_sin|bf16", {SET(cos_sin.dtype, TDM_BF16)}},
    {"table 32 wide", "cos_sin|32", {SET(cos_sin.shape[1], 32)}},
    {"style left out", "style|0", {SET(style, 0)}},
    {"style unknown", "style|4", {SET(style, 4)}},
    {"out left out", "out|absent", {ABSENT(out)}},
    {"positions left out", "positions|absent", {ABSENT(positions)}},
    {"a count of five", "n_tokens", {COPY(n_tokens, positions)}},
    {"out a little after x", "out|overlaps|x", {COPY(out, x), SET(out.offset_bytes, 320)}},
    {"out in the table", "out|overlaps|cos_sin", {COPY(out.buffer, cos_sin.buffer)}},
};

Test(rope, refuses_bad_arguments) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = make_heads(&rig, "x", TDM_F32, 6, 4, PACKED);
  tdm_rope_args good = {
      .size = sizeof good,
      .x = tdm_view_slice(x->view, 0, 0, 5),
      .positions = make_positions(&rig, 5)->view,
      .cos_sin = make_table(&rig)->view,
      .out = make_heads(&rig, "out", TDM_F32, 5, 4, PACKED)->view,
      .style = TDM_ROPE_DEINTERLEAVE,
  };
  test_rig_refusals(&rig, &tdm_op_rope, &good, TDM_INVALID_ARGUMENT, refusals, sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(rope, refuses_bad_data_and_writes_nothing) {
  static const struct {
    int64_t row;
    int32_t position, count;
    const char* words;
  } bad_data[] = {
      {3, POSITIONS, 5, "rope|position 97|row 3|[0, 97)"},
      {4, -1, 5, "rope|position -1|row 4"},
      {0, INT32_MIN, 5, "rope|position -2147483648|row 0"},
      {0, 0, 6, "rope|6|5"},
      {0, 0, -1, "rope|-1"},
  };
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "bad data %zu", i);
    test_tensor* x = make_heads(&rig, "x", TDM_F32, 5, 4, PACKED);
    test_view_set_normal(&x->view, &rig.random, 1.0f);
    tdm_rope_args args = {
        .size = sizeof args,
        .n_tokens = test_rig_count(&rig, "n_tokens", bad_data[i].count)->view,
        .x = x->view,
        .positions = make_positions(&rig, 5)->view,
        .cos_sin = make_table(&rig)->view,
        .out = make_heads(&rig, "out", TDM_F32, 5, 4, PACKED)->view,
        .style = TDM_ROPE_DEINTERLEAVE,
    };
    *(int32_t*)test_view_at(&args.positions, bad_data[i].row) = bad_data[i].position;
    test_expect_failure(rig.label, TEST_RUN(&rig, rope, &args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&rig);
  }
}

Test(rope, a_position_beyond_the_live_rows_is_not_read) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = make_heads(&rig, "x", TDM_F32, 3, 2, PACKED);
  test_view_set_normal(&x->view, &rig.random, 1.0f);
  test_tensor* out = make_heads(&rig, "out", TDM_F32, 3, 2, PACKED);
  tdm_view live = tdm_view_slice(out->view, 0, 0, 2);
  test_tensor_allow(out, &live);
  tdm_rope_args args = {
      .size = sizeof args,
      .n_tokens = test_rig_count(&rig, "n_tokens", 2)->view,
      .x = x->view,
      .positions = make_positions(&rig, 3)->view,
      .cos_sin = make_table(&rig)->view,
      .out = out->view,
      .style = TDM_ROPE_HALVES,
  };
  *(int32_t*)test_view_at(&args.positions, 2) = -7;
  cr_expect_eq(TEST_RUN(&rig, rope, &args), TDM_OK, "%s", tdm_last_error()->message);
  test_rig_close(&rig);
}
