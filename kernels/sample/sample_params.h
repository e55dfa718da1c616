#ifndef KERNELS_SAMPLE_SAMPLE_PARAMS_H
#define KERNELS_SAMPLE_SAMPLE_PARAMS_H

#include "kernels/device/abi.h"

enum {
  TDM_SAMPLE_THREADS = 512,
  TDM_SAMPLE_BINS = 32,
  TDM_SAMPLE_SHARED_BYTES = TDM_SAMPLE_BINS * TDM_SAMPLE_THREADS * 8 /* a histogram for each thread */
};

/* The stride counts elements between rows. */
typedef struct tdm_sample_params {
  const int32_t* n_rows; /* NULL: all rows are live */
  const float* logits;
  const float* temperature;
  const float* top_p;
  const int64_t* seeds;
  const int32_t* positions;
  int32_t* out;
  int64_t logits_stride;
  int32_t rows;
  int32_t cols;
  int32_t unit_log2; /* the weight of the most likely token is 1 << unit_log2; cols of them fit 63 bits */
  int32_t padding;
} tdm_sample_params;

static_assert(sizeof(tdm_sample_params) == 80, "kernel ABI");

#endif
