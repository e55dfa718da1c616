/* Rows of an embedding table for sm_90a.
 *
 * 1. A thread takes 8 columns of a token: one 16-byte load and store (bf16) where alignment allows.
 * 2. Converted through f32 where the dtypes differ. An id outside the table gives zeros and reads nothing.
 *
 * Grid: any; the columns of all tokens are walked with a grid stride. Block: 256 threads. Shared: none.
 * Limit: latency; device bandwidth at many tokens. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/embedding/embedding_params.h"

extern "C" __global__ void __launch_bounds__(256)
    tdm_embedding_sm90(const __grid_constant__ tdm_embedding_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int64_t groups = (p.cols + 7) / 8, total = groups * tdm::live_rows(p.n_tokens, p.rows);
  for (int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; item < total;
       item += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = item / groups, id = p.ids[row];
    const int32_t column = static_cast<int32_t>(item % groups) * 8;
    const bool known = id >= 0 && id < p.vocab;
    const int64_t from = id * p.table_stride + column, to = row * p.out_stride + column;
    if (column + 8 <= p.cols) {
      float v[8] = {};
      if (known) tdm::load_8(v, p.table, p.table_dtype, from, p.vectors != 0);
      tdm::store_8(v, p.out, p.out_dtype, to, p.vectors != 0);
    } else {
      for (int32_t i = 0; i < p.cols - column; ++i)
        tdm::store_element(p.out, p.out_dtype, to + i,
                           known ? tdm::load_element(p.table, p.table_dtype, from + i) : 0.0f);
    }
  }
  tdm::step_end(sync);
}
