#ifndef KERNELS_MOE_GATE_MOE_GATE_SM90_H
#define KERNELS_MOE_GATE_MOE_GATE_SM90_H

/* Planning of the Hopper kernels of moe_gate: router_gemm's, but that it leaves the segments of its sum; one that adds
 * them up and routes; and moe_route's list of hits, where one is wanted. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/moe_gate/moe_gate_params.h"

/* The first launch. */
void tdm_moe_gate_sm90_make_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                 tdm_gemm_bf16_sm90_plan* out_plan);
/* The second, over the first's partials. */
void tdm_moe_gate_sm90_route(const tdm_moe_route_args* args, const float* partials, int32_t segments, int32_t sms,
                             tdm_moe_gate_route_params* out_params, tdm_kernel_launch* out_launch);

#endif
