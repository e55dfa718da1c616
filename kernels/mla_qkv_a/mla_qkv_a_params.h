#ifndef KERNELS_MLA_QKV_A_MLA_QKV_A_PARAMS_H
#define KERNELS_MLA_QKV_A_MLA_QKV_A_PARAMS_H

#include "kernels/mla_norm_write/mla_norm_write_params.h"

/* What comes behind the product. */
typedef struct tdm_mla_qkv_a_params {
  tdm_mla_norm_write_params rows; /* without q and kv */
  const float* parts;             /* f32 [segment][row][column], as gemm_fp8 leaves them */
  int64_t segment_stride;
  int32_t columns; /* D + 576 */
  int32_t segments;
} tdm_mla_qkv_a_params;

static_assert(sizeof(tdm_mla_qkv_a_params) == 336, "kernel ABI");

enum {
  TDM_MLA_QKV_A_SEGMENTS = 4,  /* the most */
  TDM_MLA_QKV_A_COLUMNS = 2048 /* of the queries, the most: eight a thread */
};

#endif
