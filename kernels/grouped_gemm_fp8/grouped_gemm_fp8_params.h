#ifndef KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_PARAMS_H
#define KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_PARAMS_H

#include "kernels/gemm_fp8/gemm_fp8_params.h"

typedef struct tdm_grouped_gemm_fp8_params {
  tdm_gemm_fp8_params gemm; /* m: rows of x and out; n, k_blocks, w_scale: as for one group */
  tdm_gemm_fp8_groups groups;
} tdm_grouped_gemm_fp8_params;

static_assert(sizeof(tdm_grouped_gemm_fp8_params) == 768, "kernel ABI");
static_assert(alignof(tdm_grouped_gemm_fp8_params) == 64, "kernel ABI");

#endif
