#ifndef KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_H
#define KERNELS_MOE_NORM_GATE_MOE_NORM_GATE_H

/* rmsnorm and moe_gate as one op, with the bits of both. */

#include "runtime/op.h"

/* Whether the op takes so many rows and such a router, on any device; else the other ops do. n_group and topk_group as
 * in the args, 0 for the default. */
bool tdm_moe_norm_gate_supported(int64_t rows, int64_t hidden, int64_t experts, int32_t n_group, int32_t topk_group);

/* The two ops' args. */
tdm_rmsnorm_args tdm_moe_norm_gate_norm(const tdm_moe_norm_gate_args* args);
tdm_moe_gate_args tdm_moe_norm_gate_gate(const tdm_moe_norm_gate_args* args);

/* `scratch`: rmsnorm's. */
tdm_status tdm_moe_norm_gate_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
