#ifndef KERNELS_GEMM_FP8_GEMM_FP8_SERIAL_CUH
#define KERNELS_GEMM_FP8_GEMM_FP8_SERIAL_CUH

/* The sum of a unit that goes through all segments of its tile in turn: the same additions as when units share them. */

#include "kernels/device/gemm.cuh"
#include "kernels/gemm_fp8/gemm_fp8_params.h"

namespace tdm {

template <int kCount> struct SerialSum {
  float total[kCount];
  int32_t segment, next; /* the block at which it ends; 0: one segment, or a unit a segment */

  __device__ __forceinline__ explicit SerialSum(const tdm_gemm_fp8_params& p) {
    segment = 0;
    next = p.segments > p.parts ? segment_begin(1, p.segments, p.k_blocks, p.granule) : 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) total[i] = 0.0f;
  }

  /* All blocks below `block` are in c. */
  __device__ __forceinline__ void at(const tdm_gemm_fp8_params& p, float (&c)[kCount], int32_t block) {
    if (block != next) return;
    ++segment;
    next = segment_begin(segment + 1, p.segments, p.k_blocks, p.granule);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      total[i] += c[i];
      c[i] = 0.0f;
    }
  }

  /* After the last block: c becomes the sum. */
  __device__ __forceinline__ void end(float (&c)[kCount]) const {
    if (segment == 0) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) c[i] = total[i];
  }
};

/* Where registers do not allow it: there is always a unit a segment. */
template <> struct SerialSum<0> {
  __device__ __forceinline__ explicit SerialSum(const tdm_gemm_fp8_params&) {
  }
  template <int kCount>
  __device__ __forceinline__ void at(const tdm_gemm_fp8_params&, float (&)[kCount], int32_t) const {
  }
  template <int kCount> __device__ __forceinline__ void end(float (&)[kCount]) const {
  }
};

} // namespace tdm

#endif
