#ifndef KERNELS_MOE_FC1_MOE_FC1_FEW_SM90_H
#define KERNELS_MOE_FC1_MOE_FC1_FEW_SM90_H

/* Planning of the Hopper kernel of moe_fc1 for the experts that few rows chose, in FP8. Pure functions, no GPU needed.
 * Its parameters are tdm_moe_fc1_sm90_params' of the plan. */

#include "kernels/moe_fc1/moe_fc1_few_params.h"
#include "kernels/moe_fc1/moe_fc1_sm90.h"

/* Whether it is for up to m rows, n_experts of `intermediate` and k = H; else moe_fc1_grouped_sm90.h. */
bool tdm_moe_fc1_few_sm90_suits(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k);

/* For arguments that suit, on `sms` SMs. */
void tdm_moe_fc1_few_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k, int32_t sms,
                                    tdm_moe_fc1_sm90_plan* out_plan);

#endif
