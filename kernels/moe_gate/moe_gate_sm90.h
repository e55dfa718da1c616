#ifndef KERNELS_MOE_GATE_MOE_GATE_SM90_H
#define KERNELS_MOE_GATE_MOE_GATE_SM90_H

/* Planning of the Hopper kernels of moe_gate, from router_gemm's plan. With a list of hits the router's kernel goes on
 * to route; else it leaves the segments of its sum, and a second one routes. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/moe_gate/moe_gate_params.h"

void tdm_moe_gate_sm90_make_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                 tdm_gemm_bf16_sm90_plan* out_plan);
/* Of two launches: the first, and the second with the parameters it has of the first's partials. */
void tdm_moe_gate_sm90_router_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                   tdm_gemm_bf16_sm90_plan* out_plan);
void tdm_moe_gate_sm90_route(const tdm_moe_route_args* args, const float* partials, int32_t segments, int32_t sms,
                             tdm_moe_gate_route_params* out_params, tdm_kernel_launch* out_launch);
/* Of one launch. `counters` begins with a tdm_moe_gate_state; the segments' follow. */
tdm_status tdm_moe_gate_sm90_params(const tdm_moe_gate_args* args, const tdm_gemm_bf16_sm90_plan* plan, void* partials,
                                    void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                    tdm_moe_gate_params* out_params);

#endif
