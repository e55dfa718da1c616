#ifndef KERNELS_MOE_FC1_MOE_FC1_BF16_PARAMS_H
#define KERNELS_MOE_FC1_MOE_FC1_BF16_PARAMS_H

#include "kernels/device/abi.h"

/* Tiles are 128 columns of the output: 256 rows of w13, 128 of gate, then 128 of up. Blocks are 64 long along K (128
 * bytes). */
typedef struct tdm_moe_fc1_bf16_params {
  tdm_tensor_map w;        /* w13, bf16 [E][2*I][H] */
  tdm_tensor_map x;        /* bf16 [M][H] */
  const int32_t* n_tokens; /* NULL: all rows are live */
  void* out;               /* [M, E*I] bf16 */
  int64_t out_stride;
  float* partials;     /* workspace of the plan; NULL where it is 0 bytes */
  uint32_t* counters;  /* zero before the first launch; every launch leaves zeros */
  const int32_t* hits; /* [1 + E] how many experts, then which, ascending; NULL: all */
  int32_t m;
  int32_t n_tiles;      /* E*I/128 */
  int32_t expert_tiles; /* I/128 */
  int32_t k_blocks;
  int32_t segments;   /* runs of blocks that are summed apart and added in ascending order */
  float swiglu_limit; /* 0: none */
  int32_t n_experts;
  int32_t padding[13];
} tdm_moe_fc1_bf16_params;

static_assert(sizeof(tdm_moe_fc1_bf16_params) == 384, "kernel ABI");

enum {
  TDM_MOE_FC1_BF16_THREADS = 384 /* a producer and two consumer warpgroups */
};

/* Launch size of a variant: what sizeof gives in the kernel, asserted there. */
#define TDM_MOE_FC1_BF16_STAGED_ROWS(tokens) ((tokens) < 32 ? (tokens) : 32)
#define TDM_MOE_FC1_BF16_SHARED(tokens, stages)                                                                        \
  (((stages) * (256 * 128 + 128 * (tokens) + 16) + 2 * 144 * TDM_MOE_FC1_BF16_STAGED_ROWS(tokens) + 8 + 1023) / 1024 * \
   1024)

#endif
