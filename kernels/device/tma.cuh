#ifndef KERNELS_DEVICE_TMA_CUH
#define KERNELS_DEVICE_TMA_CUH

/* The tensor copy engine: tiles from global to shared memory, completing on an mbarrier. Destinations are 128-byte
 * aligned, 1024 with the 128-byte swizzle. What lies outside the tensor arrives as zeros and counts as delivered. */

#include <cstdint>

#include "kernels/device/abi.h"
#include "kernels/device/mbarrier.cuh"

namespace tdm {

/* L2 policy for data that is read once: weights. */
__device__ __forceinline__ uint64_t l2_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/* L2 policy for data that every CTA reads again: activations. */
__device__ __forceinline__ uint64_t l2_evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void tma_prefetch_map(const tdm_tensor_map* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void tma_load_2d(void* destination, const tdm_tensor_map* map, uint64_t* barrier,
                                            uint64_t policy, int32_t x0, int32_t x1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
               " [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "l"(policy), "r"(x0), "r"(x1)
               : "memory");
}

__device__ __forceinline__ void tma_load_3d(void* destination, const tdm_tensor_map* map, uint64_t* barrier,
                                            uint64_t policy, int32_t x0, int32_t x1, int32_t x2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
               " [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "l"(policy), "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}

} // namespace tdm

#endif
