/* The small formats against tables made another way: values by ldexp from the bit fields, roundings by what they mean.
 */

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "tests/support/random.h"

static float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* (-1)^sign * 2^(exponent - bias) * 1.mantissa, or 0.mantissa * 2^(1 - bias) where the exponent field is 0. */
static double field_value(unsigned code, int exponent_bits, int mantissa_bits, int bias) {
  int mantissa = (int)(code & ((1u << mantissa_bits) - 1));
  int exponent = (int)(code >> mantissa_bits & ((1u << exponent_bits) - 1));
  double sign = code >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0;
  if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

static bool same_float(float a, float b) {
  return (isnan(a) && isnan(b)) || to_bits(a) == to_bits(b);
}

Test(convert, e4m3_values) {
  for (unsigned code = 0; code < 256; code++) {
    float expected = (code & 0x7f) == 0x7f ? NAN : (float)field_value(code, 4, 3, 7);
    cr_expect(same_float(tdm_e4m3_to_f32((uint8_t)code), expected), "0x%02x is %g", code,
              (double)tdm_e4m3_to_f32((uint8_t)code));
    cr_expect(same_float(tdm_e4m3_table[code], expected));
  }
}

Test(convert, e2m1_values) {
  for (unsigned code = 0; code < 16; code++) {
    cr_expect(same_float(tdm_e2m1_to_f32((uint8_t)code), (float)field_value(code, 2, 1, 1)), "%u", code);
  }
  cr_expect_eq(tdm_e2m1_to_f32(0xf7), 6.0f, "the high nibble does not matter");
}

Test(convert, bf16_values) {
  for (unsigned code = 0; code < 65536; code++) {
    float expected = (float)field_value(code, 8, 7, 127);
    if ((code & 0x7f80) == 0x7f80) {
      expected = code & 0x7f ? NAN : code >> 15 ? -INFINITY : INFINITY;
    }
    cr_expect(same_float(tdm_bf16_to_f32((uint16_t)code), expected), "0x%04x", code);
  }
}

Test(convert, ue8m0_values) {
  for (unsigned code = 0; code < 255; code++) {
    cr_expect(same_float(tdm_ue8m0_to_f32((uint8_t)code), (float)ldexp(1.0, (int)code - 127)), "%u", code);
  }
  cr_expect(isnan(tdm_ue8m0_to_f32(255)));
}

/* The formats that round to nearest as one. Codes 0 .. top are the non-negative finite values, ascending. */
typedef struct format {
  const char* name;
  unsigned top;
  unsigned sign;
  bool saturates;
  unsigned nan;
  double (*value)(unsigned code);
  unsigned (*encode)(float value);
} format;

static double e4m3_value(unsigned code) {
  return field_value(code, 4, 3, 7);
}
static unsigned e4m3_encode(float value) {
  return tdm_f32_to_e4m3(value);
}
static double bf16_value(unsigned code) {
  return field_value(code, 8, 7, 127);
}
static unsigned bf16_encode(float value) {
  return tdm_f32_to_bf16(value);
}
static double e2m1_value(unsigned code) {
  return field_value(code, 2, 1, 1);
}
static unsigned e2m1_encode(float value) {
  return tdm_f32_to_e2m1(value);
}

static const format formats[] = {
    {"e4m3", 0x7e, 0x80, true, 0x7f, e4m3_value, e4m3_encode},
    {"bf16", 0x7f7f, 0x8000, false, 0x7fff, bf16_value, bf16_encode},
    {"e2m1", 7, 8, true, 7, e2m1_value, e2m1_encode},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

static void expect_code(const format* f, float value, unsigned code) {
  unsigned got = f->encode(value);
  if (got == code) return; /* expectations are slow, and there are millions */
  cr_expect_eq(got, code, "%s: %.9g (0x%08x) gives 0x%x, expected 0x%x", f->name, (double)value, to_bits(value), got,
               code);
}

static void expect_code_both_signs(const format* f, float value, unsigned code) {
  expect_code(f, value, code);
  expect_code(f, -value, code | f->sign);
}

Test(convert, every_value_and_every_midpoint) {
  for (int i = 0; i < FORMATS; i++) {
    const format* f = &formats[i];
    for (unsigned code = 0; code <= f->top; code++) {
      double value = f->value(code);
      expect_code_both_signs(f, (float)value, code);
      if (code == f->top) break;
      float middle = (float)((value + f->value(code + 1)) / 2);
      cr_assert_eq((double)middle, (value + f->value(code + 1)) / 2, "midpoints are exact in f32");
      expect_code_both_signs(f, middle, code % 2 == 0 ? code : code + 1);
      expect_code_both_signs(f, nextafterf(middle, -INFINITY), code);
      expect_code_both_signs(f, nextafterf(middle, INFINITY), code + 1);
    }
  }
}

Test(convert, beyond_the_largest) {
  for (int i = 0; i < FORMATS; i++) {
    const format* f = &formats[i];
    double step = f->value(f->top) - f->value(f->top - 1);
    float middle = (float)(f->value(f->top) + step / 2); /* where a next value would begin */
    unsigned beyond = f->saturates ? f->top : f->top + 1;
    expect_code_both_signs(f, nextafterf(middle, 0.0f), f->top);
    expect_code_both_signs(f, middle, beyond); /* the next code would be even */
    expect_code_both_signs(f, nextafterf(middle, INFINITY), beyond);
    expect_code_both_signs(f, 3.4028234e38f, beyond);
    expect_code_both_signs(f, INFINITY, beyond);
  }
}

Test(convert, nan_gives_one_code) {
  static const uint32_t nans[] = {0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffc00000, 0xffffffff, 0x7fa55a00};
  for (int i = 0; i < FORMATS; i++) {
    for (size_t j = 0; j < sizeof nans / sizeof nans[0]; j++)
      expect_code(&formats[i], from_bits(nans[j]), formats[i].nan);
  }
}

Test(convert, zeros_and_f32_subnormals) {
  for (int i = 0; i < FORMATS; i++) {
    expect_code_both_signs(&formats[i], 0.0f, 0);
    expect_code_both_signs(&formats[i], from_bits(1), 0);
  }
}

/* Nearest by looking at every code; of two at the same distance the even one. */
static unsigned search(const format* f, const double* values, float value) {
  double magnitude = fmin(fabs((double)value), values[f->top]); /* so far out that all distances are equal */
  unsigned best = 0;
  for (unsigned code = 1; code <= f->top; code++) {
    double nearer = fabs(values[code] - magnitude) - fabs(values[best] - magnitude);
    if (nearer < 0 || (nearer == 0 && code % 2 == 0)) best = code;
  }
  return best | (signbit(value) ? f->sign : 0);
}

static void expect_nearest(const format* f, const double* values, float value) {
  unsigned got = f->encode(value);
  unsigned expected = search(f, values, value);
  if (got == expected) return;
  cr_expect_eq(got, expected, "%s: %.9g gives 0x%x, expected 0x%x", f->name, (double)value, got, expected);
}

Test(convert, random_values_go_to_the_nearest_e4m3_and_e2m1) {
  test_random random = {1};
  for (int i = 0; i < FORMATS; i++) {
    const format* f = &formats[i];
    if (!f->saturates) continue;
    double values[128];
    for (unsigned code = 0; code <= f->top; code++) values[code] = f->value(code);
    float limit = (float)(1.1 * f->value(f->top));
    for (int n = 0; n < 1000000; n++) expect_nearest(f, values, test_random_uniform(&random, -limit, limit));
    for (int n = 0; n < 200000; n++) {
      /* any exponent around the format's range */
      float value = ldexpf(test_random_uniform(&random, -2.0f, 2.0f), (int)test_random_below(&random, 24) - 14);
      expect_nearest(f, values, value);
    }
    for (int n = 0; n < 200000; n++) {
      float value = from_bits((uint32_t)test_random_u64(&random));
      if (!isnan(value)) expect_nearest(f, values, value);
    }
  }
}

Test(convert, random_bit_patterns_go_to_the_nearest_bf16) {
  test_random random = {2};
  for (int n = 0; n < 3000000; n++) {
    uint32_t bits = (uint32_t)test_random_u64(&random);
    float value = from_bits(bits);
    if (!isfinite(value)) continue;
    /* Of the codes on either side, the nearer in double; of two, the even one. The code above the largest is 2^128. */
    unsigned below = bits >> 16;
    double to_below = fabs((double)value - field_value(below, 8, 7, 127));
    double to_above = fabs(field_value(below + 1, 8, 7, 127) - (double)value);
    bool up = to_above < to_below || (to_above == to_below && below % 2 == 1);
    expect_code(&formats[1], value, up ? below + 1 : below);
  }
}

Test(convert, ue8m0_rounds_up) {
  for (unsigned code = 0; code < 255; code++) {
    float value = (float)ldexp(1.0, (int)code - 127);
    cr_expect_eq(tdm_f32_to_ue8m0_ceil(value), code, "2^%d", (int)code - 127);
    cr_expect_eq(tdm_f32_to_ue8m0_ceil(nextafterf(value, 0.0f)), code, "below 2^%d", (int)code - 127);
    unsigned above = code < 254 ? code + 1 : 254;
    cr_expect_eq(tdm_f32_to_ue8m0_ceil(nextafterf(value, INFINITY)), above, "above 2^%d", (int)code - 127);
  }
  cr_expect_eq(tdm_f32_to_ue8m0_ceil(from_bits(1)), 0);
  cr_expect_eq(tdm_f32_to_ue8m0_ceil(INFINITY), 254);
  cr_expect_eq(tdm_f32_to_ue8m0_ceil(NAN), 255);
  test_random random = {3};
  for (int n = 0; n < 200000; n++) {
    float value = ldexpf(test_random_uniform(&random, 0.5f, 1.0f), (int)test_random_below(&random, 252) - 125);
    int exponent = -127;
    while (exponent < 127 && ldexp(1.0, exponent) < (double)value) exponent++;
    cr_expect_eq(tdm_f32_to_ue8m0_ceil(value), exponent + 127, "%g", (double)value);
  }
}

Test(convert, typed_rows) {
  static const tdm_dtype dtypes[] = {TDM_F32, TDM_BF16, TDM_E4M3};
  for (int i = 0; i < 3; i++) {
    tdm_dtype dtype = dtypes[i];
    float values[24];
    float row[8] = {0};
    float memory[24] = {0};                                           /* wide enough for every dtype */
    for (int j = 0; j < 24; j++) values[j] = (float)(j - 12) * 0.25f; /* exact in all three */
    tdm_store_f32_row(memory, dtype, 0, 24, values);
    tdm_load_f32_row(memory, dtype, 1, 3, 7, row);
    for (int j = 0; j < 7; j++) cr_expect_eq(row[j], values[1 + 3 * j]);
    cr_expect_eq(row[7], 0.0f);
    tdm_store_f32(memory, dtype, 5, 2.5f);
    cr_expect_eq(tdm_load_f32(memory, dtype, 5), 2.5f);
    cr_expect_eq(tdm_load_f32(memory, dtype, 4), values[4]);
    cr_expect_eq(tdm_load_f32(memory, dtype, 6), values[6]);
  }
  float one = 1.00390625f; /* 1 + 2^-8: half a step of bf16, to the even 1 */
  uint16_t stored = 0;
  tdm_store_f32(&stored, TDM_BF16, 0, one);
  cr_expect_eq(stored, 0x3f80);
}
