#ifndef KERNELS_DEVICE_CLUSTER_CUH
#define KERNELS_DEVICE_CLUSTER_CUH

/* Clusters: CTAs on neighbouring SMs that reach each other's shared memory. One instruction a wrapper. */

#include <cstdint>

#include "kernels/device/mbarrier.cuh"
#include "kernels/device/tma.cuh"

namespace tdm {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/* All threads of the cluster that have not exited. Orders no memory; for barriers just initialised there is
 * fence_barrier_init before it. */
__device__ __forceinline__ void cluster_sync_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;\n"
               "barrier.cluster.wait;" ::
                   : "memory");
}

/* Where an object of this CTA's shared memory lies in CTA `rank`, as an address of the cluster's shared memory. */
__device__ __forceinline__ uint32_t cluster_address(const void* pointer, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

/* Release at CTA scope, which is enough for handing back a stage that was only read; at cluster scope the compiler puts
 * a MEMBAR before it. */
__device__ __forceinline__ void mbarrier_arrive_at(uint32_t cluster_address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}

/* One read of L2 for all CTAs of `ranks` (a bit each): the tile and its completion arrive at the same place in each. */
__device__ __forceinline__ void tma_load_3d_multicast(void* destination, const tdm_tensor_map* map, uint64_t* barrier,
                                                      uint64_t policy, uint16_t ranks, int32_t x0, int32_t x1,
                                                      int32_t x2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
               ".L2::cache_hint [%0], [%1, {%5, %6, %7}], [%2], %4, %3;" ::"r"(shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "l"(policy), "h"(ranks), "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}

} // namespace tdm

#endif
