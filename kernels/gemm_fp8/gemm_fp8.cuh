#ifndef KERNELS_GEMM_FP8_GEMM_FP8_CUH
#define KERNELS_GEMM_FP8_GEMM_FP8_CUH

/* What the swapped and the upright form share. */

#include "kernels/device/gemm.cuh"
#include "kernels/gemm_fp8/gemm_fp8_params.h"

namespace tdm {

/* Where a segment's sums go that stay apart. */
__device__ __forceinline__ Output segment_output(const tdm_gemm_fp8_params& p, int32_t segment, int32_t live) {
  return Output{p.partials + int64_t{segment} * p.m * p.n, p.n, TDM_KERNEL_F32, live, p.n};
}

} // namespace tdm

#endif
