#ifndef RUNTIME_TENSOR_MAP_H
#define RUNTIME_TENSOR_MAP_H

/* Compiles as C11 and as CUDA C++: kernel parameters hold tensor maps. */

#include <stdint.h>

#ifdef __cplusplus
#define TDM_ALIGNED(bytes) alignas(bytes)
#else
#define TDM_ALIGNED(bytes) _Alignas(bytes)
#endif

/* A CUtensorMap as bytes, so that code without cuda.h can carry it. */
typedef struct tdm_tensor_map {
  TDM_ALIGNED(64) uint64_t words[16];
} tdm_tensor_map;

#endif
