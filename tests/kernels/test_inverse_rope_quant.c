#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/common/convert.h"
#include "kernels/inverse_rope_quant/inverse_rope_quant_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

enum { POSITIONS = 97 };

typedef struct rope_case {
  int64_t m, h, d, g;
  int64_t live; /* -1: no count */
  tdm_dtype dtype;
  tdm_rope_style style;
  bool pow2;
  int64_t head_gap, row_gap, q_gap, scale_gap; /* elements of x; rows of out_q between groups; columns / 4 of scales */
} rope_case;

#define PAIRS  TDM_ROPE_INTERLEAVED
#define HALVES TDM_ROPE_HALVES
static const rope_case cases[] = {
    {1, 8, 512, 2, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0},
    {2, 4, 512, 4, -1, TDM_F32, HALVES, true, 0, 0, 0, 0},
    {3, 2, 128, 1, 2, TDM_BF16, HALVES, false, 0, 0, 1, 1},
    {7, 6, 256, 3, -1, TDM_F32, PAIRS, false, 64, 8, 0, 0},
    {16, 4, 384, 2, 16, TDM_BF16, PAIRS, true, 0, 0, 2, 0},
    {17, 2, 512, 1, 0, TDM_BF16, HALVES, false, 0, 0, 0, 2},
    {37, 8, 512, 8, 33, TDM_BF16, PAIRS, false, 3, 1, 0, 1},
    {64, 2, 128, 2, -1, TDM_F32, HALVES, true, 0, 0, 0, 0},
    {65, 2, 128, 1, 64, TDM_BF16, PAIRS, false, 0, 0, 3, 0},
    {100, 3, 128, 3, -1, TDM_BF16, HALVES, false, 0, 16, 0, 0},
    {128, 1, 256, 1, -1, TDM_F32, PAIRS, true, 0, 0, 0, 0},
    {129, 2, 128, 2, 127, TDM_BF16, PAIRS, false, 0, 0, 0, 0},
    {257, 1, 128, 1, -1, TDM_BF16, PAIRS, true, 0, 0, 0, 1},
    {1025, 1, 128, 1, 1023, TDM_BF16, HALVES, false, 0, 0, 0, 0},
    {1500, 2, 128, 2, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0},
};

typedef struct rope_quant {
  test_rig rig;
  test_tensor *x, *q, *scale, *positions;
  tdm_inverse_rope_quant_args args;
} rope_quant;

static void open_case(rope_quant* r, const rope_case* c) {
  test_rig* rig = &r->rig;
  test_rig_open(rig);
  test_rig_label(rig, "m %lld h %lld d %lld g %lld live %lld %s style %d", (long long)c->m, (long long)c->h,
                 (long long)c->d, (long long)c->g, (long long)c->live, tdm_dtype_name(c->dtype), (int)c->style);
  int64_t k = c->h / c->g * c->d, head = c->d + c->head_gap, stride = tdm_scale_stride(c->m) + 4 * c->scale_gap;
  r->x = test_rig_strided(rig, "x", c->dtype, 3, (int64_t[]){c->m, c->h, c->d},
                          (int64_t[]){c->h * head + c->row_gap, head, 1});
  r->q =
      test_rig_strided(rig, "out_q", TDM_E4M3, 3, (int64_t[]){c->g, c->m, k}, (int64_t[]){(c->m + c->q_gap) * k, k, 1});
  r->scale = &rig->tensors[rig->n_tensors];
  rig->names[rig->n_tensors++] = "out_scale";
  test_tensor_init(r->scale, rig->runtime, TDM_F32, 3, (int64_t[]){c->g, k / 128, c->m},
                   (int64_t[]){k / 128 * stride, stride, 1}, 3);
  test_tensor* table = test_rig_strided(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64}, (int64_t[]){68, 1});
  r->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, (int64_t[]){c->m});
  for (int64_t p = 0; p < POSITIONS; p++) {
    for (int64_t i = 0; i < 32; i++) {
      double angle = (double)p * pow(10000.0, -(double)i / 32.0);
      oracle_set(&table->view, p * 64 + i, (float)cos(angle));
      oracle_set(&table->view, p * 64 + 32 + i, (float)sin(angle));
    }
  }
  for (int64_t i = 0; i < c->m; i++)
    *(int32_t*)test_view_at(&r->positions->view, i) = (int32_t)((i * 29 + 7) % POSITIONS);
  int64_t live = c->live < 0 ? c->m : c->live;
  test_view_set_normal(&r->x->view, &rig->random, 2.0f);
  if (live < c->m) {
    tdm_view dead = tdm_view_slice(r->x->view, 0, live, c->m - live);
    test_view_poison(&dead);
    *(int32_t*)test_view_at(&r->positions->view, live) = -7; /* must not be read */
  }
  if (live > 0) {
    tdm_view written = tdm_view_slice(r->q->view, 1, 0, live);
    test_tensor_allow(r->q, &written);
    tdm_view padded = r->scale->view;
    padded.shape[2] = tdm_scale_stride(live);
    test_tensor_allow(r->scale, &padded);
  }
  r->args = (tdm_inverse_rope_quant_args){.size = sizeof r->args,
                                          .x = r->x->view,
                                          .positions = r->positions->view,
                                          .cos_sin = table->view,
                                          .out_q = r->q->view,
                                          .out_scale = r->scale->view,
                                          .style = c->style,
                                          .pow2_scale = c->pow2};
  if (c->live >= 0) r->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* Value `i` of a head after the inverse rotation, every product and sum rounded. */
static float rotated(const double* head, int64_t d, int64_t i, const double* angles, tdm_rope_style style) {
  if (i < d - 64) return (float)head[i];
  const double* x = head + d - 64;
  int64_t e = i - (d - 64), pair = style == HALVES ? e % 32 : e / 2;
  bool second = style == HALVES ? e >= 32 : e % 2 != 0;
  int64_t other = style == HALVES ? (second ? e - 32 : e + 32) : (second ? e - 1 : e + 1);
  float straight = (float)(x[e] * angles[pair]), crossed = (float)(x[other] * angles[32 + pair]);
  return (float)((double)straight + (second ? -(double)crossed : (double)crossed));
}

static float block_scale(const float* values, float eps, bool pow2) {
  float amax = eps;
  for (int i = 0; i < 128; i++) amax = fmaxf(amax, fabsf(values[i]));
  float scale = amax * (1.0f / 448.0f);
  if (!pow2) return scale;
  int exponent;
  float fraction = frexpf(scale, &exponent);
  return ldexpf(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
}

Test(inverse_rope_quant, cases) {
  for (size_t n = 0; n < sizeof cases / sizeof cases[0]; n++) {
    const rope_case* c = &cases[n];
    int64_t live = c->live < 0 ? c->m : c->live, k = c->h / c->g * c->d;
    rope_quant r;
    open_case(&r, c);
    if (live > 0) /* a head of zeros of both signs */
      for (int64_t i = 0; i < c->d; i++) oracle_set(&r.args.x, i, i % 2 ? 0.0f : -0.0f);
    cr_assert_eq(TEST_RUN(&r.rig, inverse_rope_quant, &r.args), TDM_OK, "%s: %s", r.rig.label,
                 tdm_last_error()->message);
    double *x = oracle_values(&r.args.x), *table = oracle_values(&r.args.cos_sin);
    for (int64_t t = 0; t < live; t++) {
      const double* angles = table + *(int32_t*)test_view_at(&r.args.positions, t) * 64;
      for (int64_t block = 0; block < c->h * c->d / 128; block++) {
        int64_t h = block * 128 / c->d, g = h / (c->h / c->g), first = block * 128 % c->d;
        int64_t column = h % (c->h / c->g) * c->d + first;
        float values[128];
        for (int64_t i = 0; i < 128; i++)
          values[i] = rotated(x + (t * c->h + h) * c->d, c->d, first + i, angles, c->style);
        float want = block_scale(values, 1e-10f, c->pow2);
        float got = *(float*)test_view_at(&r.args.out_scale, (g * (k / 128) + column / 128) * c->m + t);
        cr_assert_eq(got, want, "%s: scale (%lld, %lld, %lld) is %.9g, expected %.9g", r.rig.label, (long long)g,
                     (long long)column, (long long)t, (double)got, (double)want);
        for (int64_t i = 0; i < 128; i++) {
          uint8_t code = *(uint8_t*)test_view_at(&r.args.out_q, (g * c->m + t) * k + column + i);
          uint8_t expected = tdm_f32_to_e4m3(values[i] / want);
          cr_assert_eq(code, expected, "%s: (%lld, %lld, %lld) is 0x%02x, expected 0x%02x", r.rig.label, (long long)g,
                       (long long)t, (long long)(column + i), code, expected);
        }
      }
    }
    for (int64_t row = 0; row < c->h * c->d / 128 && live > 0; row++) {
      const float* scales = test_view_at(&r.args.out_scale, row * c->m);
      for (int64_t t = live; t < tdm_scale_stride(live); t++)
        cr_assert_eq(scales[t], 0.0f, "%s: pad %lld of row %lld", r.rig.label, (long long)t, (long long)row);
    }
    cr_expect_eq(test_rig_run_direct(&r.rig, &tdm_op_inverse_rope_quant, &r.args), TDM_OK);
    free(x);
    free(table);
    test_rig_close(&r.rig);
  }
}

/* The same bits as rope into f32 and quant, one after the other. */
Test(inverse_rope_quant, is_rope_then_quant) {
  const rope_case c = {9, 4, 512, 2, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0};
  rope_quant r;
  open_case(&r, &c);
  test_rig* rig = &r.rig;
  test_tensor* turned = test_rig_tensor(rig, "turned", TDM_F32, 3, (int64_t[]){9, 4, 512});
  test_tensor* q = test_rig_tensor(rig, "q", TDM_E4M3, 2, (int64_t[]){9, 2048});
  test_tensor* scale = test_rig_scales(rig, "scale", 9, 2048, 0);
  double* x = oracle_values(&r.args.x);
  for (int64_t i = 0; i < 9 * 2048; i++) oracle_set(&turned->view, i, (float)x[i]);
  free(x);
  tdm_rope_args rope = {.size = sizeof rope,
                        .x = tdm_view_slice(r.args.x, 2, 448, 64),
                        .positions = r.args.positions,
                        .cos_sin = r.args.cos_sin,
                        .out = tdm_view_slice(turned->view, 2, 448, 64),
                        .style = PAIRS,
                        .inverse = true};
  tdm_quant_args quant = {
      .size = sizeof quant, .x = turned->view, .out_q = q->view, .out_scale = scale->view, .quant_eps = 1e-10f};
  quant.x.rank = 2, quant.x.shape[1] = quant.x.stride[0] = 2048, quant.x.stride[1] = 1;
  test_tensor_allow(turned, &rope.out);
  test_tensor_allow(q, &q->view);
  test_allow_scales(scale, 9);
  cr_assert_eq(TEST_RUN(rig, rope, &rope), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, quant, &quant), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, inverse_rope_quant, &r.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t g = 0; g < 2; g++) {
    tdm_view part = tdm_view_slice(q->view, 1, g * 1024, 1024), scales = tdm_view_slice(scale->view, 0, g * 8, 8);
    tdm_view mine = tdm_view_slice(r.args.out_q, 0, g, 1), my_scales = tdm_view_slice(r.args.out_scale, 0, g, 1);
    tdm_view* flat[] = {&mine, &my_scales};
    for (int i = 0; i < 2; i++) {
      flat[i]->rank = 2;
      for (int d = 0; d < 2; d++) {
        flat[i]->shape[d] = flat[i]->shape[d + 1];
        flat[i]->stride[d] = flat[i]->stride[d + 1];
      }
    }
    oracle_expect_same_bits("values", &mine, &part);
    oracle_expect_same_bits("scales", &my_scales, &scales);
  }
  test_rig_close(rig);
}

/* Its outputs are bmm_fp8's operands as they are; the product is that of the rotated values up to quantisation. */
Test(inverse_rope_quant, feeds_bmm_fp8) {
  enum { M = 37, H = 4, G = 2, K = H / G * 512, N = 16 };
  const rope_case c = {M, H, 512, G, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0};
  rope_quant r;
  open_case(&r, &c);
  test_rig* rig = &r.rig;
  test_tensor* w = test_rig_tensor(rig, "w", TDM_E4M3, 3, (int64_t[]){G, N, K});
  test_tensor* w_scale = test_rig_tensor(rig, "w_scale", TDM_F32, 3, (int64_t[]){G, 1, K / 128});
  test_tensor* out = test_rig_tensor(rig, "out", TDM_F32, 2, (int64_t[]){M, G * N});
  test_view_set_normal(&w->view, &rig->random, 100.0f);
  for (int64_t i = 0; i < G * K / 128; i++) oracle_set(&w_scale->view, i, 0.001f * (float)(1 + i % 3));
  test_tensor_allow(out, &out->view);
  tdm_bmm_fp8_args bmm = {.size = sizeof bmm,
                          .a = r.args.out_q,
                          .a_scale = r.args.out_scale,
                          .w = w->view,
                          .w_scale = w_scale->view,
                          .out = out->view};
  cr_assert_eq(TEST_RUN(rig, inverse_rope_quant, &r.args), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, bmm_fp8, &bmm), TDM_OK, "%s", tdm_last_error()->message);
  double *x = oracle_values(&r.args.x), *table = oracle_values(&r.args.cos_sin), *y = oracle_values(&w->view);
  double *scales = oracle_values(&w_scale->view), *expected = oracle_zeros(M * G * N);
  for (int64_t t = 0; t < M; t++) {
    const double* angles = table + *(int32_t*)test_view_at(&r.args.positions, t) * 64;
    for (int64_t column = 0; column < G * N; column++) {
      for (int64_t k = 0; k < K; k++) {
        int64_t head = column / N * (H / G) + k / 512;
        expected[t * G * N + column] += (double)rotated(x + (t * H + head) * 512, 512, k % 512, angles, PAIRS) *
                                        y[column * K + k] * scales[column / N * (K / 128) + k / 128];
      }
    }
  }
  float* values = test_view_values(&out->view);
  test_expect_close(rig->label, values, expected, M, G * N, 4e-2);
  free(x);
  free(table);
  free(y);
  free(scales);
  free(expected);
  free(values);
  test_rig_close(rig);
}

Test(inverse_rope_quant, nan_and_infinity_stay_in_their_block) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  static const int64_t places[] = {3, 128, 500}; /* of a head; the last is rotated */
  const rope_case c = {5, 2, 512, 2, -1, TDM_BF16, HALVES, false, 0, 0, 0, 0};
  for (int n = 0; n < 9; n++) {
    rope_quant r;
    open_case(&r, &c);
    oracle_set(&r.args.x, (2 * 2 + 1) * 512 + places[n / 3], bad[n % 3]); /* token 2, head 1 */
    cr_assert_eq(TEST_RUN(&r.rig, inverse_rope_quant, &r.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t row = 0; row < 8; row++) {
      for (int64_t t = 0; t < 5; t++) {
        bool here = t == 2 && row == 4 + places[n / 3] / 128;
        cr_expect_eq(isnan(*(float*)test_view_at(&r.args.out_scale, row * 5 + t)), here, "%d: (%lld, %lld)", n,
                     (long long)row, (long long)t);
        for (int64_t i = 0; i < 128; i++) {
          uint8_t code = *(uint8_t*)test_view_at(&r.args.out_q, (row / 4 * 5 + t) * 512 + row % 4 * 128 + i);
          cr_expect_eq((code & 0x7f) == 0x7f, here, "%d: (%lld, %lld, %lld)", n, (long long)row, (long long)t,
                       (long long)i);
        }
      }
    }
    test_rig_close(&r.rig);
  }
}

#define SET(member, value)       TEST_SET(tdm_inverse_rope_quant_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_inverse_rope_quant_args, member, value)
#define COPY(member, from)       TEST_COPY(tdm_inverse_rope_quant_args, member, from)
#define ABSENT(member)           TEST_ABSENT(tdm_inverse_rope_quant_args, member)

/* Of a call with x [5, 4, 256], out_q [2, 5, 512]. */
static const test_refusal refusals[] = {
    {"fp8 x", "x is e4m3, not f32 or bf16", {SET(x.dtype, TDM_E4M3)}},
    {"x of rank 2", "x has rank 2, not 3", {SET(x.rank, 2)}},
    {"x misaligned", "x starts at byte 264", {SET(x.offset_bytes, 264)}},
    {"values of x apart", "x has last stride 2", {SET(x.stride[2], 2), SET(x.shape[0], 1)}},
    {"x left out", "x|absent", {ABSENT(x)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"positions in f32", "positions is f32, not i32", {SET(positions.dtype, TDM_F32)}},
    {"positions left out", "positions|absent", {ABSENT(positions)}},
    {"table in bf16", "cos_sin is bf16", {SET(cos_sin.dtype, TDM_BF16)}},
    {"table left out", "cos_sin|absent", {ABSENT(cos_sin)}},
    {"style left out", "style is 0", {SET(style, 0)}},
    {"style unknown", "style is 4", {SET(style, 4)}},
    {"out_q in bf16", "out_q is bf16, not e4m3", {SET(out_q.dtype, TDM_BF16), SET(out_q.shape[0], 1)}},
    {"out_q of rank 2", "out_q has rank 2, not 3", {SET(out_q.rank, 2)}},
    {"out_q has 4 rows", "out_q is [2, 4, 512], not [*, 5, *]", {SET(out_q.shape[1], 4)}},
    {"one group", "out_q has 1 groups of 512 columns for 4 heads of 256 values", {SET(out_q.shape[0], 1)}},
    {"256 columns", "out_q has 2 groups of 256 columns", {SET(out_q.shape[2], 256)}},
    {"3 heads", "2 groups of 512 columns for 3 heads", {SET(x.shape[1], 3)}},
    {"out_q left out", "out_q|absent", {ABSENT(out_q)}},
    {"scales of 4 tokens", "out_scale is [2, 4, 4], not [2, 4, 5]", {SET(out_scale.shape[2], 4)}},
    {"scales with row stride 5", "out_scale has row stride 5|8", {SET(out_scale.stride[1], 5)}},
    {"scales with group stride 30", "out_scale|stride 30|32", {SET(out_scale.stride[0], 30)}},
    {"scales in bf16", "out_scale is bf16", {SET(out_scale.dtype, TDM_BF16)}},
    {"scales left out", "out_scale|absent", {ABSENT(out_scale)}},
    {"quant_eps is negative", "quant_eps|-0.0001", {SET_FLOAT(quant_eps, -1e-4f)}},
    {"quant_eps is NaN", "quant_eps|nan", {SET_FLOAT(quant_eps, NAN)}},
    {"a count of five", "n_tokens", {COPY(n_tokens, positions)}},
    {"out_q in x", "out_q|overlaps x", {COPY(out_q.buffer, x.buffer)}},
};

static const test_refusal limits[] = {
    {"heads of 200", "heads of 200 values|128", {SET(x.shape[2], 200)}},
    {"a table 32 wide", "cos_sin is 32 wide|64", {SET(cos_sin.shape[1], 32)}},
    {"deinterleave", "style is 1", {SET(style, TDM_ROPE_DEINTERLEAVE)}},
};

Test(inverse_rope_quant, refusals) {
  const rope_case c = {5, 4, 256, 2, -1, TDM_F32, PAIRS, false, 0, 0, 0, 0};
  rope_quant r;
  open_case(&r, &c);
  test_rig_refusals(&r.rig, &tdm_op_inverse_rope_quant, &r.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_refusals(&r.rig, &tdm_op_inverse_rope_quant, &r.args, TDM_UNSUPPORTED, limits,
                    sizeof limits / sizeof limits[0]);
  test_rig_close(&r.rig);
}

Test(inverse_rope_quant, bad_data) {
  static const struct {
    int64_t row;
    int32_t position, count;
    const char* words;
  } bad[] = {{3, POSITIONS, 5, "inverse_rope_quant|position 97|row 3|[0, 97)"},
             {4, -1, 5, "inverse_rope_quant|position -1|row 4"},
             {0, 0, 6, "inverse_rope_quant|6|5"},
             {0, 0, -1, "inverse_rope_quant|-1"}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    const rope_case c = {5, 2, 128, 1, 0, TDM_BF16, PAIRS, false, 0, 0, 0, 0};
    rope_quant r;
    open_case(&r, &c);
    *(int32_t*)test_view_at(&r.args.positions, 0) = 0;
    *(int32_t*)test_view_at(&r.args.positions, bad[i].row) = bad[i].position;
    *(int32_t*)test_view_at(&r.args.n_tokens, 0) = bad[i].count;
    test_expect_failure("bad data", TEST_RUN(&r.rig, inverse_rope_quant, &r.args), TDM_INVALID_ARGUMENT, bad[i].words);
    test_rig_close(&r.rig);
  }
}

/* Which kernel, and a grid within the SM budget. */
Test(inverse_rope_quant, plan) {
  static const struct {
    rope_case c;
    const char* kernel;
  } plans[] = {
      {{9, 4, 512, 2, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0}, "tdm_inverse_rope_quant_d512_pairs_sm90"},
      {{9, 4, 512, 2, -1, TDM_BF16, HALVES, false, 8, 16, 0, 0}, "tdm_inverse_rope_quant_d512_halves_sm90"},
      {{9, 4, 512, 2, -1, TDM_BF16, HALVES, false, 4, 0, 0, 0}, "tdm_inverse_rope_quant_any_sm90"},
      {{9, 4, 512, 2, -1, TDM_F32, PAIRS, false, 0, 0, 0, 0}, "tdm_inverse_rope_quant_any_sm90"},
      {{9, 4, 256, 2, -1, TDM_BF16, PAIRS, false, 0, 0, 0, 0}, "tdm_inverse_rope_quant_any_sm90"},
  };
  for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
    rope_quant r;
    open_case(&r, &plans[i].c);
    for (int32_t sms = 1; sms <= 132; sms += 131) {
      tdm_plan plan = {.variant = "ref", .splits = 1};
      tdm_op_inverse_rope_quant.plan(&r.args, sms, &plan);
      cr_expect_str_eq(plan.variant, plans[i].kernel);
      tdm_inverse_rope_quant_params params;
      tdm_kernel_launch launch;
      tdm_inverse_rope_quant_sm90_params(&r.args, &params);
      tdm_inverse_rope_quant_sm90_plan(&params, sms, &launch);
      cr_expect_geq(launch.grid, 1);
      cr_expect_leq(launch.grid, (uint32_t)sms * 8);
    }
    const int64_t* x = r.args.x.shape;
    tdm_plan plan = {.variant = "ref", .splits = 1};
    tdm_op_inverse_rope_quant.plan(&r.args, 0, &plan);
    double values = (double)(x[0] * x[1] * x[2]);
    cr_expect_eq(plan.bytes, values * (double)tdm_dtype_bytes(r.args.x.dtype) + values + values / 32 + 9.0 * (4 + 256));
    test_rig_close(&r.rig);
  }
}
