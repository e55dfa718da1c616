#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_PARAMS_H
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_PARAMS_H

#include "kernels/device/prefetch_params.h"
#include "kernels/gemm_bf16/gemm_bf16_params.h"

typedef struct tdm_router_gemm_params {
  tdm_gemm_bf16_params gemm;
  tdm_prefetch prefetch;
  int32_t padding[8];
} tdm_router_gemm_params;

static_assert(sizeof(tdm_router_gemm_params) == 448, "kernel ABI");

#endif
