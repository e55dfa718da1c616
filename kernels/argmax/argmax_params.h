#ifndef KERNELS_ARGMAX_ARGMAX_PARAMS_H
#define KERNELS_ARGMAX_ARGMAX_PARAMS_H

#include "kernels/device/abi.h"

enum { TDM_ARGMAX_THREADS = 1024 };

/* The stride counts elements between rows. */
typedef struct tdm_argmax_params {
  const int32_t* n_rows; /* NULL: all rows are live */
  const float* logits;
  int32_t* out;
  int64_t logits_stride;
  int32_t rows;
  int32_t cols;
} tdm_argmax_params;

static_assert(sizeof(tdm_argmax_params) == 40, "kernel ABI");

#endif
