#ifndef KERNELS_BMM_QUANT_BMM_QUANT_PARAMS_H
#define KERNELS_BMM_QUANT_BMM_QUANT_PARAMS_H

#include "kernels/gemm_bf16/gemm_bf16_params.h"

/* The GEMM's out is e4m3; batch b and column n of it are column b * N + n of out_q. It has one segment. */
typedef struct tdm_bmm_quant_params {
  tdm_gemm_bf16_params gemm;
  float* out_scale;         /* [B * N / 128, M] */
  int64_t out_scale_stride; /* elements between rows */
  float quant_eps;
  int32_t pow2_scale;
  int32_t vectors; /* 1: rows of out_q begin at multiples of 8 bytes */
  int32_t padding[9];
} tdm_bmm_quant_params;

static_assert(sizeof(tdm_bmm_quant_params) == 448, "kernel ABI");

#endif
