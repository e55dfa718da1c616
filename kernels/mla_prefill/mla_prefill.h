#ifndef KERNELS_MLA_PREFILL_MLA_PREFILL_H
#define KERNELS_MLA_PREFILL_MLA_PREFILL_H

/* Causal MLA attention over the new tokens, expanded form (docs/formulas.md, section 6).
 *   score[i][j] = f32(q_nope[i] . k[j] + q_rope[i] . k_rope[j]) * scale      j <= i; added in double, rounded once;
 * then f32 p[j]        = expf(score[j] - max) out[i]      = sum of bf16(p[j]) * v[j] / sum of p[j] bf16() only with a
 * bf16 kv; sums in double rounded to f32, then once to out's dtype. On the host device wrong sequence data fails the
 * step before anything is written. */

#include "runtime/op.h"

enum {
  TDM_MLA_NOPE = 128, /* of a head's query and key, without position */
  TDM_MLA_ROPE = 64,  /* with position; the key's is shared by the heads */
  TDM_MLA_VALUE = 128
};

tdm_status tdm_mla_prefill_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_mla_prefill_ref_scratch_bytes(const tdm_mla_prefill_args* args);

#endif
