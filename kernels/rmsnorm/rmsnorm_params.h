#ifndef KERNELS_RMSNORM_RMSNORM_PARAMS_H
#define KERNELS_RMSNORM_RMSNORM_PARAMS_H

#include "kernels/device/abi.h"

/* Absent operands are NULL. Strides count elements between rows. dtypes: TDM_KERNEL_F32 or TDM_KERNEL_BF16. */
typedef struct tdm_rmsnorm_params {
  const int32_t* n_tokens;
  const void* x;
  const void* delta;
  void* residual_out;
  const void* weight;
  void* out;
  uint8_t* out_q;
  float* out_scale;
  int64_t x_stride;
  int64_t delta_stride;
  int64_t residual_stride;
  int64_t out_stride;
  int64_t out_q_stride;
  int64_t out_scale_stride;
  int32_t rows;
  int32_t cols;
  int32_t x_dtype;
  int32_t delta_dtype;
  int32_t residual_dtype;
  int32_t weight_dtype;
  int32_t out_dtype;
  int32_t vectors; /* 1: cols and all strides divide by 8 (16 for out_q), so that 8 elements go in one access */
  float eps;
  float quant_eps;
  int32_t pow2_scale;
} tdm_rmsnorm_params;

enum {
  TDM_RMSNORM_FEW_ROWS = 32 /* a layer of 16 tokens takes 0.7 % less with a rehearsal, of 64 0.2 % more (H200) */
};

static_assert(sizeof(tdm_rmsnorm_params) == 160, "kernel ABI");

#endif
