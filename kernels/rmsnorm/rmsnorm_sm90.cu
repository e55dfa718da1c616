/* RMSNorm with residual add and FP8 quantisation, for sm_90a.
 *
 * 1. A CTA takes rows blockIdx.x, + gridDim.x, ...
 * 2. x + delta, rounded to the residual's dtype and stored; the f32 row stays in registers, where 8 columns a thread
 * are enough and accesses are aligned, else in shared memory; its squares are summed.
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

/* Eight elements as they lie, so that the load can be under way while its dtype is of no interest yet. */
struct Row8 {
  uint4 low, high; /* high: of f32 alone */
};

/* Volatile, lest the load be moved behind the test of the live count. */
__device__ __forceinline__ uint4 fetch_16(const void* address) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ Row8 fetch_8(const void* data, int32_t dtype, int64_t index) {
  Row8 row{};
  if (dtype == TDM_KERNEL_F32) {
    row.low = fetch_16(static_cast<const float*>(data) + index);
    row.high = fetch_16(static_cast<const float*>(data) + index + 4);
  } else {
    row.low = fetch_16(static_cast<const __nv_bfloat16*>(data) + index);
  }
  return row;
}

__device__ __forceinline__ void unpack_8(float (&v)[8], const Row8& row, int32_t dtype) {
  const uint4 a = row.low, b = row.high;
  if (dtype == TDM_KERNEL_F32) {
    v[0] = __uint_as_float(a.x), v[1] = __uint_as_float(a.y), v[2] = __uint_as_float(a.z), v[3] = __uint_as_float(a.w);
    v[4] = __uint_as_float(b.x), v[5] = __uint_as_float(b.y), v[6] = __uint_as_float(b.z), v[7] = __uint_as_float(b.w);
  } else {
    v[0] = tdm::bf16_low(a.x), v[1] = tdm::bf16_high(a.x), v[2] = tdm::bf16_low(a.y), v[3] = tdm::bf16_high(a.y);
    v[4] = tdm::bf16_low(a.z), v[5] = tdm::bf16_high(a.z), v[6] = tdm::bf16_low(a.w), v[7] = tdm::bf16_high(a.w);
  }
}

__device__ void zero_scales(const tdm_rmsnorm_params& p, int32_t row) {
  for (int32_t block = static_cast<int32_t>(threadIdx.x); block < p.cols / 128;
       block += static_cast<int32_t>(blockDim.x))
    p.out_scale[block * p.out_scale_stride + row] = 0.0f;
}

/* Normalises and stores eight columns of a row; whole warps, since the quantiser needs all lanes. */
__device__ __forceinline__ void finish_8(const tdm_rmsnorm_params& p, int32_t row, int32_t column, bool inside,
                                         bool vectors, float (&v)[8], float inverse, const float (&w)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = v[i] * inverse * w[i];
  if (p.out != nullptr && inside) tdm::store_8(v, p.out, p.out_dtype, row * p.out_stride + column, vectors);
  if (p.out_q == nullptr) return;
  float scale;
  const uint2 bytes = tdm::quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
  if (!inside) return;
  tdm::store_bytes_8(p.out_q + row * p.out_q_stride + column, bytes, vectors);
  if (column % 128 == 0) p.out_scale[column / 128 * p.out_scale_stride + row] = scale;
}

/* A row in the threads' registers, eight columns each. The weight comes before the wait, the row beside the live count:
 * at few rows the kernel is a chain of loads, and this leaves two of four. */
__device__ void one_pass(const tdm_rmsnorm_params& p, const tdm_step_sync& sync, float* scratch) {
  const int32_t column = 8 * static_cast<int32_t>(threadIdx.x);
  const bool inside = column < p.cols, add_only = p.out == nullptr && p.out_q == nullptr;
  float w[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  const bool weighs = p.weight != nullptr && inside;
  if (weighs && sync.fetches_ahead != 0) tdm::load_8(w, p.weight, p.weight_dtype, column, true);
  tdm::step_begin(sync);
  if (weighs && sync.fetches_ahead == 0) tdm::load_8(w, p.weight, p.weight_dtype, column, true);
  int32_t row = static_cast<int32_t>(blockIdx.x);
  Row8 x{}, delta{};
  const auto fetch = [&] {
    if (row >= p.rows || !inside) return;
    x = fetch_8(p.x, p.x_dtype, row * p.x_stride + column);
    if (p.delta != nullptr) delta = fetch_8(p.delta, p.delta_dtype, row * p.delta_stride + column);
  };
  fetch();
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows);
  const int32_t end = p.out_q == nullptr ? live : (live + 3) / 4 * 4;
  while (row < end) {
    if (row >= live) {
      zero_scales(p, row);
      row += static_cast<int32_t>(gridDim.x);
      continue;
    }
    float v[8] = {}, squares = 0.0f;
    if (inside) {
      unpack_8(v, x, p.x_dtype);
      if (p.delta != nullptr) {
        float d[8];
        unpack_8(d, delta, p.delta_dtype);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += d[i];
      }
      if (p.residual_out != nullptr) {
        tdm::store_8(v, p.residual_out, p.residual_dtype, row * p.residual_stride + column, true);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = tdm::round_element(v[i], p.residual_dtype);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    }
    const int32_t mine = row;
    row += static_cast<int32_t>(gridDim.x);
    fetch(); /* the next row, on its way while this one is summed */
    if (add_only) continue;
    const float mean = tdm::block_sum(squares, scratch) / static_cast<float>(p.cols);
    finish_8(p, mine, column, inside, true, v, __frcp_rn(__fsqrt_rn(mean + p.eps)), w);
    __syncthreads();
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(1024)
    tdm_rmsnorm_sm90(const __grid_constant__ tdm_rmsnorm_params p, const __grid_constant__ tdm_step_sync sync) {
  extern __shared__ float row_values[];
  __shared__ float scratch[32];
  if (p.vectors != 0 && p.cols <= 8 * static_cast<int32_t>(blockDim.x)) {
    one_pass(p, sync, scratch);
    return tdm::step_end(sync);
  }
  tdm::step_begin(sync);
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
        v[i] = inside ? row_values[column + i] : 0.0f;
        w[i] = 1.0f;
      }
      if (p.weight != nullptr && inside) tdm::load_8(w, p.weight, p.weight_dtype, column, vectors);
      finish_8(p, row, column, inside, vectors, v, inverse, w);
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
