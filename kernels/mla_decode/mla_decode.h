#ifndef KERNELS_MLA_DECODE_MLA_DECODE_H
#define KERNELS_MLA_DECODE_MLA_DECODE_H

/* Paged MLA attention, absorbed form (docs/formulas.md, sections 6 and 16).
 *   score[j] = f32(q . cached[j]) * f32(scale * log2(e))              the dot product in double, rounded once; then f32
 *   p[j]     = exp2f(score[j] - base)                                 f32; base = ceil(max over all keys of the query)
 *   out      = sum of bf16(p[j]) * cached[j][0..511] / sum of bf16(p[j])    sums in double; bf16() unless the cache is
 * f32 rounded to f32, then once to out's dtype. A query at position t sees keys 0 .. t, so never none. On the host
 * device wrong sequence data (starts, kinds, lengths, pages) fails the step before anything is written. */

#include "runtime/op.h"

tdm_status tdm_mla_decode_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_mla_decode_ref_scratch_bytes(const tdm_mla_decode_args* args);

#endif
