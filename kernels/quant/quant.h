#ifndef KERNELS_QUANT_QUANT_H
#define KERNELS_QUANT_QUANT_H

#include "kernels/ops.h"

/* What every op that writes quantised activations does with row `row`: blocks of `values` to out_q [M, K], their scales
 * to out_scale [K/128, M]. */
void tdm_quant_row(const float* values, const tdm_view* out_q, const tdm_view* out_scale, int64_t row, float eps,
                   bool pow2_scale);
/* And after the last one: zero to the scale columns from `rows` to the next multiple of 4. */
void tdm_quant_pad(const tdm_view* out_scale, int64_t rows);

tdm_status tdm_quant_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
