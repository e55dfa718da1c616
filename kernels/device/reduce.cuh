#ifndef KERNELS_DEVICE_REDUCE_CUH
#define KERNELS_DEVICE_REDUCE_CUH

/* Sums and maxima over lanes and threads, always in the same order. */

#include <cstdint>

namespace tdm {

/* Over groups of `kLanes` neighbouring lanes (a power of two); every lane gets the result. */
template <int kLanes> __device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/* Ignores NaN. */
template <int kLanes> __device__ __forceinline__ float lanes_max(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

/* Over the CTA; every thread gets the result. `scratch` holds 32 floats and is free again after the caller's next
 * __syncthreads. */
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  value = lanes_sum<32>(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  const int warps = static_cast<int>((blockDim.x + 31) / 32);
  return lanes_sum<32>(lane < warps ? scratch[lane] : 0.0f);
}

} // namespace tdm

#endif
