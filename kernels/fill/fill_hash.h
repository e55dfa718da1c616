#ifndef KERNELS_FILL_FILL_HASH_H
#define KERNELS_FILL_FILL_HASH_H

#include <stdint.h>

#ifdef __CUDACC__
#define TDM_HASH_FUNCTION __host__ __device__ __forceinline__
#else
#define TDM_HASH_FUNCTION static inline
#endif

/* 16 bits for element `index`: splitmix64's finaliser over a counter. Compiles as C11 and as CUDA C++. */
TDM_HASH_FUNCTION int16_t tdm_fill_hash(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (int16_t)(uint16_t)(z >> 48);
}

#endif
