#ifndef TESTS_SUPPORT_COMPARE_H
#define TESTS_SUPPORT_COMPARE_H

/* The one way in which tests compare a tensor with what it should be. */

#include <stdbool.h>
#include <stdint.h>

typedef struct test_difference {
  double error;      /* ||out - ref|| / ||ref|| over the elements that are finite in both */
  double worst_tile; /* the same in the worst tile of 128 x 128 */
  int64_t tile_row;  /* that tile's first row and column */
  int64_t tile_col;
  int64_t class_errors; /* elements that are NaN, +inf or -inf in one and something else in the other */
  int64_t bad_row;      /* the first bad element, -1 when there is none: one of class_errors, or further off than */
  int64_t bad_col;      /*   10 * tolerance * (its magnitude + the root mean square of ref) */
  double bad_out;
  double bad_ref;
} test_difference;

/* Compares out with ref, both [rows, cols] row-major. A tile or tensor of nothing but zeros in ref gives error 0 or
 * infinity. */
test_difference test_compare(const float* out, const double* ref, int64_t rows, int64_t cols, double tolerance);

/* Whether error is within `tolerance`, the worst tile within three times that, and no element bad. */
bool test_within(const test_difference* difference, double tolerance);

/* test_compare and, unless test_within, a Criterion failure that prints all of it after `what`. */
bool test_expect_close(const char* what, const float* out, const double* ref, int64_t rows, int64_t cols,
                       double tolerance);

/* Same bits, `bytes` of them; else a Criterion failure with the first byte that differs. */
bool test_expect_bits(const char* what, const void* out, const void* ref, int64_t bytes);

#endif
