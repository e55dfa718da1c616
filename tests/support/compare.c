#include "tests/support/compare.h"

#include <criterion/criterion.h>
#include <math.h>

/* Finite: 0; otherwise NaN, +inf and -inf apart. */
static int class_of(double value) {
  if (isnan(value)) return 1;
  if (isinf(value)) return value > 0.0 ? 2 : 3;
  return 0;
}

static double ratio(double difference, double reference) {
  if (difference == 0.0) return 0.0;
  return reference == 0.0 ? (double)INFINITY : sqrt(difference / reference);
}

test_difference test_compare(const float* out, const double* ref, int64_t rows, int64_t cols, double tolerance) {
  test_difference result = {.bad_row = -1, .bad_col = -1};
  double difference = 0.0;
  double reference = 0.0;
  int64_t finite = 0;
  for (int64_t r0 = 0; r0 < rows; r0 += 128) {
    for (int64_t c0 = 0; c0 < cols; c0 += 128) {
      double tile_difference = 0.0;
      double tile_reference = 0.0;
      for (int64_t r = r0; r < rows && r < r0 + 128; r++) {
        for (int64_t c = c0; c < cols && c < c0 + 128; c++) {
          double x = (double)out[r * cols + c];
          double y = ref[r * cols + c];
          if (class_of(x) != 0 || class_of(y) != 0) continue;
          tile_difference += (x - y) * (x - y);
          tile_reference += y * y;
          finite++;
        }
      }
      double tile = ratio(tile_difference, tile_reference);
      if (tile > result.worst_tile) {
        result.worst_tile = tile;
        result.tile_row = r0;
        result.tile_col = c0;
      }
      difference += tile_difference;
      reference += tile_reference;
    }
  }
  result.error = ratio(difference, reference);
  double mean = finite > 0 ? sqrt(reference / (double)finite) : 0.0;
  for (int64_t i = 0; i < rows * cols; i++) {
    double x = (double)out[i];
    double y = ref[i];
    bool same_class = class_of(x) == class_of(y);
    bool bad = !same_class || (class_of(x) == 0 && fabs(x - y) > 10.0 * tolerance * (fabs(y) + mean));
    if (!same_class) result.class_errors++;
    if (bad && result.bad_row < 0) {
      result.bad_row = i / cols;
      result.bad_col = i % cols;
      result.bad_out = x;
      result.bad_ref = y;
    }
  }
  return result;
}

bool test_within(const test_difference* difference, double tolerance) {
  return difference->error <= tolerance && difference->worst_tile <= 3.0 * tolerance && difference->bad_row < 0;
}

bool test_expect_close(const char* what, const float* out, const double* ref, int64_t rows, int64_t cols,
                       double tolerance) {
  test_difference d = test_compare(out, ref, rows, cols, tolerance);
  bool within = test_within(&d, tolerance);
  cr_expect(within,
            "%s: error %.3g, tolerance %.3g; worst tile %.3g at (%lld, %lld); %lld of another class; first bad (%lld, "
            "%lld): %.9g, expected %.9g",
            what, d.error, tolerance, d.worst_tile, (long long)d.tile_row, (long long)d.tile_col,
            (long long)d.class_errors, (long long)d.bad_row, (long long)d.bad_col, d.bad_out, d.bad_ref);
  return within;
}

bool test_expect_bits(const char* what, const void* out, const void* ref, int64_t bytes) {
  const uint8_t* x = out;
  const uint8_t* y = ref;
  int64_t at = 0;
  while (at < bytes && x[at] == y[at]) at++;
  cr_expect(at == bytes, "%s: byte %lld of %lld is 0x%02x, expected 0x%02x", what, (long long)at, (long long)bytes,
            at < bytes ? x[at] : 0, at < bytes ? y[at] : 0);
  return at == bytes;
}
