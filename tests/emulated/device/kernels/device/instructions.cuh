#ifndef KERNELS_DEVICE_INSTRUCTIONS_CUH
#define KERNELS_DEVICE_INSTRUCTIONS_CUH

#include "tests/emulated/emulator.h"

namespace tdm {

inline uint16_t e4m3x2(float low, float high) {
  return static_cast<uint16_t>(emulator::to_e4m3(low) | emulator::to_e4m3(high) << 8);
}
inline uint32_t bf16x2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
inline float f32_largest(float a, float b) {
  return isnan(a) || isnan(b) ? NAN : max(fabsf(a), fabsf(b));
}
inline float reciprocal_near(float value) {
  return 1.0f / value;
}
inline double reciprocal_near(double value) {
  return 1.0 / value;
}
inline float exp2_approx(float x) {
  return exp2f(x);
}
inline uint4 fetch_16(const void* address) {
  return *static_cast<const uint4*>(address);
}
inline int32_t fetch_i32(const int32_t* address) {
  return *address;
}
inline void store_8_bytes_if(bool inside, void* target, uint2 bytes) {
  if (inside) memcpy(target, &bytes, 8);
}
inline void copy_async_16(void* shared, const void* global) {
  emulator::copy_async(shared, global, 16);
}
inline void copy_async_4(void* shared, const void* global) {
  emulator::copy_async(shared, global, 4);
}
inline void copy_async_arrive(uint64_t* barrier) {
  emulator::copy_arrive(barrier);
}
inline void copy_async_commit() {
  emulator::copy_commit();
}
template <int kGroups> void copy_async_wait() {
  emulator::copy_wait(kGroups);
}
inline void fence_gpu() {
}
template <class Value> Value same_in_warp(Value value) {
  uint32_t all[32];
  emulator::exchange(static_cast<uint32_t>(value), all);
  for (uint32_t other : all)
    if (other != static_cast<uint32_t>(value)) emulator::refuse("takes for the same in a warp what is not");
  return value;
}
template <class Value> Value kept(Value value) {
  return value;
}

} // namespace tdm

#endif
