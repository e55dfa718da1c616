#ifndef KERNELS_MOE_EXPERTS_MOE_EXPERTS_H
#define KERNELS_MOE_EXPERTS_MOE_EXPERTS_H

/* moe_fc1 and moe_fc2 as one op, with the bits of both. */

#include "runtime/op.h"

/* Whether the op takes experts of this shape, in FP8, on any device; else the two ops do. */
bool tdm_moe_experts_supported(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden);

/* The two ops that it is, with their activations between them. */
tdm_moe_fc1_args tdm_moe_experts_fc1(const tdm_moe_experts_args* args, const tdm_view* values, const tdm_view* scales);
tdm_moe_fc2_args tdm_moe_experts_fc2(const tdm_moe_experts_args* args, const tdm_view* values, const tdm_view* scales);

tdm_status tdm_moe_experts_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_moe_experts_ref_scratch_bytes(const tdm_moe_experts_args* args);

#endif
