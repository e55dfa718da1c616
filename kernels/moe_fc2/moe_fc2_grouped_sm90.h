#ifndef KERNELS_MOE_FC2_MOE_FC2_GROUPED_SM90_H
#define KERNELS_MOE_FC2_MOE_FC2_GROUPED_SM90_H

/* Planning of the Hopper kernel of moe_fc2 that sums an expert for the rows that chose it, in FP8. Pure functions, no
 * GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/moe_fc2/moe_fc2_grouped_params.h"
#include "tandem/ops.h"

typedef struct tdm_moe_fc2_grouped_sm90_plan {
  tdm_kernel_launch launch;
  int32_t tokens, group, stages, x_stages, stage_blocks; /* as the kernel's parameters */
  int32_t segments;
  size_t partial_bytes; /* workspace, any contents */
  size_t counter_bytes; /* memory that is zero before the first launch and belongs to this step alone; 0: none */
} tdm_moe_fc2_grouped_sm90_plan;

/* For up to m rows, hidden columns and n_experts of `intermediate` on `sms` SMs. */
void tdm_moe_fc2_grouped_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                        tdm_moe_fc2_grouped_sm90_plan* out_plan);

/* Kernel parameters of checked args with `chosen`. UNSUPPORTED as for the other kernels, and for more rows or experts
 * than there is room for. */
tdm_status tdm_moe_fc2_grouped_sm90_params(const tdm_moe_fc2_args* args, const tdm_moe_fc2_grouped_sm90_plan* plan,
                                           void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_moe_fc2_grouped_params* out_params);

#endif
