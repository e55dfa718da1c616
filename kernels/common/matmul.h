#ifndef KERNELS_COMMON_MATMUL_H
#define KERNELS_COMMON_MATMUL_H

/* The matrix product of the references. How a sum is split depends on K alone, so a row's result never depends on how
 * many rows there are. */

#include "runtime/op.h"

/* Matrix number `batch` of a rank-3 view. */
tdm_view tdm_view_matrix(const tdm_view* view, int64_t batch);

/* out[m, n] = sum over k of a[m, k] * w[n, k] for the first `rows` rows of a, in blocks of 128 of K, ascending. Views
 * of rank 2: a [M, K] and w [N, K] bf16, f32 or e4m3 with any strides, out [M, N] bf16 or f32 with last stride 1.
 *   a_scale given (FP8 x FP8, docs/formulas.md, section 3): a block's exact sum is rounded to f32, multiplied by the
 * f32 product of the two scales and added in f32. a_scale NULL: everything in double and one rounding at the end;
 * w_scale, when given, multiplies a block's sum. Scales are laid out as for gemm_fp8. */
void tdm_matmul(const tdm_view* a, const tdm_view* a_scale, const tdm_view* w, const tdm_view* w_scale,
                const tdm_view* out, int64_t rows);

#endif
