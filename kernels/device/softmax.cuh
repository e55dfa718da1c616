#ifndef KERNELS_DEVICE_SOFTMAX_CUH
#define KERNELS_DEVICE_SOFTMAX_CUH

/* Online softmax with scores in units of log2. The base that exponents are taken against is the running maximum rounded
 * up to a whole number, so that going to a higher one multiplies by a power of two: exact, and seldom needed. A
 * probability's bf16 mantissa is the same whatever the base, so kernels that meet the keys in another order, or in
 * parts, round as the reference does (kernels/common/softmax.h). */

#include "kernels/device/fp8.cuh"
#include "kernels/device/instructions.cuh"

namespace tdm {

/* What sums against base `from` are multiplied by to be against `to` >= from, both whole or minus infinity: exactly
 * 2^(from - to), 0 from minus infinity. */
__device__ __forceinline__ float base_factor(float from, float to) {
  const int32_t exponent = max(__float2int_rn(from - to), -127); /* a NaN difference gives 0 */
  return from == to ? 1.0f : __int_as_float((exponent + 127) << 23);
}

/* What is subtracted from scores: nothing while they are all minus infinity, or the difference would be NaN where the
 * probability is 0. */
__device__ __forceinline__ float finite_base(float base) {
  return base == -__builtin_huge_valf() ? 0.0f : base;
}

/* Keys that do not count have probability 0, but their values may be NaN: zeroes rows `valid` to 63 of kChunks chunks
 * of 64 rows of 128 bytes, one behind the other, by kThreads threads. A row stays one under the swizzle. */
template <int kChunks, int kThreads>
__device__ __forceinline__ void clear_rows(uint8_t* chunks, int32_t valid, int32_t thread) {
#pragma unroll 1
  for (int32_t row = valid + thread / 8; row < 64; row += kThreads / 8)
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
      *reinterpret_cast<uint4*>(chunks + chunk * (64 * 128) + row * 128 + thread % 8 * 16) = make_uint4(0, 0, 0, 0);
}

/* Of score fragments of 64 queries x 64 keys (wgmma.cuh has the layout): a thread has 16 keys of each of two rows,
 * lane / 4 and + 8; four lanes share a row. */
struct Softmax {
  float base[2] = {-__builtin_huge_valf(), -__builtin_huge_valf()};
  float sum[2] = {0.0f, 0.0f}; /* of the probabilities rounded to bf16; the thread's own until finish() */

  /* s: products in, probabilities against the new base out; log2_scale: what makes them scores, > 0. Keys from limit on
   * do not count. factor: by how much what was summed up before has to be scaled; false when by 1 for the whole warp.
   * NaN products make their row NaN. */
  __device__ __forceinline__ bool add(float (&s)[32], float (&factor)[2], float log2_scale, const int32_t (&limit)[2]) {
    constexpr float kInfinity = __builtin_huge_valf();
    if (limit[0] < 64 || limit[1] < 64) {
      const int32_t column = 2 * static_cast<int32_t>(threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (8 * (i / 4) + column + i % 2 >= limit[i / 2 % 2]) s[i] = -kInfinity;
    }
    float top[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int i = 0; i < 32; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
      top[half] = fmaxf(base[half], ceilf(top[half] * log2_scale));
      factor[half] = base_factor(base[half], top[half]);
      base[half] = top[half];
      sum[half] *= factor[half];
    }
    const float subtract[2] = {finite_base(base[0]), finite_base(base[1])};
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int half = i / 2 % 2;
      s[i] = exp2_approx(fmaf(s[i], log2_scale, -subtract[half]));
      s[i + 1] = exp2_approx(fmaf(s[i + 1], log2_scale, -subtract[half]));
      const uint32_t rounded = bf16x2(s[i], s[i + 1]);
      sum[half] += bf16_low(rounded) + bf16_high(rounded);
    }
    return __any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f) != 0;
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
