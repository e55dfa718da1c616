#ifndef KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_SM90_H
#define KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_SM90_H

/* Planning of the Hopper kernel of moe_norm_gate: tiles and segments of router_gemm, a CTA each. moe_gate_route
 * follows. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/moe_norm_gate/moe_norm_gate_params.h"

void tdm_moe_norm_gate_sm90_make_plan(int64_t n_experts, int64_t hidden, int32_t sms,
                                      tdm_gemm_bf16_sm90_plan* out_plan);
/* UNSUPPORTED for f32 between norm and router, and for rows that cannot be read 16 bytes at a time. */
tdm_status tdm_moe_norm_gate_sm90_params(const tdm_moe_norm_gate_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                         void* partials, tdm_tensor_map_fn encode, void* encode_ctx,
                                         tdm_moe_norm_gate_params* out_params);

#endif
