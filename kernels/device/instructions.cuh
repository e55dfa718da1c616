#ifndef KERNELS_DEVICE_INSTRUCTIONS_CUH
#define KERNELS_DEVICE_INSTRUCTIONS_CUH

/* One instruction a wrapper: conversions, reciprocals, loads and stores. mbarrier.cuh, tma.cuh and wgmma.cuh have those
 * that wait, copy and multiply. */

#include <cstdint>

namespace tdm {

/* Two floats to e4m3, `low` in the low byte: nearest, ties to even, saturating to 448; NaN gives 0x7f. */
__device__ __forceinline__ uint16_t e4m3x2(float low, float high) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

/* Two floats to bf16, `low` in the low half: nearest, ties to even. */
__device__ __forceinline__ uint32_t bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/* The larger magnitude of either half; its sign is of no use. NaN wins over all. */
__device__ __forceinline__ uint32_t bf16x2_largest(uint32_t a, uint32_t b) {
  uint32_t largest;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(largest) : "r"(a), "r"(b));
  return largest;
}

__device__ __forceinline__ float f32_largest(float a, float b) {
  float largest;
  asm("max.NaN.xorsign.abs.f32 %0, %1, %2;" : "=f"(largest) : "f"(a), "f"(b));
  return largest;
}

/* 1 / value to within a bit; value normal. */
__device__ __forceinline__ float reciprocal_near(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

/* 1 / value to within some 20 bits, subnormal values as 0. */
__device__ __forceinline__ double reciprocal_near(double value) {
  double result;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(result) : "d"(value));
  return result;
}

/* Volatile, lest the load be moved behind the test of the live count. */
__device__ __forceinline__ uint4 fetch_16(const void* address) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

/* Likewise. */
__device__ __forceinline__ int32_t fetch_i32(const int32_t* address) {
  int32_t v;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
  return v;
}

/* 8 bytes, if `inside`: a predicate, no branch, so that what comes before and after can mix. */
__device__ __forceinline__ void store_8_bytes_if(bool inside, void* target, uint2 bytes) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %0, 0;\n"
               "@p st.global.v2.b32 [%1], {%2, %3};\n"
               "}\n" ::"r"(static_cast<int32_t>(inside)),
               "l"(target), "r"(bytes.x), "r"(bytes.y)
               : "memory");
}

/* 16 bytes from global to shared memory, past L1. The thread that asked waits until at most kGroups of its groups are
 * under way. */
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}

/* 4 bytes from global to shared memory, as copy_async_16. */
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}

/* Arrives at the barrier, as one of those it counts, when all copies that this thread has asked for are done. */
__device__ __forceinline__ void copy_async_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kGroups> __device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/* Orders what this thread did and saw, in device memory, on both sides for all threads of the GPU: a release before a
 * relaxed store or atomic, an acquire after a load. Lighter than __threadfence, which is sequentially consistent. */
__device__ __forceinline__ void fence_gpu() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/* No instruction: the compiler keeps the value in a register instead of computing it again in a loop, or where it would
 * come in later. */
template <class Value> __device__ __forceinline__ Value kept(Value value) {
  if constexpr (sizeof(Value) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
  return value;
}

__device__ __forceinline__ float kept(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* The value of lane 0, which the other lanes have too: so the compiler knows, and computes with it once a warp.
 * Descriptors of wgmma that are reckoned from it stay in uniform registers; else four are moved there a product. */
template <class Value> __device__ __forceinline__ Value same_in_warp(Value value) {
  return __shfl_sync(~0u, value, 0);
}

} // namespace tdm

#endif
