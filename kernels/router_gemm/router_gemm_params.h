#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_PARAMS_H
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_PARAMS_H

#include "kernels/gemm_bf16/gemm_bf16_params.h"

/* Rows of bytes, to be asked for into L2. */
typedef struct tdm_router_gemm_params {
  tdm_gemm_bf16_params gemm;
  const uint8_t* prefetch; /* NULL: none */
  int64_t prefetch_stride; /* bytes */
  int64_t prefetch_bytes;  /* of a row */
  int32_t prefetch_rows;
  int32_t padding[9];
} tdm_router_gemm_params;

static_assert(sizeof(tdm_router_gemm_params) == 448, "kernel ABI");

#endif
