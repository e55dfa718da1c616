#ifndef KERNELS_MOE_FC1_MOE_FC1_H
#define KERNELS_MOE_FC1_MOE_FC1_H

/* Dense FC1 with SwiGLU and quantisation (docs/formulas.md, sections 2, 3 and 13). For each gate and up column
 *   acc = sum over a 128-block of K of x * w13       in double (exact for e4m3), rounded to f32
 *   c   = c + (x_scale * w13_scale) * acc            f32, every operation rounded; blocks ascending; bf16: scales are 1
 * and then, after the clamps,
 *   v   = g / (1 + expf(-g)) * u                     f32
 * and tdm_quant_block or one rounding. f32 activations: c is a double and w13_scale multiplies the unrounded acc. */

#include "runtime/op.h"

tdm_status tdm_moe_fc1_ref(const void* args, const tdm_plan* plan, void* scratch);
/* The `scratch` of the reference. */
size_t tdm_moe_fc1_ref_scratch_bytes(const tdm_moe_fc1_args* args);

#endif
