#ifndef KERNELS_DEVICE_SOFTMAX_CUH
#define KERNELS_DEVICE_SOFTMAX_CUH

/* Online softmax over score fragments of 64 queries x 64 keys (wgmma.cuh has the layout): a thread has 16 keys of each
 * of two rows, lane / 4 and + 8; four lanes share a row. */

#include "kernels/device/fp8.cuh"

namespace tdm {

struct Softmax {
  float largest[2] = {-__builtin_huge_valf(), -__builtin_huge_valf()};
  float sum[2] = {0.0f, 0.0f}; /* of the unrounded probabilities; the thread's own until finish() */

  /* s: scores in, probabilities against the running maximum out. Keys from limit on do not count. factor: by how much
   * what was summed up before has to be scaled. NaN scores make their row NaN. */
  __device__ __forceinline__ void add(float (&s)[32], float (&factor)[2], float scale, const int32_t (&limit)[2]) {
    constexpr float kLog2E = 1.4426950408889634f, kInfinity = __builtin_huge_valf();
    const int32_t column = 2 * static_cast<int32_t>(threadIdx.x % 4);
    float top[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = i / 2 % 2;
      s[i] = 8 * (i / 4) + column + i % 2 < limit[half] ? s[i] * scale : -kInfinity;
      top[half] = fmaxf(top[half], s[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
      factor[half] = largest[half] == -kInfinity ? 0.0f : exp2f((largest[half] - top[half]) * kLog2E);
      largest[half] = top[half];
      sum[half] *= factor[half];
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = i / 2 % 2;
      /* Nothing but minus infinity so far: base 0, or the difference would be NaN where the probability is 0. */
      const float base = top[half] == -kInfinity ? 0.0f : top[half];
      s[i] = exp2f((s[i] - base) * kLog2E);
      sum[half] += s[i];
    }
  }

  /* Sums of the whole rows. */
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
};

/* Probabilities as bf16 in the layout of wgmma's first operand from registers: packed[k] for keys 16k .. 16k + 15. */
__device__ __forceinline__ void pack_probabilities(uint32_t (&packed)[4][4], const float (&s)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) packed[i / 4][i % 4] = bf16x2(s[2 * i], s[2 * i + 1]);
}

} // namespace tdm

#endif
