#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_CUH
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_CUH

/* What a router's product does besides; for router_gemm and moe_gate. */

#include "kernels/device/prefetch.cuh"
#include "kernels/gemm_bf16/gemm_bf16.cuh"
#include "kernels/router_gemm/router_gemm_params.h"

namespace tdm {

/* Until the router's input is there, and until what it routes begins, the memory has little to do: all CTAs, also those
 * without a unit, ask for what a later step reads into L2. */
struct RouterPrefetch : NothingMore {
  const tdm_router_gemm_params& p;

  __device__ explicit RouterPrefetch(const tdm_router_gemm_params& params) : p(params) {
  }
  __device__ void ahead() const {
    prefetch_rows(p.prefetch, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
  }
};

} // namespace tdm

#endif
