#ifndef MODELS_ROPE_TABLE_H
#define MODELS_ROPE_TABLE_H

/* Numbers that a rotary embedding needs, in HF transformers' arithmetic (docs/formulas.md, sections 5 and 6). All take
 * a config that tdm_deepseek_v3_config_read accepted: theta > 1, and for YaRN factor, betas and original length set. */

#include "tandem/model.h"

#define TDM_ROPE_DIM   64 /* rotated values of a head */
#define TDM_ROPE_PAIRS (TDM_ROPE_DIM / 2)

/* out[p * 64 + i] = cos, out[p * 64 + 32 + i] = sin of fl32(p * inv_freq[i]), i < 32, for positions p < n_positions;
 * both times the attention factor. n_positions <= 2^24, so that positions are exact. */
void tdm_rope_table_fill(const tdm_rope_config* config, int64_t n_positions, float* out);

/* What scores are multiplied by: head_dim^-0.5, and for YaRN mscale^2 on top. */
float tdm_rope_softmax_scale(const tdm_rope_config* config, int64_t head_dim);

/* The steps behind the table. YaRN keeps the pairs below `low` as they are, interpolates those above `high` and blends
 * in between. */
void tdm_rope_yarn_range(const tdm_rope_config* config, double* out_low, double* out_high);
void tdm_rope_inv_freq(const tdm_rope_config* config, float out[TDM_ROPE_PAIRS]);
double tdm_rope_attention_factor(const tdm_rope_config* config);

#endif
