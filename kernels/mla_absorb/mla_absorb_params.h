#ifndef KERNELS_MLA_ABSORB_MLA_ABSORB_PARAMS_H
#define KERNELS_MLA_ABSORB_MLA_ABSORB_PARAMS_H

#include "kernels/gemm_bf16/gemm_bf16_params.h"
#include "kernels/gemm_bf16/gemm_bf16_short_params.h"
#include "kernels/rope/rope_params.h"

typedef struct tdm_mla_absorb_params {
  tdm_gemm_bf16_params gemm;
  tdm_rope_params rope;
  int32_t padding[4];
} tdm_mla_absorb_params;

/* Of the form for few tokens. */
typedef struct tdm_mla_absorb_short_params {
  tdm_gemm_bf16_short_params gemm;
  tdm_rope_params rope;
  int32_t padding[4];
} tdm_mla_absorb_short_params;

static_assert(sizeof(tdm_mla_absorb_params) == 512 && sizeof(tdm_mla_absorb_short_params) == 576, "kernel ABI");

enum {
  TDM_MLA_ABSORB_SHORT_THREADS = TDM_GEMM_BF16_SHORT_THREADS + 32 /* and a warp that rotates from the start */
};

/* Launch size of a variant: the GEMM's, and the count of what is rotated on a line of its own. */
#define TDM_MLA_ABSORB_SHARED(rows, tokens, stages) (TDM_GEMM_BF16_SHARED(rows, tokens, stages) + 1024)

#endif
