#ifndef KERNELS_MLA_PREFILL_MLA_PREFILL_H
#define KERNELS_MLA_PREFILL_MLA_PREFILL_H

/* Causal MLA attention over the new tokens, expanded form (docs/formulas.md, section 6). For j <= i
 *   score[j] = f32(q_nope[i] . k[j] + q_rope[i] . k_rope[j]) * f32(scale * log2(e))    in double, rounded once; then
 * f32 p[j]     = exp2f(score[j] - base)                                     f32; base = ceil(max) out[i]   = sum of
 * bf16(p[j]) * v[j] / sum of bf16(p[j])                     sums in double; bf16() unless kv is f32 rounded to f32,
 * then once to out's dtype. On the host device wrong sequence data fails the step before anything is written. */

#include "runtime/op.h"

tdm_status tdm_mla_prefill_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_mla_prefill_ref_scratch_bytes(const tdm_mla_prefill_args* args);

#endif
