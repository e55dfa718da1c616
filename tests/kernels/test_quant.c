#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/rig.h"

typedef struct quant_case {
  int64_t m, k;
  int64_t live; /* -1: no count */
  tdm_dtype dtype;
  bool pow2;
  int64_t x_spare, q_spare, scale_spare; /* how much wider than needed the strides are */
} quant_case;

static const quant_case cases[] = {
    {1, 128, -1, TDM_BF16, false, 0, 0, 0},      {2, 256, -1, TDM_F32, false, 8, 0, 0},
    {3, 384, -1, TDM_BF16, true, 0, 16, 4},      {7, 128, 5, TDM_F32, true, 128, 128, 8},
    {16, 512, 16, TDM_BF16, false, 64, 0, 0},    {17, 128, 0, TDM_BF16, false, 0, 0, 0},
    {37, 7168, 33, TDM_BF16, false, 0, 0, 0},    {64, 256, 1, TDM_F32, false, 0, 0, 0},
    {65, 384, -1, TDM_BF16, true, 0, 0, 12},     {100, 128, 99, TDM_BF16, false, 1024, 16, 0},
    {128, 128, -1, TDM_F32, false, 0, 0, 0},     {129, 256, 128, TDM_BF16, true, 0, 0, 0},
    {257, 384, 254, TDM_BF16, false, 0, 32, 32},
};

/* The scale as the formula says, without the op's code. */
static float block_scale(const float* values, float eps, bool pow2) {
  float amax = eps;
  for (int i = 0; i < 128; i++) amax = fmaxf(amax, fabsf(values[i]));
  float scale = amax * (1.0f / 448.0f);
  if (!pow2) return scale;
  int exponent;
  float fraction = frexpf(scale, &exponent); /* in [1/2, 1) */
  return ldexpf(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
}

Test(quant, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const quant_case* c = &cases[i];
    int64_t live = c->live < 0 ? c->m : c->live;
    test_rig rig;
    test_rig_open(&rig);
    test_rig_label(&rig, "quant m %lld k %lld live %lld", (long long)c->m, (long long)c->k, (long long)c->live);
    test_tensor* x = test_rig_activation(&rig, "x", c->dtype, c->m, c->k, c->k + c->x_spare, 3.0f, NULL);
    test_tensor* q =
        test_rig_strided(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){c->m, c->k}, (int64_t[]){c->k + c->q_spare, 1});
    test_tensor* scales = test_rig_scales(&rig, "out_scale", c->m, c->k, c->scale_spare);
    /* A block of zeros, one below the floor of amax, and one that has its largest value at the end. */
    for (int64_t j = 0; j < 128; j++) {
      tdm_store_f32(test_view_at(&x->view, j), c->dtype, 0, c->m % 2 == 0 ? 0.0f : 1e-7f);
    }
    tdm_store_f32(test_view_at(&x->view, c->m * c->k - 1), c->dtype, 0, -100.0f);
    if (live < c->m) {
      tdm_view dead = tdm_view_slice(x->view, 0, live, c->m - live);
      test_view_poison(&dead);
    }
    if (live > 0) {
      tdm_view written = tdm_view_slice(q->view, 0, 0, live);
      test_tensor_allow(q, &written);
    }
    test_allow_scales(scales, live);
    tdm_quant_args args = {.size = sizeof args, .x = x->view, .out_q = q->view, .out_scale = scales->view};
    args.pow2_scale = c->pow2;
    if (c->live >= 0) args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)c->live)->view;
    cr_assert_eq(TEST_RUN(&rig, quant, &args), TDM_OK, "%s", tdm_last_error()->message);
    test_expect_zero_pads(&rig, scales, live);
    for (int64_t m = 0; m < live; m++) {
      for (int64_t block = 0; block < c->k / 128; block++) {
        float values[128];
        for (int64_t j = 0; j < 128; j++) {
          values[j] = tdm_load_f32(test_view_at(&x->view, m * c->k + block * 128 + j), c->dtype, 0);
        }
        float scale = block_scale(values, 1e-4f, c->pow2);
        float got = *(float*)test_view_at(&scales->view, block * c->m + m);
        cr_assert_eq(got, scale, "%s: scale (%lld, %lld) is %.9g, expected %.9g", rig.label, (long long)m,
                     (long long)block, (double)got, (double)scale);
        for (int64_t j = 0; j < 128; j++) {
          uint8_t code = *(uint8_t*)test_view_at(&q->view, m * c->k + block * 128 + j);
          uint8_t expected = tdm_f32_to_e4m3(values[j] / scale);
          cr_assert_eq(code, expected, "%s: (%lld, %lld) is 0x%02x, expected 0x%02x", rig.label, (long long)m,
                       (long long)(block * 128 + j), code, expected);
        }
      }
    }
    cr_assert_eq(test_rig_run_direct(&rig, &tdm_op_quant, &args), TDM_OK);
    test_rig_close(&rig);
  }
}

/* What the block's own function gives at the edges. */
Test(quant, block) {
  float values[128];
  uint8_t codes[128];
  for (int i = 0; i < 128; i++) values[i] = i % 2 == 0 ? 448.0f : -448.0f;
  cr_expect_eq(tdm_quant_block(values, codes, 1e-4f, false), 448.0f * (1.0f / 448.0f));
  cr_expect_eq(codes[0], 0x7e);
  cr_expect_eq(codes[1], 0xfe);
  for (int i = 0; i < 128; i++) values[i] = 0.0f;
  cr_expect_eq(tdm_quant_block(values, codes, 1e-4f, false), 1e-4f * (1.0f / 448.0f));
  cr_expect_eq(codes[127], 0);
  values[127] = 3.4e38f;
  float scale = tdm_quant_block(values, codes, 1e-4f, false);
  cr_expect(isfinite(scale));
  cr_expect_eq(codes[127], 0x7e);
  values[127] = 1e-20f;
  cr_expect_eq(tdm_quant_block(values, codes, 1e-10f, true), 0x1p-42f, "1e-10 / 448 = 2.23e-13, below 2^-42");
}

/* Values that divided by the scale come as near as can be to where two codes meet: there a multiplication by the
 * reciprocal shows. A double quotient rounded to f32 is the f32 quotient. */
Test(quant, divides) {
  test_random random = {7};
  int64_t telling = 0;
  for (int n = 0; n < 2000; n++) {
    float values[128];
    uint8_t codes[128];
    float amax = test_random_uniform(&random, 0.5f, 8.0f);
    float scale = amax * (1.0f / 448.0f);
    values[0] = amax;
    for (unsigned i = 1; i < 126; i++) {
      values[i] = 0.5f * (tdm_e4m3_to_f32((uint8_t)(i - 1)) + tdm_e4m3_to_f32((uint8_t)i)) * scale;
    }
    values[126] = values[127] = 0.0f;
    cr_assert_eq(tdm_quant_block(values, codes, 1e-4f, false), scale);
    for (int i = 0; i < 128; i++) {
      uint8_t expected = tdm_f32_to_e4m3((float)((double)values[i] / (double)scale));
      cr_assert_eq(codes[i], expected, "%.9g / %.9g gives 0x%02x, expected 0x%02x", (double)values[i], (double)scale,
                   codes[i], expected);
      telling += tdm_f32_to_e4m3(values[i] * (1.0f / scale)) != expected;
    }
  }
  cr_expect_gt(telling, 100, "%lld values tell a division from a multiplication", (long long)telling);
}

/* What tdm::quotients does instead of a division. */
static float near_quotient(float value, float scale) {
  float reciprocal = 1.0f / scale, near = value * reciprocal;
  return fmaf(-fmaf(near, scale, -value), reciprocal, near);
}

static int side(float value, float place) {
  return (value > place) - (value < place);
}

/* Where two e4m3 codes meet, a 5-bit number, the kernels' quotient is on the division's side. The neighbours of every
 * such place, for mantissas of the scale spread over all (the step is a prime; with 1 they are all, 4 s at -O3 -mfma,
 * and all agree) and for those that are next to a multiple of 2^20, where a remainder can be smallest. */
Test(quant, kernels_quotient_gives_the_code_of_the_division) {
  for (uint32_t n = 0; n < (1u << 23) / 127 + 8 * 64; n++) {
    uint32_t mantissa = n < (1u << 23) / 127 ? n * 127 : ((n % 8) << 20) + (n / 8 % 64) - 32;
    float scale = ldexpf((float)((mantissa & 0x7fffff) | 0x800000), -23);
    for (int place = 16; place < 32; place++) {
      float value = (float)place * scale;
      for (int i = 0; i < 3; i++) value = nextafterf(value, 0.0f);
      for (int i = -3; i <= 3; i++, value = nextafterf(value, INFINITY)) {
        float quotient = value / scale, near = near_quotient(value, scale);
        cr_assert_eq(side(near, (float)place), side(quotient, (float)place), "%a / %a is %a, the kernels' %a",
                     (double)value, (double)scale, (double)quotient, (double)near);
      }
    }
  }
  cr_expect(signbit(near_quotient(-0.0f, 3.0f)));
  cr_expect(!signbit(near_quotient(0.0f, 3.0f)));
  cr_expect(signbit(near_quotient(-0.0f, 5.0f)));
}

/* tdm::quotients_of_bf16, whose reciprocal is the hardware's, off by `error` units in the last place at most one. */
static float near_quotient_of_bf16(float value, float scale, int32_t error) {
  uint32_t bits;
  float hi = 1.0f / scale;
  memcpy(&bits, &hi, sizeof bits);
  bits += (uint32_t)(error - 2);
  memcpy(&hi, &bits, sizeof hi);
  float lo = fmaf(-hi, scale, 1.0f) * hi;
  return fmaf(value, hi, value * lo);
}

/* All bf16 values below all bf16 amax of an octave; the sign is the value's, also of zero. */
Test(quant, kernels_quotient_of_bf16_gives_the_code_of_the_division) {
  for (uint16_t amax = 0x3f80; amax < 0x4000; amax++) {
    float scale = tdm_bf16_to_f32(amax) * (1.0f / 448.0f);
    for (uint16_t value = 0; value <= amax; value++) {
      float v = tdm_bf16_to_f32(value);
      uint8_t code = tdm_f32_to_e4m3(v / scale);
      for (int32_t error = -1; error <= 1; error++) {
        cr_assert_eq(tdm_f32_to_e4m3(near_quotient_of_bf16(v, scale, error)), code, "%a / %a, error %d", (double)v,
                     (double)scale, error);
      }
    }
    cr_assert(signbit(near_quotient_of_bf16(-0.0f, scale, 0)));
    cr_assert_eq(tdm_f32_to_e4m3(near_quotient_of_bf16(-1.0f, scale, 1)), tdm_f32_to_e4m3(-1.0f / scale));
  }
}

Test(quant, nan_and_infinity_stay_in_their_block) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 3; i++) {
    test_rig rig;
    test_rig_open(&rig);
    test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 5, 256, 0, 1.0f, NULL);
    test_tensor* q = test_rig_tensor(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){5, 256});
    test_tensor* scales = test_rig_scales(&rig, "out_scale", 5, 256, 0);
    tdm_store_f32(test_view_at(&x->view, 2 * 256 + 200), TDM_BF16, 0, bad[i]);
    test_tensor_allow(q, &q->view);
    test_allow_scales(scales, 5);
    tdm_quant_args args = {.size = sizeof args, .x = x->view, .out_q = q->view, .out_scale = scales->view};
    cr_assert_eq(TEST_RUN(&rig, quant, &args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t m = 0; m < 5; m++) {
      for (int64_t block = 0; block < 2; block++) {
        float scale = *(float*)test_view_at(&scales->view, block * 5 + m);
        bool here = m == 2 && block == 1;
        cr_expect_eq(isnan(scale), here, "(%lld, %lld)", (long long)m, (long long)block);
        for (int64_t j = 0; j < 128; j++) {
          uint8_t code = *(uint8_t*)test_view_at(&q->view, m * 256 + block * 128 + j);
          cr_expect_eq((code & 0x7f) == 0x7f, here, "(%lld, %lld)", (long long)m, (long long)(block * 128 + j));
          if (here) cr_expect_eq(code, 0x7f);
        }
      }
    }
    test_rig_close(&rig);
  }
}

#define SET(member, value)       TEST_SET(tdm_quant_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_quant_args, member, value)
#define COPY(member, from)       TEST_COPY(tdm_quant_args, member, from)

static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3, not f32 or bf16", {SET(x.dtype, TDM_E4M3)}},
    {"x has no dtype", "x|77", {SET(x.dtype, 77)}},
    {"x has rank 1", "x|rank 1", {SET(x.rank, 1)}},
    {"x's rows overlap", "x|stride 255|256", {SET(x.stride[0], 255)}},
    {"x starts at byte 264", "x|264|16", {SET(x.offset_bytes, 264)}},
    {"x's last stride is 2", "x|last stride 2", {SET(x.stride[1], 2), SET(x.shape[1], 128)}},
    {"x is absent", "x", {TEST_ABSENT(tdm_quant_args, x)}},
    {"K is 200", "200|128", {SET(x.shape[1], 200), SET(out_q.shape[1], 200)}},
    {"out_q is bf16", "out_q is bf16", {SET(out_q.dtype, TDM_BF16), SET(out_q.shape[0], 4)}},
    {"out_q has 8 rows", "out_q is [8, 256], not [9, 256]", {SET(out_q.shape[0], 8)}},
    {"out_q is absent", "out_q", {TEST_ABSENT(tdm_quant_args, out_q)}},
    {"out_q overlaps x", "out_q|overlaps x", {COPY(out_q.buffer, x.buffer), SET(out_q.offset_bytes, 1024)}},
    {"out_scale has 1 row", "out_scale is [1, 9], not [2, 9]", {SET(out_scale.shape[0], 1)}},
    {"out_scale's stride leaves no pads", "out_scale|stride 9|12", {SET(out_scale.stride[0], 9)}},
    {"out_scale's stride is odd", "out_scale|stride 13", {SET(out_scale.stride[0], 13)}},
    {"out_scale is bf16", "out_scale is bf16, not f32", {SET(out_scale.dtype, TDM_BF16)}},
    {"out_scale is absent", "out_scale", {TEST_ABSENT(tdm_quant_args, out_scale)}},
    {"quant_eps is negative", "quant_eps|-0.0001", {SET_FLOAT(quant_eps, -1e-4f)}},
    {"quant_eps is NaN", "quant_eps|nan", {SET_FLOAT(quant_eps, NAN)}},
    {"quant_eps is infinite", "quant_eps|inf", {SET_FLOAT(quant_eps, INFINITY)}},
    {"quant_eps is subnormal", "quant_eps|1e-39", {SET_FLOAT(quant_eps, 1e-39f)}},
    {"n_tokens is f32",
     "n_tokens is f32",
     {COPY(n_tokens, out_scale), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 1)}},
    {"n_tokens has two elements",
     "n_tokens|[2]|i32 [1]",
     {COPY(n_tokens, out_scale), SET(n_tokens.dtype, TDM_I32), SET(n_tokens.rank, 1), SET(n_tokens.shape[0], 2)}},
};

Test(quant, refusals) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 9, 256, 0, 1.0f, NULL);
  test_tensor* q = test_rig_tensor(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){9, 256});
  test_tensor* scales = test_rig_scales(&rig, "out_scale", 9, 256, 0);
  tdm_quant_args good = {.size = sizeof good, .x = x->view, .out_q = q->view, .out_scale = scales->view};
  test_rig_refusals(&rig, &tdm_op_quant, &good, TDM_INVALID_ARGUMENT, refusals, sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

/* The pads of the last scale row lie beyond the view, but must be inside the buffer. */
Test(quant, pads_that_leave_the_buffer) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 9, 256, 0, 1.0f, NULL);
  test_tensor* q = test_rig_tensor(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){9, 256});
  tdm_buffer* buffer = NULL;
  cr_assert_eq(tdm_buffer_create(rig.runtime, (12 + 9) * sizeof(float), &buffer), TDM_OK);
  tdm_view scales = tdm_view_make(buffer, TDM_F32, 2, (int64_t[]){2, 9});
  scales.stride[0] = 12;
  tdm_quant_args args = {.size = sizeof args, .x = x->view, .out_q = q->view, .out_scale = scales};
  test_expect_failure("pads", TEST_RUN(&rig, quant, &args), TDM_INVALID_ARGUMENT, "quant|out_scale|96|84");
  tdm_buffer_destroy(buffer);
  test_rig_close(&rig);
}

Test(quant, live_count_out_of_range) {
  static const int32_t counts[] = {-1, 10};
  for (int i = 0; i < 2; i++) {
    test_rig rig;
    test_rig_open(&rig);
    test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 9, 256, 0, 1.0f, NULL);
    test_tensor* q = test_rig_tensor(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){9, 256});
    test_tensor* scales = test_rig_scales(&rig, "out_scale", 9, 256, 0);
    tdm_quant_args args = {.size = sizeof args, .x = x->view, .out_q = q->view, .out_scale = scales->view};
    args.n_tokens = test_rig_count(&rig, "n_tokens", counts[i])->view;
    test_expect_failure("live count", TEST_RUN(&rig, quant, &args), TDM_INVALID_ARGUMENT,
                        i == 0 ? "quant|-1|9" : "quant|10|9");
    test_rig_close(&rig);
  }
}

Test(quant, plan) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_BF16, 9, 256, 0, 1.0f, NULL);
  test_tensor* q = test_rig_tensor(&rig, "out_q", TDM_E4M3, 2, (int64_t[]){9, 256});
  test_tensor* scales = test_rig_scales(&rig, "out_scale", 9, 256, 0);
  tdm_quant_args args = {.size = sizeof args, .x = x->view, .out_q = q->view, .out_scale = scales->view};
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_quant.plan(&args, 0, &plan);
  cr_expect_eq(plan.bytes, 9.0 * 256 * 2 + 9.0 * 256 + 9.0 * 2 * 4);
  cr_expect_eq(plan.splits, 1);
  test_rig_close(&rig);
}
