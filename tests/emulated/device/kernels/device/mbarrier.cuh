#ifndef KERNELS_DEVICE_MBARRIER_CUH
#define KERNELS_DEVICE_MBARRIER_CUH

#include "tests/emulated/emulator.h"

namespace tdm {

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(pointer) - emulator::shared);
}
inline void mbarrier_init(uint64_t* barrier, uint32_t count) {
  emulator::mbarrier_init(barrier, count);
}
inline void fence_barrier_init() {
}
inline void mbarrier_arrive(uint64_t* barrier) {
  emulator::mbarrier_arrive(barrier, 0);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  emulator::mbarrier_arrive(barrier, bytes);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  emulator::mbarrier_wait(barrier, parity);
}
inline void named_barrier_sync(uint32_t id, uint32_t threads) {
  emulator::barrier(id, threads);
}
inline void fence_async_shared() {
}
inline void fence_async() {
}

} // namespace tdm

#endif
