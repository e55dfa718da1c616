#ifndef KERNELS_DEVICE_BULK_CUH
#define KERNELS_DEVICE_BULK_CUH

/* Bulk copies of plain bytes. */

#include "kernels/device/mbarrier.cuh"

namespace tdm {

/* `bytes` from global to shared memory, completing on the barrier. Addresses and size are multiples of 16. */
__device__ __forceinline__ void bulk_load(void* destination, const void* source, uint64_t* barrier, uint32_t bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(destination)),
               "l"(source), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

/* `bytes` of global memory to L2. Address and size are multiples of 16. */
__device__ __forceinline__ void bulk_prefetch(const void* source, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}

} // namespace tdm

#endif
