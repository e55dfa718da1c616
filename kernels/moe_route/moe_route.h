#ifndef KERNELS_MOE_ROUTE_MOE_ROUTE_H
#define KERNELS_MOE_ROUTE_MOE_ROUTE_H

/* DeepSeek-V3 routing (docs/formulas.md, section 7).
 * - s = f32(1 / (1 + exp(-logit))): exponential and division in double and one rounding, so that every device gets the
 *   same bits and with them the same choice.
 * - c = s + bias in f32. NaN counts as minus infinity from here on.
 * - A group's score is the f32 sum of its two largest c (its only one, when a group is one expert).
 * - Experts outside the kept groups are no candidates: even a NaN in a kept group goes before them.
 * - w = s / (sum + 1e-20) * factor in f32, the sum over the chosen in the order of ids; without norm_topk_prob
 *   w = s * factor. A row with a NaN logit has NaN weights.
 * Zeros in the args: n_group 1, topk_group all of them, routed_scaling_factor 1. */

#include "runtime/op.h"

enum { TDM_ROUTE_MAX_EXPERTS = 1024, TDM_ROUTE_MAX_TOP_K = 32 };

/* Fills defaults in; all but overlaps, in the name of `op`. */
tdm_status tdm_moe_route_check(const char* op, tdm_moe_route_args* args);
tdm_status tdm_moe_route_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
