#ifndef KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_PARAMS_H
#define KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements; x_dtype is TDM_KERNEL_F32 or TDM_KERNEL_BF16; style is a tdm_rope_style. */
typedef struct tdm_inverse_rope_quant_params {
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* x;
  const int32_t* positions;
  const float* cos_sin;
  uint8_t* out_q;
  float* out_scale;
  int64_t x_stride;
  int64_t x_head_stride;
  int64_t cos_sin_stride;
  int64_t out_q_group_stride;
  int64_t out_q_stride;
  int64_t out_scale_group_stride;
  int64_t out_scale_stride;
  int32_t rows;
  int32_t heads;
  int32_t group_heads; /* of a group */
  int32_t head_blocks; /* of 128 values */
  int32_t n_positions;
  int32_t x_dtype;
  int32_t style;
  int32_t vectors;        /* 1: strides divide by 8, those of cos_sin by 4 */
  uint32_t group_inverse; /* 2^31 / group_heads, rounded up */
  int32_t pow2_scale;
  float quant_eps;
  float fast_from;     /* amax from which on quotients need no care */
  int32_t x_row_bytes; /* for the d512 kernels */
  int32_t x_head_bytes;
  int32_t out_q_row_bytes;
  int32_t out_scale_row;
} tdm_inverse_rope_quant_params;

static_assert(sizeof(tdm_inverse_rope_quant_params) == 168, "kernel ABI");

/* The d512 kernels: threads of a CTA at most, CTAs on an SM, and the heads that a warp asks for ahead. */
enum {
  TDM_INVERSE_ROPE_QUANT_THREADS = 256,
  TDM_INVERSE_ROPE_QUANT_CTAS = 2,
  TDM_INVERSE_ROPE_QUANT_SLOTS = 2,
  TDM_INVERSE_ROPE_QUANT_SLOT_BYTES = 4096
};

#endif
