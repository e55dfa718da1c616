#ifndef KERNELS_ROPE_ROPE_H
#define KERNELS_ROPE_ROPE_H

/* Rotary embedding (docs/formulas.md, section 5), and what mla_kv_write shares with it. Every product and every sum is
 * rounded to f32 on its own (no fused multiply-add), so all devices give the same bits. */

#include "runtime/op.h"

enum { TDM_ROPE_DIM = 64 };

/* cos_sin [P, 64] f32 and positions [rows] i32 are there, and style is one of tdm_rope_style. */
tdm_status tdm_rope_check(const char* op, const tdm_view* positions, const tdm_view* cos_sin, tdm_rope_style style,
                          int64_t rows);
/* At run time: the first `rows` positions are in [0, P). */
tdm_status tdm_rope_check_positions(const char* op, const tdm_view* positions, const tdm_view* cos_sin, int64_t rows);

/* Rotates 64 values; `cos_sin` is the position's row of the table. `out` may be `values`. */
void tdm_rope_rotate(const float values[TDM_ROPE_DIM], const float cos_sin[TDM_ROPE_DIM], tdm_rope_style style,
                     bool inverse, float out[TDM_ROPE_DIM]);

tdm_status tdm_rope_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
