#ifndef KERNELS_COMMON_BLOCK_DOT_H
#define KERNELS_COMMON_BLOCK_DOT_H

/* The inner products behind the references' matrix multiplications. A tile of a weight (or of a cache) is decoded once
 * and then meets every token; products are added in double, k ascending, so a result depends on nothing but its own row
 * and column. Between two e4m3 operands the sum over a block of 128 is exact: multiples of 2^-18 below 2^25. */

#include "tandem/base.h"

enum {
  TDM_TILE_ROWS = 8,  /* weight rows, the output columns of a product */
  TDM_TILE_COLS = 128 /* along K: one scale block */
};

/* K-major, so that one activation times the tile's rows is one short vector operation. */
typedef struct tdm_tile {
  double value[TDM_TILE_COLS][TDM_TILE_ROWS];
  int32_t n_cols;
} tdm_tile;

/* Decodes n_rows <= TDM_TILE_ROWS by n_cols <= TDM_TILE_COLS elements of a matrix; the first is element `offset`,
 * strides count elements. Missing rows are zero. */
void tdm_tile_load(tdm_tile* tile, const void* data, tdm_dtype dtype, int64_t offset, int64_t row_stride,
                   int64_t col_stride, int64_t n_rows, int64_t n_cols);

/* sums[r] = sum over k < tile->n_cols of a[k] * tile[r][k]. */
void tdm_tile_dot(const tdm_tile* tile, const float* a, double sums[TDM_TILE_ROWS]);

/* c[r] += scale * sums[r]. With `round` as the tensor-core kernels promote a block: the sum rounded to f32, product and
 * addition in f32; c and scale hold f32 values then. Otherwise all in double (f32 activations: nothing is rounded). */
void tdm_tile_promote(double c[TDM_TILE_ROWS], const double sums[TDM_TILE_ROWS], double scale, bool round);

/* Activations and weights that block-scaled products combine: e4m3 with e4m3, bf16 with bf16, f32 with any. */
tdm_status tdm_check_product_dtypes(const char* op, const char* x_name, tdm_dtype x, const char* w_name, tdm_dtype w);

#endif
