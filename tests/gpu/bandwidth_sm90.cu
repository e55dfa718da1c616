/* Reads memory with 16-byte loads, eight in flight a thread, and keeps nothing: the ruler of the benchmarks. */

#include <cstdint>

extern "C" __global__ void __launch_bounds__(512)
    tdm_bandwidth_read_sm90(const uint4* data, uint64_t count, uint32_t* out) {
  const uint64_t step = uint64_t{gridDim.x} * blockDim.x;
  uint32_t folded = 0;
  uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) folded ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += step) folded ^= data[i].x;
  if (folded == 0x12345678) *out = folded;
}
