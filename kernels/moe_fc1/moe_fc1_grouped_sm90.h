#ifndef KERNELS_MOE_FC1_MOE_FC1_GROUPED_SM90_H
#define KERNELS_MOE_FC1_MOE_FC1_GROUPED_SM90_H

/* Planning of the Hopper kernel of moe_fc1 that computes an expert for the rows that chose it, in FP8. Pure functions,
 * no GPU needed. */

#include "kernels/moe_fc1/moe_fc1_grouped_params.h"
#include "kernels/moe_fc1/moe_fc1_sm90.h"

/* For up to m rows, n_experts of `intermediate` and k = H on `sms` SMs. */
void tdm_moe_fc1_grouped_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k, int32_t sms,
                                        tdm_moe_fc1_sm90_plan* out_plan);

/* Kernel parameters of checked args with `chosen`. UNSUPPORTED as for the other kernels, and for more rows or experts
 * than there is room for. */
tdm_status tdm_moe_fc1_grouped_sm90_params(const tdm_moe_fc1_args* args, const tdm_moe_fc1_sm90_plan* plan,
                                           void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_moe_fc1_grouped_params* out_params);

#endif
