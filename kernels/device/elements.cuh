#ifndef KERNELS_DEVICE_ELEMENTS_CUH
#define KERNELS_DEVICE_ELEMENTS_CUH

/* Rows of bf16 or f32, eight elements at a time, and the quantisation of eight elements of a block of 128. The dtype is
 * a run-time value: it is the same for all threads. */

#include "kernels/device/abi.h"
#include "kernels/device/fp8.cuh"
#include "kernels/device/reduce.cuh"

namespace tdm {

__device__ __forceinline__ float load_element(const void* data, int32_t dtype, int64_t index) {
  if (dtype == TDM_KERNEL_F32) return static_cast<const float*>(data)[index];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
}

__device__ __forceinline__ void store_element(void* data, int32_t dtype, int64_t index, float value) {
  if (dtype == TDM_KERNEL_F32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
  }
}

/* What a store and a load would make of `value`. */
__device__ __forceinline__ float round_element(float value, int32_t dtype) {
  return dtype == TDM_KERNEL_F32 ? value : __bfloat162float(__float2bfloat16_rn(value));
}

/* Elements index .. index + 7; with `vectors` the address is 16-byte aligned. */
__device__ __forceinline__ void load_8(float (&v)[8], const void* data, int32_t dtype, int64_t index, bool vectors) {
  if (!vectors) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = load_element(data, dtype, index + i);
  } else if (dtype == TDM_KERNEL_F32) {
    const float4* source = reinterpret_cast<const float4*>(static_cast<const float*>(data) + index);
    const float4 a = source[0], b = source[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
    const uint4 a = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(data) + index);
    v[0] = bf16_low(a.x), v[1] = bf16_high(a.x), v[2] = bf16_low(a.y), v[3] = bf16_high(a.y);
    v[4] = bf16_low(a.z), v[5] = bf16_high(a.z), v[6] = bf16_low(a.w), v[7] = bf16_high(a.w);
  }
}

__device__ __forceinline__ void store_8(const float (&v)[8], void* data, int32_t dtype, int64_t index, bool vectors) {
  if (!vectors) {
#pragma unroll
    for (int i = 0; i < 8; ++i) store_element(data, dtype, index + i, v[i]);
  } else if (dtype == TDM_KERNEL_F32) {
    float4* target = reinterpret_cast<float4*>(static_cast<float*>(data) + index);
    target[0] = make_float4(v[0], v[1], v[2], v[3]);
    target[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(data) + index) =
        make_uint4(bf16x2(v[0], v[1]), bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
  }
}

/* Eight elements of a block that 16 neighbouring lanes hold: returns their e4m3 bytes and the block's scale, and leaves
 * the quotients in v. All 32 lanes take part. A block with NaN or infinity gets scale NaN, and v / NaN turns every byte
 * into 0x7f. */
__device__ __forceinline__ uint2 quant_8(float (&v)[8], float eps, bool pow2, float* out_scale) {
  float amax = 0.0f;
  bool broken = false;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    amax = fmaxf(amax, fabsf(v[i]));
    broken |= !(fabsf(v[i]) <= 3.402823466e38f);
  }
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t half = 0xffffu << (lane & 16);
  broken = (__ballot_sync(~0u, broken) & half) != 0;
  const float scale = quant_scale(lanes_max<16>(amax), broken, eps, pow2);
  *out_scale = scale;
  quotients(v, scale);
  return make_uint2(e4m3x4(v[0], v[1], v[2], v[3]), e4m3x4(v[4], v[5], v[6], v[7]));
}

__device__ __forceinline__ void store_bytes_8(uint8_t* target, uint2 bytes, bool vectors) {
  if (vectors) {
    *reinterpret_cast<uint2*>(target) = bytes;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      target[i] = static_cast<uint8_t>(bytes.x >> (8 * i));
      target[4 + i] = static_cast<uint8_t>(bytes.y >> (8 * i));
    }
  }
}

/* Live rows: the count in device memory, or `rows`. */
__device__ __forceinline__ int32_t live_rows(const int32_t* n_tokens, int32_t rows) {
  return n_tokens == nullptr ? rows : min(max(*n_tokens, 0), rows);
}

} // namespace tdm

#endif
