#include "models/rope_table.h"

#include <math.h>

/* Beside numbers of the config, which are double, HF computes in float: what is float here is float there, so that
 * tables agree to the last bits even at long positions. */

static double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

double tdm_rope_attention_factor(const tdm_rope_config* config) {
  if (config->type != TDM_ROPE_YARN) return 1;
  if (config->attention_factor != 0) return config->attention_factor;
  if (config->mscale != 0 && config->mscale_all_dim != 0)
    return yarn_mscale(config->factor, config->mscale) / yarn_mscale(config->factor, config->mscale_all_dim);
  return yarn_mscale(config->factor, 1);
}

float tdm_rope_softmax_scale(const tdm_rope_config* config, int64_t head_dim) {
  double scale = 1 / sqrt((double)head_dim);
  if (config->type == TDM_ROPE_YARN && config->mscale_all_dim != 0) {
    const double mscale = yarn_mscale(config->factor, config->mscale_all_dim);
    scale *= mscale * mscale;
  }
  return (float)scale;
}

/* The pair that turns `rotations` times within the original context. */
static double correction_dim(const tdm_rope_config* config, double rotations) {
  const double two_pi = 6.283185307179586;
  return TDM_ROPE_DIM * log((double)config->original_max_position_embeddings / (rotations * two_pi)) /
         (2 * log(config->theta));
}

void tdm_rope_yarn_range(const tdm_rope_config* config, double* out_low, double* out_high) {
  double low = correction_dim(config, config->beta_fast);
  double high = correction_dim(config, config->beta_slow);
  if (config->truncate) {
    low = floor(low);
    high = ceil(high);
  }
  low = fmax(low, 0);
  high = fmin(high, TDM_ROPE_DIM - 1);
  if (low == high) high += 0.001;
  *out_low = low;
  *out_high = high;
}

void tdm_rope_inv_freq(const tdm_rope_config* config, float out[TDM_ROPE_PAIRS]) {
  double low = 0, high = 1;
  if (config->type == TDM_ROPE_YARN) tdm_rope_yarn_range(config, &low, &high);
  for (int i = 0; i < TDM_ROPE_PAIRS; i++) {
    const float frequency = (float)pow(config->theta, (2.0 * i) / TDM_ROPE_DIM);
    const float kept = 1.0f / frequency;
    out[i] = kept;
    if (config->type != TDM_ROPE_YARN) continue;
    const float interpolated = 1.0f / ((float)config->factor * frequency);
    const float ramp = fminf(fmaxf(((float)i - (float)low) / (float)(high - low), 0), 1);
    const float keep = 1 - ramp;
    out[i] = interpolated * (1 - keep) + kept * keep;
  }
}

void tdm_rope_table_fill(const tdm_rope_config* config, int64_t n_positions, float* out) {
  float inv_freq[TDM_ROPE_PAIRS];
  tdm_rope_inv_freq(config, inv_freq);
  const float factor = (float)tdm_rope_attention_factor(config);
  for (int64_t p = 0; p < n_positions; p++) {
    float* row = out + p * TDM_ROPE_DIM;
    for (int i = 0; i < TDM_ROPE_PAIRS; i++) {
      /* Rounded to float as HF does; the sine of the exact product differs by 0.03 at position 10^6. */
      const float angle = (float)p * inv_freq[i];
      row[i] = (float)cos((double)angle) * factor;
      row[TDM_ROPE_PAIRS + i] = (float)sin((double)angle) * factor;
    }
  }
}
