#ifndef KERNELS_EMBEDDING_EMBEDDING_PARAMS_H
#define KERNELS_EMBEDDING_EMBEDDING_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements between rows; dtypes are TDM_KERNEL_F32 or TDM_KERNEL_BF16. */
typedef struct tdm_embedding_params {
  const int32_t* n_tokens; /* NULL: all rows are live */
  const int32_t* ids;
  const void* table;
  void* out;
  int64_t table_stride;
  int64_t out_stride;
  int64_t vocab;
  int32_t rows;
  int32_t cols;
  int32_t table_dtype;
  int32_t out_dtype;
  int32_t vectors; /* 1: cols and strides divide by 8 */
  int32_t padding;
} tdm_embedding_params;

static_assert(sizeof(tdm_embedding_params) == 80, "kernel ABI");

#endif
