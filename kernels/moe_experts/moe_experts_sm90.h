#ifndef KERNELS_MOE_EXPERTS_MOE_EXPERTS_SM90_H
#define KERNELS_MOE_EXPERTS_MOE_EXPERTS_SM90_H

/* Planning of the Hopper kernel of moe_experts. Pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/moe_experts/moe_experts_params.h"
#include "tandem/ops.h"

typedef struct tdm_moe_experts_sm90_plan {
  tdm_kernel_launch launch;
  int32_t piece;                          /* gate rows of a piece of FC1 */
  int32_t stages, stage_blocks, segments; /* as the kernel's parameters */
  size_t sum_bytes;                       /* workspace, any contents */
} tdm_moe_experts_sm90_plan;

/* Stages of the ring; below TDM_MOE_EXPERTS_LEAST_STAGES there is no room for the kernel. */
int32_t tdm_moe_experts_sm90_stages(int64_t n_experts, int64_t hidden);

/* For up to m rows and experts that the op supports, on `sms` SMs. */
void tdm_moe_experts_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t hidden, int32_t sms,
                                    tdm_moe_experts_sm90_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED for experts that do not lie one after the other and for strides that
 * the copy engine cannot take. */
tdm_status tdm_moe_experts_sm90_params(const tdm_moe_experts_args* args, const tdm_moe_experts_sm90_plan* plan,
                                       void* sums, void* state, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_moe_experts_params* out_params);

#endif
