#ifndef KERNELS_MOE_FC1_MOE_FC1_SM90_H
#define KERNELS_MOE_FC1_MOE_FC1_SM90_H

/* Planning of the Hopper kernel of moe_fc1 for FP8; moe_fc1_bf16_sm90.h has the other. Pure functions, no GPU needed.
 */

#include "kernels/device/launch.h"
#include "kernels/moe_fc1/moe_fc1_params.h"
#include "tandem/ops.h"

typedef struct tdm_moe_fc1_sm90_plan {
  tdm_kernel_launch launch;
  int32_t piece;    /* few tiles: so many gate rows, their up rows, and a segment a unit; 0: a whole tile */
  int32_t tokens;   /* of a tile */
  int32_t x_blocks; /* along K that a copy of x brings; 0: one */
  int32_t segments;
  size_t partial_bytes; /* workspace, any contents */
  size_t counter_bytes; /* memory that is zero before the first launch and belongs to this step alone; 0: none */
} tdm_moe_fc1_sm90_plan;

/* Runs of blocks along k = H that are summed apart for `n` = E*I output columns: few tiles, so that they fill the SMs.
 */
int32_t tdm_moe_fc1_sm90_segments(int64_t n, int64_t k);

/* For up to m rows, `n` = E*I output columns and k = H on `sms` SMs; `some`: of the experts of a list. */
void tdm_moe_fc1_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, bool some,
                                tdm_moe_fc1_sm90_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED for f32 activations, for experts that do not lie one after the other
 * and for strides that the copy engine cannot take. */
tdm_status tdm_moe_fc1_sm90_params(const tdm_moe_fc1_args* args, const tdm_moe_fc1_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_moe_fc1_params* out_params);

#endif
