#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_SM90_H
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_SM90_H

/* Planning of the Hopper kernel of router_gemm: gemm_bf16's main loop under its own name. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/router_gemm/router_gemm_params.h"

void tdm_router_gemm_sm90_make_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                    tdm_gemm_bf16_sm90_plan* out_plan);
tdm_status tdm_router_gemm_sm90_params(const tdm_router_gemm_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                       void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_router_gemm_params* out_params);

#endif
