/* Random values, for sm_90a.
 *
 * 1. A thread makes 16 neighbouring elements: a hash of the index, two roundings in f32, one to the dtype.
 * 2. They leave in stores of 16 bytes; the last elements of a tensor one by one.
 *
 * Grid: any, walked with a grid stride. Block: 256 threads. Shared: none. Limit: integer multiplications. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/fill/fill_hash.h"
#include "kernels/fill/fill_params.h"

namespace {

__device__ __forceinline__ float value_at(const tdm_fill_params& p, int64_t index) {
  const float random =
      __fmul_rn(static_cast<float>(tdm_fill_hash(p.seed, static_cast<uint64_t>(index))), 1.0f / 32768.0f);
  return __fadd_rn(p.offset, __fmul_rn(p.amplitude, random));
}

__device__ __forceinline__ void store_value(const tdm_fill_params& p, int64_t index, float value) {
  if (p.dtype == 3) {
    static_cast<uint8_t*>(p.out)[index] = static_cast<uint8_t>(tdm::e4m3x2(value, 0.0f));
  } else {
    tdm::store_element(p.out, p.dtype, index, value);
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256)
    tdm_fill_sm90(const __grid_constant__ tdm_fill_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  constexpr int64_t run = 16;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * run;
  for (int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * run; first < p.count; first += stride) {
    const int64_t end = first + run < p.count ? first + run : p.count;
    if (p.dtype == 3 && end - first == run) {
      uint32_t words[4];
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const int64_t at = first + 4 * word;
        words[word] = tdm::e4m3x4(value_at(p, at), value_at(p, at + 1), value_at(p, at + 2), value_at(p, at + 3));
      }
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(p.out) + first) =
          make_uint4(words[0], words[1], words[2], words[3]);
    } else {
      for (int64_t i = first; i < end; ++i) store_value(p, i, value_at(p, i));
    }
  }
  tdm::step_end(sync);
}
