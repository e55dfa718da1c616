#include "tests/kernels/oracle.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/convert.h"

double oracle_e4m3(uint8_t code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  double sign = code & 0x80 ? -1.0 : 1.0;
  if (exponent == 15 && mantissa == 7) return (double)NAN;
  if (exponent == 0) return sign * ldexp(mantissa, -9);
  return sign * ldexp(8 + mantissa, exponent - 10);
}

double oracle_round(double value, tdm_dtype dtype) {
  if (!isfinite(value) || dtype == TDM_F32) return (double)(float)value;
  int bits = dtype == TDM_BF16 ? 8 : 4; /* of the significand */
  int least = dtype == TDM_BF16 ? -133 : -9;
  int exponent;
  frexp(value, &exponent); /* |value| in [2^(exponent-1), 2^exponent) */
  int unit = exponent - bits > least ? exponent - bits : least;
  double rounded = ldexp(nearbyint(ldexp(value, -unit)), unit);
  if (dtype == TDM_E4M3) return fmax(-448.0, fmin(448.0, rounded));
  return fabs(rounded) > 3.3895313892515355e38 ? copysign((double)INFINITY, rounded) : rounded;
}

static double element(const tdm_view* view, int64_t index) {
  const void* at = test_view_at(view, index);
  if (view->dtype == TDM_E4M3) return oracle_e4m3(*(const uint8_t*)at);
  uint32_t word = 0;
  float value;
  if (view->dtype == TDM_BF16) {
    word = (uint32_t) * (const uint16_t*)at << 16;
  } else {
    memcpy(&word, at, sizeof word);
  }
  memcpy(&value, &word, sizeof value);
  return (double)value;
}

double* oracle_zeros(int64_t count) {
  double* values = calloc((size_t)count, sizeof *values);
  cr_assert_not_null(values);
  return values;
}

double* oracle_values(const tdm_view* view) {
  int64_t count = test_view_count(view);
  double* values = oracle_zeros(count);
  for (int64_t i = 0; i < count; i++) values[i] = element(view, i);
  return values;
}

static bool same_class(double a, double b) {
  if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
  if (isinf(a) || isinf(b)) return a == b;
  return true;
}

bool oracle_expect_rounded(const char* what, const tdm_view* out, const double* ref, double slack) {
  int64_t count = test_view_count(out), width = out->shape[out->rank - 1];
  for (int64_t row = 0; row < count; row += width) {
    double squares = 0;
    for (int64_t i = row; i < row + width; i++) squares += isfinite(ref[i]) ? ref[i] * ref[i] : 0.0;
    double rms = sqrt(squares / (double)width);
    for (int64_t i = row; i < row + width; i++) {
      double value = element(out, i);
      double room = slack * (fabs(ref[i]) + rms);
      bool good = same_class(value, ref[i]);
      if (good && isfinite(value)) {
        good = value >= oracle_round(ref[i] - room, out->dtype) && value <= oracle_round(ref[i] + room, out->dtype);
      }
      cr_expect(good, "%s: element %lld of row %lld is %.9g, expected %.9g (slack %.3g)", what, (long long)(i - row),
                (long long)(row / width), value, ref[i], room);
      if (!good) return false;
    }
  }
  return true;
}

bool oracle_expect_same_bits(const char* what, const tdm_view* view, const tdm_view* other) {
  size_t bytes = tdm_dtype_bytes(view->dtype);
  for (int64_t i = 0; i < test_view_count(view); i++) {
    if (memcmp(test_view_at(view, i), test_view_at(other, i), bytes) == 0) continue;
    cr_expect_fail("%s: element %lld is %.9g, expected the bits of %.9g", what, (long long)i, element(view, i),
                   element(other, i));
    return false;
  }
  return true;
}

void oracle_fill_uniform(const tdm_view* view, test_random* random, float low, float high) {
  for (int64_t i = 0; i < test_view_count(view); i++) {
    *(float*)test_view_at(view, i) = test_random_uniform(random, low, high);
  }
}

void oracle_fill_i32(const tdm_view* view, const int32_t* values) {
  for (int64_t i = 0; i < test_view_count(view); i++) *(int32_t*)test_view_at(view, i) = values[i];
}

void oracle_set(const tdm_view* view, int64_t row_major_index, float value) {
  tdm_store_f32(test_view_at(view, row_major_index), view->dtype, 0, value);
}
