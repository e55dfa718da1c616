#ifndef KERNELS_MOE_FC2_MOE_FC2_PARAMS_H
#define KERNELS_MOE_FC2_MOE_FC2_PARAMS_H

#include "kernels/device/abi.h"

enum {
  TDM_MOE_FC2_FOLD_THREADS = 256, /* a warp for each expert of a tile */
  TDM_MOE_FC2_FOLD_TOKENS = 32,
  TDM_MOE_FC2_FOLD_EXPERTS = 8
};

/* Routing weights folded into activation scales; the product itself takes tdm_gemm_fp8_params. Strides count elements.
 */
typedef struct tdm_moe_fc2_fold_params {
  const float* x_scale; /* [E * blocks][M] */
  int64_t x_scale_stride;
  const float* alpha; /* [M, E] */
  int64_t alpha_stride;
  float* out; /* [E * blocks][M] */
  int64_t out_stride;
  const int32_t* n_tokens; /* NULL: all rows are live */
  int32_t m;
  int32_t n_experts;
  int32_t blocks; /* of an expert */
  int32_t padding;
} tdm_moe_fc2_fold_params;

static_assert(sizeof(tdm_moe_fc2_fold_params) == 72, "kernel ABI");

#endif
