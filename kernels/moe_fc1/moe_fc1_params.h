#ifndef KERNELS_MOE_FC1_MOE_FC1_PARAMS_H
#define KERNELS_MOE_FC1_MOE_FC1_PARAMS_H

#include "kernels/device/choices_params.h"

/* Tiles are 128 columns of the output: 256 rows of w13, 128 of gate, then 128 of up. */
typedef struct tdm_moe_fc1_params {
  tdm_tensor_map w;       /* w13 as e4m3 [H/128][E*2*I][128] */
  tdm_tensor_map x;       /* e4m3 [H/128][M][128] */
  tdm_tensor_map x_scale; /* f32 [H/128][M] */
  const float* w_scale;   /* [E*2*I/128, H/128] */
  int64_t w_scale_stride;
  const int32_t* n_tokens; /* NULL: all rows are live */
  uint8_t* out;            /* [M, E*I] e4m3 */
  int64_t out_stride;
  float* out_scale; /* [E*I/128, M] */
  int64_t out_scale_stride;
  float* partials;            /* workspace of the plan; NULL where it is 0 bytes */
  uint32_t* counters;         /* zero before the first launch, then as the last one left them; NULL as partials */
  const int32_t* hits;        /* [1 + n_experts] how many experts, then which, ascending; NULL: all */
  tdm_choices_params choices; /* without bits: all rows of these experts */
  int32_t m;
  int32_t n_tiles; /* E*I/128 */
  int32_t k_blocks;
  float swiglu_limit; /* 0: none */
  float quant_eps;
  int32_t pow2_scale;
  int32_t segments; /* runs of blocks that are summed apart and added in ascending order */
  int32_t n_experts;
  int32_t expert_tiles; /* tiles of an expert: I/128 */
  int32_t padding[15];
} tdm_moe_fc1_params;

static_assert(sizeof(tdm_moe_fc1_params) == 576, "kernel ABI");

enum {
  TDM_MOE_FC1_THREADS = 384, /* a producer and two consumer warpgroups */
  TDM_MOE_FC1_STAGED_ROW_BYTES = 128 + 16
};

/* Launch size of a variant: what sizeof gives in the kernel, asserted there. Scales count twice: device/gemm.cuh,
 * Ring. */
#define TDM_MOE_FC1_SCALE_BYTES(tokens) ((tokens)*4 < 128 ? 128 : (tokens)*4)
#define TDM_MOE_FC1_ROUND(bytes)        (((bytes) + 1023) / 1024 * 1024)
#define TDM_MOE_FC1_SWAP_SHARED(tokens, stages)                                                                        \
  TDM_MOE_FC1_ROUND((stages) * (256 * 128 + 128 * (tokens) + 2 * TDM_MOE_FC1_SCALE_BYTES(tokens) + 16) +               \
                    TDM_MOE_FC1_STAGED_ROW_BYTES * (tokens) + 8 * 4 * (tokens) + 8)
#define TDM_MOE_FC1_UPRIGHT_SHARED(tokens, stages)                                                                     \
  TDM_MOE_FC1_ROUND((stages) * (256 * 128 + 128 * (tokens) + 8 * (tokens) + 16) +                                      \
                    8 * 16 * TDM_MOE_FC1_STAGED_ROW_BYTES + 16)
#define TDM_MOE_FC1_SPLIT_SHARED(tokens, rows, stages)                                                                 \
  TDM_MOE_FC1_ROUND((stages) * (256 * (rows) + 128 * (tokens) + 8 * (tokens) + 16) + 8)

/* What a CTA may leave for the next one of sums of a tile. */
#define TDM_MOE_FC1_SUM_BYTES(tokens) (256 * 4 * (tokens))

#endif
