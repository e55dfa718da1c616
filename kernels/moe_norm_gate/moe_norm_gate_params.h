#ifndef KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_PARAMS_H
#define KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_PARAMS_H

#include "kernels/device/prefetch_params.h"
#include "kernels/gemm_bf16/gemm_bf16_params.h"
#include "kernels/rmsnorm/rmsnorm_params.h"

enum {
  TDM_MOE_NORM_GATE_THREADS = 512,
  TDM_MOE_NORM_GATE_ROWS = 8,      /* the most: the smallest token tile of wgmma */
  TDM_MOE_NORM_GATE_COLUMNS = 8192 /* the most: 32 sums of 256 columns, a lane each */
};

/* The router's sum as in gemm_bf16, but for where partials lie: [segment][rows][experts]. */
typedef struct tdm_moe_norm_gate_params {
  tdm_gemm_bf16_params gemm; /* x: the norm's out, whose map is not used; out and counters are not used */
  tdm_rmsnorm_params norm;
  tdm_prefetch prefetch[2];
  int32_t segment_blocks; /* the most blocks of 64 along K that a segment has */
  int32_t padding[7];
} tdm_moe_norm_gate_params;

static_assert(sizeof(tdm_moe_norm_gate_params) == 640, "kernel ABI");

/* Shared memory, of a segment: the router's weights, the rows in bf16 and before the norm in f32, the norm's weights.
 */
#define TDM_MOE_NORM_GATE_SHARED(segment_blocks)                                                                       \
  ((uint32_t)(segment_blocks) * ((64 + TDM_MOE_NORM_GATE_ROWS) * 128 + (TDM_MOE_NORM_GATE_ROWS + 1) * 64 * 4))

#endif
