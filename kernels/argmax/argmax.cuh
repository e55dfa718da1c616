#ifndef KERNELS_ARGMAX_ARGMAX_CUH
#define KERNELS_ARGMAX_ARGMAX_CUH

/* Index of a row's largest value, by a whole CTA; shared with sample. */

#include <cstdint>

namespace tdm {

struct ArgmaxScratch {
  float values[32];
  int32_t indices[32];
};

/* A candidate; no index: none yet. */
struct Largest {
  float value;
  int32_t index;
};

constexpr int32_t kNoIndex = 0x7fffffff;

/* Whether a beats b: the larger one, the lower index among equals. A value that exists beats none. */
__device__ __forceinline__ bool beats(const Largest& a, const Largest& b) {
  if (a.index == kNoIndex) return false;
  return b.index == kNoIndex || a.value > b.value || (a.value == b.value && a.index < b.index);
}

__device__ __forceinline__ Largest largest_of_warp(Largest best) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Largest other{__shfl_xor_sync(~0u, best.value, distance), __shfl_xor_sync(~0u, best.index, distance)};
    if (beats(other, best)) best = other;
  }
  return best;
}

/* NaN never wins; 0 when there is nothing else. Every thread gets the index. `scratch` is free again after the caller's
 * next __syncthreads. */
__device__ __forceinline__ int32_t block_argmax(const float* values, int32_t count, ArgmaxScratch& scratch) {
  const int32_t threads = static_cast<int32_t>(blockDim.x), lane = static_cast<int32_t>(threadIdx.x % 32);
  Largest best{0.0f, kNoIndex};
#pragma unroll 8
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += threads) {
    const float v = values[i];
    if (!isnan(v) && (best.index == kNoIndex || v > best.value)) best = Largest{v, i};
  }
  best = largest_of_warp(best);
  if (lane == 0) {
    scratch.values[threadIdx.x / 32] = best.value;
    scratch.indices[threadIdx.x / 32] = best.index;
  }
  __syncthreads();
  const bool inside = lane < threads / 32;
  best = largest_of_warp(Largest{inside ? scratch.values[lane] : 0.0f, inside ? scratch.indices[lane] : kNoIndex});
  return best.index == kNoIndex ? 0 : best.index;
}

} // namespace tdm

#endif
