#ifndef KERNELS_QUANT_QUANT_PARAMS_H
#define KERNELS_QUANT_QUANT_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements between rows. */
typedef struct tdm_quant_params {
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* x;
  uint8_t* out_q;
  float* out_scale;
  int64_t x_stride;
  int64_t out_q_stride;
  int64_t out_scale_stride;
  int32_t rows;
  int32_t cols;
  int32_t x_dtype;
  int32_t vectors; /* 1: strides divide by 8 */
  float quant_eps;
  int32_t pow2_scale;
} tdm_quant_params;

static_assert(sizeof(tdm_quant_params) == 80, "kernel ABI");

#endif
