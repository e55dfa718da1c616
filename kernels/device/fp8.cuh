#ifndef KERNELS_DEVICE_FP8_CUH
#define KERNELS_DEVICE_FP8_CUH

/* Small formats: conversions, and the scale of a quantised block (docs/formulas.md, section 2). */

#include <cuda_bf16.h>

#include "kernels/device/instructions.cuh"

namespace tdm {

__device__ __forceinline__ uint32_t e4m3x4(float v0, float v1, float v2, float v3) {
  return static_cast<uint32_t>(e4m3x2(v0, v1)) | static_cast<uint32_t>(e4m3x2(v2, v3)) << 16;
}

__device__ __forceinline__ float bf16_low(uint32_t packed) {
  return __uint_as_float(packed << 16);
}

__device__ __forceinline__ float bf16_high(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

/* Scale of a block whose largest magnitude is `amax`; `broken`: the block holds NaN or infinity. */
__device__ __forceinline__ float quant_scale(float amax, bool broken, float eps, bool pow2) {
  uint32_t bits = __float_as_uint(fmaxf(amax, eps) * (1.0f / 448.0f));
  if (pow2) bits = (bits + 0x007fffffu) & 0x7f800000u;
  return __uint_as_float(broken ? 0x7fc00000u : bits);
}

/* Values of a block over its scale. Not always the correctly rounded quotient, but always one that e4m3 cannot tell
 * from it: where a code ends (5 bits at most), value and quotient are on the same side. tests/kernels/test_quant.c
 * tries the neighbours of such places. The scale is at least 2^-80, so that remainders are no subnormal numbers. */
template <int kCount> __device__ __forceinline__ void quotients_from_2_80(float (&v)[kCount], float scale) {
  float reciprocal = reciprocal_near(scale);
  reciprocal = __fmaf_rn(-__fmaf_rn(reciprocal, scale, -1.0f), reciprocal, reciprocal); /* correctly rounded */
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float near = v[i] * reciprocal;
    v[i] = __fmaf_rn(-__fmaf_rn(near, scale, -v[i]), reciprocal, near); /* so that -0 stays */
  }
}

/* The same for every scale. */
template <int kCount> __device__ __forceinline__ void quotients(float (&v)[kCount], float scale) {
  if (scale < 0x1p-80f) {
    scale *= 0x1p40f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= 0x1p40f;
  }
  quotients_from_2_80(v, scale);
}

/* The same for values with the 8 bits of bf16, for a third fewer instructions: value * hi + value * lo, where hi <= 1 /
 * scale within a few bits and hi + lo is 1 / scale to 2^-44. For magnitudes of the scale from 2^-120 to 2^105. */
template <int kCount> __device__ __forceinline__ void quotients_of_bf16(float (&v)[kCount], float scale) {
  const float hi = __uint_as_float(__float_as_uint(reciprocal_near(scale)) - 2u);
  const float lo = __fmaf_rn(-hi, scale, 1.0f) * hi;
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = __fmaf_rn(v[i], hi, v[i] * lo);
}

} // namespace tdm

#endif
