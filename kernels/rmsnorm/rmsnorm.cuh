#ifndef KERNELS_RMSNORM_RMSNORM_CUH
#define KERNELS_RMSNORM_RMSNORM_CUH

/* The rows of an RMSNorm, shared with mla_norm_write. rmsnorm_sm90.cu has the steps. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/rmsnorm/rmsnorm_params.h"

namespace tdm {

__device__ __forceinline__ void rmsnorm_load_8(const tdm_rmsnorm_params& p, int32_t row, int32_t column, bool vectors,
                                               float (&v)[8]) {
  load_8(v, p.x, p.x_dtype, row * p.x_stride + column, vectors);
  if (p.delta != nullptr) {
    float d[8];
    load_8(d, p.delta, p.delta_dtype, row * p.delta_stride + column, vectors);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += d[i];
  }
  if (p.residual_out != nullptr) {
    store_8(v, p.residual_out, p.residual_dtype, row * p.residual_stride + column, vectors);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = round_element(v[i], p.residual_dtype);
  }
}

__device__ __forceinline__ float rmsnorm_load_1(const tdm_rmsnorm_params& p, int32_t row, int32_t column) {
  float v = load_element(p.x, p.x_dtype, row * p.x_stride + column);
  if (p.delta != nullptr) v += load_element(p.delta, p.delta_dtype, row * p.delta_stride + column);
  if (p.residual_out != nullptr) {
    store_element(p.residual_out, p.residual_dtype, row * p.residual_stride + column, v);
    v = round_element(v, p.residual_dtype);
  }
  return v;
}

/* Eight elements as they lie, so that the load can be under way while its dtype is of no interest yet. */
struct Row8 {
  uint4 low, high; /* high: of f32 alone */
};

__device__ __forceinline__ Row8 fetch_row_8(const void* data, int32_t dtype, int64_t index) {
  Row8 row{};
  if (dtype == TDM_KERNEL_F32) {
    row.low = fetch_16(static_cast<const float*>(data) + index);
    row.high = fetch_16(static_cast<const float*>(data) + index + 4);
  } else {
    row.low = fetch_16(static_cast<const __nv_bfloat16*>(data) + index);
  }
  return row;
}

__device__ __forceinline__ void unpack_row_8(float (&v)[8], const Row8& row, int32_t dtype) {
  const uint4 a = row.low, b = row.high;
  if (dtype == TDM_KERNEL_F32) {
    v[0] = __uint_as_float(a.x), v[1] = __uint_as_float(a.y), v[2] = __uint_as_float(a.z), v[3] = __uint_as_float(a.w);
    v[4] = __uint_as_float(b.x), v[5] = __uint_as_float(b.y), v[6] = __uint_as_float(b.z), v[7] = __uint_as_float(b.w);
  } else {
    v[0] = bf16_low(a.x), v[1] = bf16_high(a.x), v[2] = bf16_low(a.y), v[3] = bf16_high(a.y);
    v[4] = bf16_low(a.z), v[5] = bf16_high(a.z), v[6] = bf16_low(a.w), v[7] = bf16_high(a.w);
  }
}

__device__ __forceinline__ void rmsnorm_zero_scales(const tdm_rmsnorm_params& p, int32_t row) {
  for (int32_t block = static_cast<int32_t>(threadIdx.x); block < p.cols / 128;
       block += static_cast<int32_t>(blockDim.x))
    p.out_scale[block * p.out_scale_stride + row] = 0.0f;
}

/* Eight columns of x and delta as they lie. */
struct RmsnormRow8 {
  Row8 x, delta;
};

__device__ __forceinline__ void rmsnorm_fetch_8(const tdm_rmsnorm_params& p, int32_t row, int32_t column,
                                                RmsnormRow8& row8) {
  row8.x = fetch_row_8(p.x, p.x_dtype, row * p.x_stride + column);
  if (p.delta != nullptr) row8.delta = fetch_row_8(p.delta, p.delta_dtype, row * p.delta_stride + column);
}

/* Their sum, rounded to the residual's dtype where there is one; stored there too, if it `stores`. */
__device__ __forceinline__ void rmsnorm_add_8(const tdm_rmsnorm_params& p, int32_t row, int32_t column, bool stores,
                                              const RmsnormRow8& row8, float (&v)[8]) {
  unpack_row_8(v, row8.x, p.x_dtype);
  if (p.delta != nullptr) {
    float d[8];
    unpack_row_8(d, row8.delta, p.delta_dtype);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += d[i];
  }
  if (p.residual_out != nullptr) {
    if (stores) store_8(v, p.residual_out, p.residual_dtype, row * p.residual_stride + column, true);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = round_element(v[i], p.residual_dtype);
  }
}

__device__ __forceinline__ float rmsnorm_inverse(const tdm_rmsnorm_params& p, float squares) {
  return __frcp_rn(__fsqrt_rn(squares / static_cast<float>(p.cols) + p.eps));
}

__device__ __forceinline__ void rmsnorm_scale_8(float (&v)[8], float inverse, const float (&w)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = v[i] * inverse * w[i];
}

/* Stores eight normalised columns of a row; whole warps, since the quantiser needs all lanes and leaves its quotients
 * in v. */
__device__ __forceinline__ void rmsnorm_store_8(const tdm_rmsnorm_params& p, int32_t row, int32_t column, bool inside,
                                                bool vectors, float (&v)[8]) {
  if (p.out != nullptr && inside) store_8(v, p.out, p.out_dtype, row * p.out_stride + column, vectors);
  if (p.out_q == nullptr) return;
  float scale;
  const uint2 bytes = quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
  if (!inside) return;
  store_bytes_8(p.out_q + row * p.out_q_stride + column, bytes, vectors);
  if (column % 128 == 0) p.out_scale[column / 128 * p.out_scale_stride + row] = scale;
}

/* Where a row comes from, for rmsnorm_one_pass: eight columns as they lie, then their f32 values. */
struct RmsnormInput {
  using Row = RmsnormRow8;
  const tdm_rmsnorm_params& p;

  __device__ __forceinline__ void fetch(int32_t row, int32_t column, Row& row8) const {
    rmsnorm_fetch_8(p, row, column, row8);
  }
  __device__ __forceinline__ void unpack(int32_t row, int32_t column, bool stores, const Row& row8,
                                         float (&v)[8]) const {
    rmsnorm_add_8(p, row, column, stores, row8, v);
  }
};

/* A row in the threads' registers, eight columns each. The weight comes before the wait, the row beside the live count:
 * at few rows the kernel is a chain of loads, and this leaves two of four. Then the first turn is a rehearsal with a
 * row of nothing, before the wait, so that the instructions are there when the row is; with more rows CTAs come late,
 * and it would take longer than it gives. */
template <class Input>
__device__ __forceinline__ void rmsnorm_one_pass(const tdm_rmsnorm_params& p, const Input& input,
                                                 const tdm_step_sync& sync, int32_t cta, int32_t n_ctas,
                                                 float* scratch) {
  const int32_t column = 8 * static_cast<int32_t>(threadIdx.x);
  const bool inside = column < p.cols, add_only = p.out == nullptr && p.out_q == nullptr;
  float w[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  const bool weighs = p.weight != nullptr && inside;
  if (weighs && sync.fetches_ahead != 0) load_8(w, p.weight, p.weight_dtype, column, true);
  int32_t row = -1, next = cta, live = 0;
  typename Input::Row row8{};
  const auto fetch = [&] {
    if (next < p.rows && inside) input.fetch(next, column, row8);
    next += n_ctas;
  };
  const auto begin = [&] {
    step_begin(sync);
    if (weighs && sync.fetches_ahead == 0) load_8(w, p.weight, p.weight_dtype, column, true);
    row = next;
    fetch();
    live = live_rows(p.n_tokens, p.rows);
  };
  if (p.rows > TDM_RMSNORM_FEW_ROWS) begin();
#pragma unroll 1
  while (row < live) {
    float v[8] = {}, squares = 0.0f;
    if (inside) {
      input.unpack(row, column, row >= 0, row8, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    }
    if (row >= 0) fetch(); /* on its way while this one is summed */
    if (!add_only) {
      rmsnorm_scale_8(v, rmsnorm_inverse(p, block_sum(squares, scratch)), w);
      rmsnorm_store_8(p, row, column, inside && row >= 0, true, v);
      __syncthreads();
    }
    if (row >= 0)
      row += n_ctas;
    else
      begin();
  }
  if (p.out_q == nullptr) return;
  for (; row < (live + 3) / 4 * 4; row += n_ctas) rmsnorm_zero_scales(p, row);
}

/* All rows, as CTA `cta` of `n_ctas`, from the beginning of the step on; the caller ends it. Dynamic shared memory: a
 * row in f32. */
__device__ __forceinline__ void rmsnorm_rows(const tdm_rmsnorm_params& p, const tdm_step_sync& sync, int32_t cta,
                                             int32_t n_ctas) {
  TDM_DYNAMIC_SHARED(float, row_values, 4);
  __shared__ float scratch[32];
  if (p.vectors != 0 && p.cols <= 8 * static_cast<int32_t>(blockDim.x)) {
    return rmsnorm_one_pass(p, RmsnormInput{p}, sync, cta, n_ctas, scratch);
  }
  step_begin(sync);
  const int32_t live = live_rows(p.n_tokens, p.rows);
  const int32_t end = p.out_q == nullptr ? live : (live + 3) / 4 * 4;
  const bool vectors = p.vectors != 0;
  const int32_t whole = p.cols / 8 * 8, step = 8 * static_cast<int32_t>(blockDim.x);
  const int32_t first = 8 * static_cast<int32_t>(threadIdx.x);
  const bool add_only = p.out == nullptr && p.out_q == nullptr;

  for (int32_t row = cta; row < end; row += n_ctas) {
    if (row >= live) {
      rmsnorm_zero_scales(p, row);
      continue;
    }
    float squares = 0.0f;
    for (int32_t column = first; column < whole; column += step) {
      float v[8];
      rmsnorm_load_8(p, row, column, vectors, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        squares += v[i] * v[i];
        row_values[column + i] = v[i];
      }
    }
    for (int32_t column = whole + static_cast<int32_t>(threadIdx.x); column < p.cols;
         column += static_cast<int32_t>(blockDim.x)) {
      const float v = rmsnorm_load_1(p, row, column);
      squares += v * v;
      row_values[column] = v;
    }
    if (add_only) continue;

    const float inverse = rmsnorm_inverse(p, block_sum(squares, scratch));

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
      if (p.weight != nullptr && inside) load_8(w, p.weight, p.weight_dtype, column, vectors);
      rmsnorm_scale_8(v, inverse, w);
      rmsnorm_store_8(p, row, column, inside, vectors, v);
    }
    for (int32_t column = whole + static_cast<int32_t>(threadIdx.x); column < p.cols;
         column += static_cast<int32_t>(blockDim.x)) {
      const float w = p.weight == nullptr ? 1.0f : load_element(p.weight, p.weight_dtype, column);
      if (p.out != nullptr)
        store_element(p.out, p.out_dtype, row * p.out_stride + column, row_values[column] * inverse * w);
    }
    __syncthreads();
  }
}

} // namespace tdm

#endif
