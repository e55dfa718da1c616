#ifndef KERNELS_DEVICE_WGMMA_CUH
#define KERNELS_DEVICE_WGMMA_CUH

#include "kernels/device/mbarrier.cuh"

namespace tdm {

inline void wgmma_fence() {
  __syncwarp(); /* warps do these together */
}
inline void wgmma_commit() {
  emulator::multiply_commit();
}
template <int kPending> void wgmma_wait() {
  emulator::multiply_wait(kPending);
}
template <int kCount> void wgmma_settle(float (&)[kCount]) {
}
template <int kRegisters> void registers_raise() {
}
template <int kRegisters> void registers_lower() {
}

inline uint64_t wgmma_descriptor(const void* tile, uint32_t leading_bytes = 16) {
  return (shared_address(tile) & 0x3ffff) >> 4 | uint64_t{leading_bytes >> 4} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}
inline uint32_t wgmma_descriptor_lower(const void* tile) {
  return static_cast<uint32_t>(wgmma_descriptor(tile));
}
inline uint64_t wgmma_descriptor_whole(uint32_t lower) {
  return uint64_t{0x40000040} << 32 | lower;
}

template <int kN> struct wgmma_e4m3 {
  static void issue(float (&d)[kN / 2], uint64_t a, uint64_t b, int32_t accumulate) {
    emulator::multiply(d, kN, a, b, accumulate != 0, false, false);
  }
};
template <int kN> struct wgmma_bf16 {
  template <int kTransposeA> static void issue(float (&d)[kN / 2], uint64_t a, uint64_t b, int32_t accumulate) {
    emulator::multiply(d, kN, a, b, accumulate != 0, true, kTransposeA != 0);
  }
};

/* Element (row r, column c) of a fragment's matrix is half c % 2 of lane 4 r + c / 2. */
inline void stmatrix_x4(void* row, uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3) {
  const uint32_t lane = threadIdx.x % 32;
  uint32_t all[4][32];
  emulator::exchange(v0, all[0]);
  emulator::exchange(v1, all[1]);
  emulator::exchange(v2, all[2]);
  emulator::exchange(v3, all[3]);
  memcpy(row, all[lane / 8] + 4 * (lane % 8), 16);
}

inline void stmatrix_x2_transposed(void* row, uint32_t v0, uint32_t v1) {
  const uint32_t lane = threadIdx.x % 32;
  uint32_t all[2][32];
  emulator::exchange(v0, all[0]);
  emulator::exchange(v1, all[1]);
  for (uint32_t r = 0; r < 8 && lane < 16; ++r) {
    const uint32_t c = lane % 8, pair = all[lane / 8][4 * r + c / 2];
    const uint16_t value = static_cast<uint16_t>(c % 2 == 0 ? pair : pair >> 16);
    memcpy(static_cast<uint8_t*>(row) + 2 * r, &value, 2);
  }
}

} // namespace tdm

#endif
