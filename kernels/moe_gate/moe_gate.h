#ifndef KERNELS_MOE_GATE_MOE_GATE_H
#define KERNELS_MOE_GATE_MOE_GATE_H

/* router_gemm and moe_route as one op, with the bits of both. */

#include "runtime/op.h"

/* Whether the op takes such a router, on any device; else the two ops do. n_group and topk_group as in the args, 0 for
 * the default. */
bool tdm_moe_gate_supported(int64_t rows, int64_t experts, int32_t n_group, int32_t topk_group);
/* On a GPU, behind the launch whose partials these are: routing, and the list of hits where one is wanted. */
tdm_status tdm_moe_gate_encode_route(const tdm_moe_gate_args* args, const float* partials, int32_t segments,
                                     int32_t sms, tdm_encoded_step* out_step);

/* The two ops' args. */
tdm_router_gemm_args tdm_moe_gate_router(const tdm_moe_gate_args* args);
tdm_moe_route_args tdm_moe_gate_route(const tdm_moe_gate_args* args);

tdm_status tdm_moe_gate_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
