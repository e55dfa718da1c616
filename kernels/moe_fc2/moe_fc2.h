#ifndef KERNELS_MOE_FC2_MOE_FC2_H
#define KERNELS_MOE_FC2_MOE_FC2_H

/* Dense FC2 with folded routing weights (docs/formulas.md, section 13). Blocks of 128 along K = E*I; alpha is that of
 * the block's expert, and blocks whose alpha is 0 are skipped:
 *   acc     = sum over the block of x * w2           in double (exact for e4m3), rounded to f32
 *   partial = partial + ((x_scale * alpha) * w2_scale) * acc      f32, every operation rounded; blocks ascending
 *   out     = partial of split 0 + of split 1 + ... + addend      f32, then one rounding to out's dtype
 * bf16: x_scale and w2_scale are 1; the Hopper kernel takes alpha times the sum over the whole expert. f32 activations:
 * the same order in double, rounded at the end. */

#include "runtime/op.h"

/* Splits of the sum over K, none through an expert: tdm_gemm_segments with an expert's blocks as granule, or in FP8 two
 * halves of a long sum that is otherwise whole. A function of the shape alone, the same for the reference and the
 * kernels. */
int32_t tdm_moe_fc2_splits(int64_t n_experts, int64_t hidden, int64_t intermediate, bool fp8);
/* Whether it is such halves: for many tokens, tiles of 128 weight rows and half a sum take the place of tiles of 64 and
 * all of it, as many CTAs, and bring a third less into each; for few tokens a CTA goes through both. */
bool tdm_moe_fc2_halves(int64_t n_experts, int64_t hidden, int64_t intermediate);
/* Experts of split s: from tdm_moe_fc2_split_begin(.., s) to before tdm_moe_fc2_split_begin(.., s + 1). Never none. */
int64_t tdm_moe_fc2_split_begin(int64_t n_experts, int32_t splits, int32_t s);

tdm_status tdm_moe_fc2_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_moe_fc2_ref_scratch_bytes(const tdm_moe_fc2_args* args);

#endif
