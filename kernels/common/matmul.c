#include "kernels/common/matmul.h"

#include "kernels/common/block_dot.h"
#include "kernels/common/convert.h"

enum { ROW_TILE = 64 }; /* rows of a that share a decoded tile of w */

static int64_t min_i64(int64_t a, int64_t b) {
  return a < b ? a : b;
}

tdm_view tdm_view_matrix(const tdm_view* view, int64_t batch) {
  tdm_view result = *view;
  result.rank = 2;
  result.offset_bytes += batch * view->stride[0] * (int64_t)tdm_dtype_bytes(view->dtype);
  for (int32_t i = 0; i < 2; i++) {
    result.shape[i] = view->shape[i + 1];
    result.stride[i] = view->stride[i + 1];
  }
  return result;
}

static double scale_at(const tdm_view* scale, int64_t i, int64_t j) {
  return (double)((const float*)tdm_view_data(scale))[i * scale->stride[0] + j * scale->stride[1]];
}

/* Rows m0 .. m0 + rows - 1, rows <= ROW_TILE, and TDM_TILE_ROWS columns from n0 on, which lie in one row of scale
 * blocks. */
static void multiply_tile(const tdm_view* a, const tdm_view* a_scale, const tdm_view* w, const tdm_view* w_scale,
                          const tdm_view* out, int64_t m0, int64_t rows, int64_t n0) {
  int64_t k = w->shape[1];
  int64_t cols = min_i64(TDM_TILE_ROWS, w->shape[0] - n0);
  double c[ROW_TILE][TDM_TILE_ROWS] = {{0}};
  tdm_tile tile;
  for (int64_t k0 = 0; k0 < k; k0 += TDM_TILE_COLS) {
    int64_t depth = min_i64(TDM_TILE_COLS, k - k0);
    tdm_tile_load(&tile, tdm_view_data(w), w->dtype, n0 * w->stride[0] + k0 * w->stride[1], w->stride[0], w->stride[1],
                  cols, depth);
    double w_factor = w_scale != NULL ? scale_at(w_scale, n0 / 128, k0 / 128) : 1.0;
    for (int64_t i = 0; i < rows; i++) {
      float a_block[TDM_TILE_COLS];
      double sums[TDM_TILE_ROWS];
      tdm_load_f32_row(tdm_view_data(a), a->dtype, (m0 + i) * a->stride[0] + k0 * a->stride[1], a->stride[1], depth,
                       a_block);
      tdm_tile_dot(&tile, a_block, sums);
      /* Exact in double; promoting in f32 rounds it once. */
      double factor = a_scale != NULL ? scale_at(a_scale, k0 / 128, m0 + i) * w_factor : w_factor;
      tdm_tile_promote(c[i], sums, factor, a_scale != NULL);
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    float row[TDM_TILE_ROWS];
    for (int r = 0; r < TDM_TILE_ROWS; r++) row[r] = (float)c[i][r];
    tdm_store_f32_row(tdm_view_data(out), out->dtype, (m0 + i) * out->stride[0] + n0, cols, row);
  }
}

void tdm_matmul(const tdm_view* a, const tdm_view* a_scale, const tdm_view* w, const tdm_view* w_scale,
                const tdm_view* out, int64_t rows) {
  for (int64_t m0 = 0; m0 < rows; m0 += ROW_TILE) {
    int64_t tile_rows = min_i64(ROW_TILE, rows - m0);
    for (int64_t n0 = 0; n0 < w->shape[0]; n0 += TDM_TILE_ROWS) {
      multiply_tile(a, a_scale, w, w_scale, out, m0, tile_rows, n0);
    }
  }
}
