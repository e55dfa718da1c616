#ifndef KERNELS_DEVICE_FP8_CUH
#define KERNELS_DEVICE_FP8_CUH

/* Small formats: conversions, and the scale of a quantised block (docs/formulas.md, section 2). */

#include <cuda_bf16.h>

#include <cstdint>

namespace tdm {

/* Two floats to e4m3, `low` in the low byte: nearest, ties to even, saturating to 448; NaN gives 0x7f. */
__device__ __forceinline__ uint16_t e4m3x2(float low, float high) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ uint32_t e4m3x4(float v0, float v1, float v2, float v3) {
  return static_cast<uint32_t>(e4m3x2(v0, v1)) | static_cast<uint32_t>(e4m3x2(v2, v3)) << 16;
}

/* Two floats to bf16, `low` in the low half: nearest, ties to even. */
__device__ __forceinline__ uint32_t bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float bf16_low(uint32_t packed) {
  return __uint_as_float(packed << 16);
}

__device__ __forceinline__ float bf16_high(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

/* Scale of a block whose largest magnitude is `amax`; `broken`: the block holds NaN or infinity. */
__device__ __forceinline__ float quant_scale(float amax, bool broken, float eps, bool pow2) {
  if (broken) return __uint_as_float(0x7fc00000u);
  const float scale = fmaxf(amax, eps) * (1.0f / 448.0f);
  if (!pow2) return scale;
  const uint32_t bits = __float_as_uint(scale);
  return __uint_as_float((bits + 0x007fffffu) & 0x7f800000u);
}

} // namespace tdm

#endif
