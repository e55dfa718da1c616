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

/* The line that holds the address. */
__device__ __forceinline__ void l2_prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
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

__device__ __forceinline__ void tma_load_4d(void* destination, const tdm_tensor_map* map, uint64_t* barrier,
                                            uint64_t policy, int32_t x0, int32_t x1, int32_t x2, int32_t x3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
               " [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "l"(policy), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

/* From shared to global memory, in the background: what lies outside the tensor is left out. The source is written
 * before a fence_async_shared of its writers and may be written again after tma_store_wait_read by the same thread. */
__device__ __forceinline__ void tma_store_2d(const tdm_tensor_map* map, const void* source, int32_t x0, int32_t x1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(x0), "r"(x1)
               : "memory");
}

__device__ __forceinline__ void tma_store_3d(const tdm_tensor_map* map, const void* source, int32_t x0, int32_t x1,
                                             int32_t x2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}

__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until the sources of all stores committed by this thread have been read. */
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* Until all stores committed by this thread are done and seen by whoever this thread tells. */
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

} // namespace tdm

#endif
