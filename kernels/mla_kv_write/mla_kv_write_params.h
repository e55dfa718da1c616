#ifndef KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_PARAMS_H
#define KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements; dtypes are TDM_KERNEL_F32 or TDM_KERNEL_BF16; style is a tdm_rope_style. */
typedef struct tdm_mla_kv_write_params {
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* kv;
  const void* norm_weight;
  const int32_t* positions;
  const float* cos_sin;
  const int32_t* slots;
  void* cache;
  void* out; /* NULL: none */
  int64_t kv_stride;
  int64_t cos_sin_stride;
  int64_t page_stride;
  int64_t token_stride;
  int64_t out_stride;
  int32_t rows;
  int32_t n_positions;
  int32_t n_slots;
  int32_t kv_dtype;
  int32_t weight_dtype;
  int32_t cache_dtype; /* and out's */
  int32_t style;
  int32_t vectors; /* 1: all strides divide by 8 */
  float eps;
  int32_t padding;
} tdm_mla_kv_write_params;

static_assert(sizeof(tdm_mla_kv_write_params) == 144, "kernel ABI");

#endif
