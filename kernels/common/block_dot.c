#include "kernels/common/block_dot.h"

#include <string.h>

#include "kernels/common/convert.h"
#include "runtime/status.h"

void tdm_tile_load(tdm_tile* tile, const void* data, tdm_dtype dtype, int64_t offset, int64_t row_stride,
                   int64_t col_stride, int64_t n_rows, int64_t n_cols) {
  if (n_rows < TDM_TILE_ROWS) memset(tile->value, 0, sizeof tile->value);
  tile->n_cols = (int32_t)n_cols;
  for (int64_t r = 0; r < n_rows; r++) {
    float row[TDM_TILE_COLS];
    tdm_load_f32_row(data, dtype, offset + r * row_stride, col_stride, n_cols, row);
    for (int64_t k = 0; k < n_cols; k++) tile->value[k][r] = (double)row[k];
  }
}

void tdm_tile_dot(const tdm_tile* tile, const float* a, double sums[TDM_TILE_ROWS]) {
  double sum[TDM_TILE_ROWS] = {0};
  for (int32_t k = 0; k < tile->n_cols; k++) {
    double factor = (double)a[k];
    for (int r = 0; r < TDM_TILE_ROWS; r++) sum[r] += factor * tile->value[k][r];
  }
  memcpy(sums, sum, sizeof sum);
}

void tdm_tile_promote(double c[TDM_TILE_ROWS], const double sums[TDM_TILE_ROWS], double scale, bool round) {
  if (round) {
    float factor = (float)scale;
    for (int r = 0; r < TDM_TILE_ROWS; r++) c[r] = (double)((float)c[r] + factor * (float)sums[r]);
  } else {
    for (int r = 0; r < TDM_TILE_ROWS; r++) c[r] += scale * sums[r];
  }
}

tdm_status tdm_check_product_dtypes(const char* op, const char* x_name, tdm_dtype x, const char* w_name, tdm_dtype w) {
  if (x == TDM_F32 || x == w) return TDM_OK;
  return TDM_FAIL(TDM_UNSUPPORTED, "%s: %s is %s and %s %s; e4m3 and bf16 go with their like only, f32 with any", op,
                  x_name, tdm_dtype_name(x), w_name, tdm_dtype_name(w));
}
