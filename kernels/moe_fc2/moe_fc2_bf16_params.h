#ifndef KERNELS_MOE_FC2_MOE_FC2_BF16_PARAMS_H
#define KERNELS_MOE_FC2_MOE_FC2_BF16_PARAMS_H

#include "kernels/gemm_bf16/gemm_bf16_params.h"

/* The GEMM's granule is an expert's blocks. Strides count elements. */
typedef struct tdm_moe_fc2_bf16_params {
  tdm_gemm_bf16_params gemm;
  const float* alpha; /* [M, E]: 0 skips the expert, NaN in it or not; NULL: 1 everywhere */
  int64_t alpha_stride;
  const void* addend; /* [M, N], added last; NULL: none */
  int64_t addend_stride;
  const int32_t* hits; /* [1 + n_experts] how many experts, then which, ascending; NULL: all */
  int32_t addend_dtype;
  int32_t n_experts;
  int32_t padding[4];
} tdm_moe_fc2_bf16_params;

static_assert(sizeof(tdm_moe_fc2_bf16_params) == 448, "kernel ABI");

#endif
