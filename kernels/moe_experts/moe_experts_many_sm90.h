#ifndef KERNELS_MOE_EXPERTS_MOE_EXPERTS_MANY_SM90_H
#define KERNELS_MOE_EXPERTS_MOE_EXPERTS_MANY_SM90_H

/* Planning of the Hopper kernel of moe_experts for more tokens than moe_experts_sm90.h takes. Pure functions, no GPU
 * needed. */

#include "kernels/moe_experts/moe_experts_many_params.h"
#include "kernels/moe_fc1/moe_fc1_grouped_sm90.h"
#include "kernels/moe_fc2/moe_fc2_grouped_sm90.h"

typedef struct tdm_moe_experts_many_plan {
  tdm_kernel_launch launch;
  tdm_moe_fc1_sm90_plan fc1;
  tdm_moe_fc2_grouped_sm90_plan fc2;
  size_t values, scales, fc1_partials, fc2_partials, scratch_bytes; /* where in the workspace, any contents */
  size_t fc1_counters, fc2_counters, done, state_bytes;             /* where in memory that is the step's */
} tdm_moe_experts_many_plan;

/* Whether the kernel takes so many rows and such experts. */
bool tdm_moe_experts_many_suits(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden);

/* For rows and experts that suit, on `sms` SMs. */
void tdm_moe_experts_many_make_plan(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden, int32_t sms,
                                    tdm_moe_experts_many_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED as for moe_fc1 and moe_fc2. */
tdm_status tdm_moe_experts_many_params_of(const tdm_moe_experts_args* args, const tdm_moe_experts_many_plan* plan,
                                          void* scratch, void* state, tdm_tensor_map_fn encode, void* encode_ctx,
                                          tdm_moe_experts_many_params* out_params);

#endif
