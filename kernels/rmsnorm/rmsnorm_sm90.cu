/* RMSNorm with residual add and FP8 quantisation, for sm_90a.
 *
 * 1. A CTA takes rows blockIdx.x, + gridDim.x, ...
 * 2. x + delta, rounded to the residual's dtype and stored; the f32 row stays in shared memory, its squares are summed.
 * 3. The sum crosses the CTA in a fixed order (it depends on the row length alone).
 * 4. Normalise, weigh, store; blocks of 128 columns are quantised from the f32 value by half a warp each.
 * 5. Rows from the live count to the next multiple of 4 get zero scales.
 *
 * Grid: up to one CTA a row; block: a thread for 8 columns, 128 .. 1024. Shared: the row as f32, and 32 floats.
 * Limit: latency (load, sum, store) at few rows; device bandwidth at many. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/rmsnorm/rmsnorm_params.h"

namespace {

__device__ void load_row(const tdm_rmsnorm_params& p, int32_t row, int32_t column, bool vectors, float (&v)[8]) {
  tdm::load_8(v, p.x, p.x_dtype, row * p.x_stride + column, vectors);
  if (p.delta != nullptr) {
    float d[8];
    tdm::load_8(d, p.delta, p.delta_dtype, row * p.delta_stride + column, vectors);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += d[i];
  }
  if (p.residual_out != nullptr) {
    tdm::store_8(v, p.residual_out, p.residual_dtype, row * p.residual_stride + column, vectors);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = tdm::round_element(v[i], p.residual_dtype);
  }
}

__device__ float load_one(const tdm_rmsnorm_params& p, int32_t row, int32_t column) {
  float v = tdm::load_element(p.x, p.x_dtype, row * p.x_stride + column);
  if (p.delta != nullptr) v += tdm::load_element(p.delta, p.delta_dtype, row * p.delta_stride + column);
  if (p.residual_out != nullptr) {
    tdm::store_element(p.residual_out, p.residual_dtype, row * p.residual_stride + column, v);
    v = tdm::round_element(v, p.residual_dtype);
  }
  return v;
}

__device__ void zero_scales(const tdm_rmsnorm_params& p, int32_t row) {
  for (int32_t block = static_cast<int32_t>(threadIdx.x); block < p.cols / 128;
       block += static_cast<int32_t>(blockDim.x))
    p.out_scale[block * p.out_scale_stride + row] = 0.0f;
}

} // namespace

extern "C" __global__ void __launch_bounds__(1024)
    tdm_rmsnorm_sm90(const __grid_constant__ tdm_rmsnorm_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  extern __shared__ float row_values[];
  __shared__ float scratch[32];
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows);
  const int32_t end = p.out_q == nullptr ? live : (live + 3) / 4 * 4;
  const bool vectors = p.vectors != 0;
  const int32_t whole = p.cols / 8 * 8, step = 8 * static_cast<int32_t>(blockDim.x);
  const int32_t first = 8 * static_cast<int32_t>(threadIdx.x);
  const bool add_only = p.out == nullptr && p.out_q == nullptr;

  for (int32_t row = static_cast<int32_t>(blockIdx.x); row < end; row += static_cast<int32_t>(gridDim.x)) {
    if (row >= live) {
      zero_scales(p, row);
      continue;
    }
    float squares = 0.0f;
    for (int32_t column = first; column < whole; column += step) {
      float v[8];
      load_row(p, row, column, vectors, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        squares += v[i] * v[i];
        row_values[column + i] = v[i];
      }
    }
    for (int32_t column = whole + static_cast<int32_t>(threadIdx.x); column < p.cols;
         column += static_cast<int32_t>(blockDim.x)) {
      const float v = load_one(p, row, column);
      squares += v * v;
      row_values[column] = v;
    }
    if (add_only) continue;

    const float mean = tdm::block_sum(squares, scratch) / static_cast<float>(p.cols);
    const float inverse = __frcp_rn(__fsqrt_rn(mean + p.eps));

    /* Whole warps stay in the loop: the quantiser needs all lanes. Blocks of 128 make `whole` a multiple of 128 then.
     */
    for (int32_t start = first / 256 * 256; start < whole; start += step) {
      const int32_t column = start + first % 256;
      const bool inside = column < whole;
      float v[8], w[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        v[i] = inside ? row_values[column + i] * inverse : 0.0f;
        w[i] = 1.0f;
      }
      if (p.weight != nullptr && inside) tdm::load_8(w, p.weight, p.weight_dtype, column, vectors);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= w[i];
      if (p.out != nullptr && inside) tdm::store_8(v, p.out, p.out_dtype, row * p.out_stride + column, vectors);
      if (p.out_q != nullptr) {
        float scale;
        const uint2 bytes = tdm::quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
        if (inside) {
          tdm::store_bytes_8(p.out_q + row * p.out_q_stride + column, bytes, vectors);
          if (column % 128 == 0) p.out_scale[column / 128 * p.out_scale_stride + row] = scale;
        }
      }
    }
    for (int32_t column = whole + static_cast<int32_t>(threadIdx.x); column < p.cols;
         column += static_cast<int32_t>(blockDim.x)) {
      const float w = p.weight == nullptr ? 1.0f : tdm::load_element(p.weight, p.weight_dtype, column);
      if (p.out != nullptr)
        tdm::store_element(p.out, p.out_dtype, row * p.out_stride + column, row_values[column] * inverse * w);
    }
    __syncthreads();
  }
  tdm::step_end(sync);
}
