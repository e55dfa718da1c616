#ifndef KERNELS_ROPE_ROPE_PARAMS_H
#define KERNELS_ROPE_ROPE_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements; dtypes are TDM_KERNEL_F32 or TDM_KERNEL_BF16; style is a tdm_rope_style. */
typedef struct tdm_rope_params {
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* x;
  const int32_t* positions;
  const float* cos_sin;
  void* out;
  int64_t x_stride;
  int64_t x_head_stride;
  int64_t out_stride;
  int64_t out_head_stride;
  int64_t cos_sin_stride;
  int32_t rows;
  int32_t heads;
  int32_t n_positions;
  int32_t x_dtype;
  int32_t out_dtype;
  int32_t style;
  int32_t inverse;
  int32_t padding;
} tdm_rope_params;

static_assert(sizeof(tdm_rope_params) == 112, "kernel ABI");

#endif
