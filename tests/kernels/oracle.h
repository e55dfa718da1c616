#ifndef TESTS_KERNELS_ORACLE_H
#define TESTS_KERNELS_ORACLE_H

/* A second opinion for the tests of attention and MoE: element formats in double, written from their definitions and
 * without the library's conversions. */

#include "tests/support/rig.h"

/* The nearest value of the dtype (f32, bf16 or e4m3), ties to even; e4m3 saturates. */
double oracle_round(double value, tdm_dtype dtype);
/* The value of an e4m3 code. */
double oracle_e4m3(uint8_t code);

/* All elements of a view (f32, bf16 or e4m3) in row-major order; free() it. */
double* oracle_values(const tdm_view* view);
/* `count` zeros; free() it. */
double* oracle_zeros(int64_t count);

/* Every element of `out` is ref[i] rounded once to its dtype, where ref[i] may be off by `slack` times (its magnitude +
 * the root mean square of its row). NaN and infinities are where ref has them. A Criterion failure names the first that
 * is not. */
bool oracle_expect_rounded(const char* what, const tdm_view* out, const double* ref, double slack);

/* `view` has the bits of `other`, a view of the same shape and dtype. */
bool oracle_expect_same_bits(const char* what, const tdm_view* view, const tdm_view* other);

/* Uniform in [low, high), f32. */
void oracle_fill_uniform(const tdm_view* view, test_random* random, float low, float high);
/* Row-major i32 contents. */
void oracle_fill_i32(const tdm_view* view, const int32_t* values);

/* One element of a float view. */
void oracle_set(const tdm_view* view, int64_t row_major_index, float value);

#endif
