#ifndef KERNELS_DEVICE_TMA_CUH
#define KERNELS_DEVICE_TMA_CUH

#include "kernels/device/abi.h"
#include "kernels/device/mbarrier.cuh"

namespace tdm {

inline uint64_t l2_evict_first() {
  return 0;
}
inline uint64_t l2_evict_last() {
  return 0;
}
inline void l2_prefetch(const void*) {
}
inline void tma_prefetch_map(const tdm_tensor_map*) {
}
inline void tma_load_2d(void* destination, const tdm_tensor_map* map, uint64_t* barrier, uint64_t, int32_t x0,
                        int32_t x1) {
  emulator::copy_tile(destination, map, barrier, x0, x1);
}
inline void tma_load_3d(void* destination, const tdm_tensor_map* map, uint64_t* barrier, uint64_t, int32_t x0,
                        int32_t x1, int32_t x2) {
  emulator::copy_tile(destination, map, barrier, x0, x1, x2);
}
inline void tma_load_4d(void* destination, const tdm_tensor_map* map, uint64_t* barrier, uint64_t, int32_t x0,
                        int32_t x1, int32_t x2, int32_t x3) {
  emulator::copy_tile(destination, map, barrier, x0, x1, x2, x3);
}

} // namespace tdm

#endif
