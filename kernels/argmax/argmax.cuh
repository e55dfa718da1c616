#ifndef KERNELS_ARGMAX_ARGMAX_CUH
#define KERNELS_ARGMAX_ARGMAX_CUH

/* Walking a row of logits, and the index of the largest one, by a whole CTA; shared with sample. */

#include <cstdint>

namespace tdm {

/* Four neighbouring logits; NaN from `end` on. `aligned`: index is at a multiple of 16 bytes. */
__device__ __forceinline__ float4 load_logits(const float* values, int32_t index, int32_t end, bool aligned) {
  if (aligned && index + 4 <= end) return *reinterpret_cast<const float4*>(values + index);
  const float nan = __uint_as_float(0x7fc00000u);
  return make_float4(index < end ? values[index] : nan, index + 1 < end ? values[index + 1] : nan,
                     index + 2 < end ? values[index + 2] : nan, index + 3 < end ? values[index + 3] : nan);
}

/* Calls use(index, float4) for the logits begin .. end - 1 that are the share of `thread` of `threads`, ascending; four
 * loads are under way at a time. `begin` divides by 4. What fills up the last four is NaN. */
template <class Use>
__device__ __forceinline__ void walk_logits(const float* values, int32_t begin, int32_t end, int32_t thread,
                                            int32_t threads, Use use) {
  const bool aligned = reinterpret_cast<uintptr_t>(values) % 16 == 0;
  const int32_t step = 4 * threads;
  for (int32_t i = begin + 4 * thread; i < end; i += 4 * step) {
    float4 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = load_logits(values, i + k * step, end, aligned);
#pragma unroll
    for (int k = 0; k < 4; ++k) use(i + k * step, v[k]);
  }
}

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
  Largest best{-__builtin_huge_valf(), kNoIndex};
  walk_logits(values, 0, count, static_cast<int32_t>(threadIdx.x), threads, [&](int32_t index, const float4& four) {
    const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (v[i] > best.value || (best.index == kNoIndex && !isnan(v[i]))) best = Largest{v[i], index + i};
  });
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
