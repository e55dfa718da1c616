#ifndef KERNELS_GATHER_ROWS_GATHER_ROWS_PARAMS_H
#define KERNELS_GATHER_ROWS_GATHER_ROWS_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count bytes between rows. */
typedef struct tdm_gather_rows_params {
  const int32_t* n_rows; /* NULL: all rows are live */
  const int32_t* rows;
  const uint8_t* x;
  uint8_t* out;
  int64_t x_stride;
  int64_t out_stride;
  int64_t row_bytes;
  int32_t x_rows;
  int32_t out_rows;
  int32_t vectors; /* 1: row_bytes and strides divide by 16 */
  int32_t padding;
} tdm_gather_rows_params;

static_assert(sizeof(tdm_gather_rows_params) == 72, "kernel ABI");

#endif
