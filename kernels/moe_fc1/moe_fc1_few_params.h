#ifndef KERNELS_MOE_FC1_MOE_FC1_FEW_PARAMS_H
#define KERNELS_MOE_FC1_MOE_FC1_FEW_PARAMS_H

#include "kernels/moe_fc1/moe_fc1_params.h"

/* Parameters are tdm_moe_fc1_params: a box of w is kRows rows and a block along K, a box of x and x_scale all of K. */
enum {
  TDM_MOE_FC1_FEW_THREADS = 320,
  TDM_MOE_FC1_FEW_TOKENS = 8,
  TDM_MOE_FC1_FEW_BLOCKS = 64, /* the most along K */
  TDM_MOE_FC1_FEW_STAGES = 5,  /* of an engine */
  TDM_MOE_FC1_FEW_STAGE_BYTES = 16384,
  TDM_MOE_FC1_FEW_RING_BYTES = 2 * TDM_MOE_FC1_FEW_STAGES * TDM_MOE_FC1_FEW_STAGE_BYTES,
  TDM_MOE_FC1_FEW_BARRIER_BYTES = 256
};

/* Launch size. The last stage is multiplied as a whole, with blocks of x that are not there. */
#define TDM_MOE_FC1_FEW_SHARED(k_blocks)                                                                               \
  (TDM_MOE_FC1_FEW_RING_BYTES + ((k_blocks) + 3) / 4 * 4 * TDM_MOE_FC1_FEW_TOKENS * (128 + 4) +                        \
   TDM_MOE_FC1_FEW_BARRIER_BYTES)

/* f32 sums of a tile's gate and up rows. */
#define TDM_MOE_FC1_FEW_SUM_BYTES (TDM_MOE_FC1_FEW_TOKENS * 2 * 128 * 4)

#endif
