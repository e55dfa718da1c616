#include "models/rope_table.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

static const tdm_rope_config v3 = {.type = TDM_ROPE_YARN,
                                   .theta = 10000,
                                   .factor = 40,
                                   .beta_fast = 32,
                                   .beta_slow = 1,
                                   .mscale = 1,
                                   .mscale_all_dim = 1,
                                   .original_max_position_embeddings = 4096,
                                   .truncate = true,
                                   .interleave = true};

static tdm_rope_config with(double theta, double factor, int64_t original) {
  tdm_rope_config config = v3;
  config.theta = theta;
  config.factor = factor;
  config.original_max_position_embeddings = original;
  return config;
}

/* docs/formulas.md, section 5. */
Test(rope_table, yarn_range) {
  typedef struct range_case {
    const char* name;
    tdm_rope_config config;
    double low, high;
  } range_case;
  const range_case cases[] = {
      {"V3", v3, 10, 23},
      {"V4 compress", with(1.6e5, 16, 65536), 15, 25},
      {"golden V3", with(1e4, 40, 64), 0, 9},
      {"golden V4 compress", with(1.6e5, 16, 64), 0, 7},
      {"up to the dimension, not half of it", with(100, 4, 65536), 40, 63},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    double low, high;
    tdm_rope_yarn_range(&cases[i].config, &low, &high);
    cr_expect_eq(low, cases[i].low, "%s: low %g", cases[i].name, low);
    cr_expect_eq(high, cases[i].high, "%s: high %g", cases[i].name, high);
  }
  /* not truncated: the pair that turns 32 (or 1) times within 4096 positions, found by walking instead of by logarithms
   */
  tdm_rope_config config = v3;
  config.truncate = false;
  double low, high;
  tdm_rope_yarn_range(&config, &low, &high);
  const double turns[2] = {32, 1}, found[2] = {low, high};
  for (int k = 0; k < 2; k++) {
    double a = 0, b = 64;
    for (int step = 0; step < 100; step++) {
      const double pair = (a + b) / 2, period = 6.283185307179586 * pow(10000, pair / 32);
      *(4096 / period > turns[k] ? &a : &b) = pair;
    }
    cr_expect_float_eq(found[k], a, 1e-9, "%g turns: %.12g, expected %.12g", turns[k], found[k], a);
  }
}

Test(rope_table, softmax_scale) {
  cr_expect_float_eq(tdm_rope_softmax_scale(&v3, 192), 0.13523378f, 5e-9f, "%.9g",
                     (double)tdm_rope_softmax_scale(&v3, 192));
  const tdm_rope_config plain = {.type = TDM_ROPE_PLAIN, .theta = 10000, .mscale_all_dim = 1, .factor = 40};
  cr_expect_float_eq(tdm_rope_softmax_scale(&plain, 192), 0.0721687836f, 5e-9f);
  tdm_rope_config without = v3;
  without.mscale_all_dim = 0;
  cr_expect_float_eq(tdm_rope_softmax_scale(&without, 192), 0.0721687836f, 5e-9f);
  cr_expect_eq(tdm_rope_softmax_scale(&plain, 64), 0.125f);
}

Test(rope_table, attention_factor) {
  tdm_rope_config config = v3;
  cr_expect_eq(tdm_rope_attention_factor(&config), 1);
  config.mscale_all_dim = 0; /* one of the two alone does not count */
  cr_expect_float_eq(tdm_rope_attention_factor(&config), 1.3688879454113936, 1e-12);
  config.mscale = 0.5;
  config.mscale_all_dim = 1;
  cr_expect_float_eq(tdm_rope_attention_factor(&config), 1.1844439727056968 / 1.3688879454113936, 1e-12);
  config.attention_factor = 0.75;
  cr_expect_eq(tdm_rope_attention_factor(&config), 0.75);
  config = with(1.6e5, 16, 65536);
  config.mscale = config.mscale_all_dim = 0;
  cr_expect_float_eq(tdm_rope_attention_factor(&config), 1.27726, 5e-6);
  config.factor = 1;
  cr_expect_eq(tdm_rope_attention_factor(&config), 1);
  config = (tdm_rope_config){.type = TDM_ROPE_PLAIN, .theta = 10000, .factor = 40};
  cr_expect_eq(tdm_rope_attention_factor(&config), 1);
}

/* The frequencies in long double, without a float in between. */
static long double exact_inv_freq(const tdm_rope_config* config, int i) {
  const long double kept = powl((long double)config->theta, -(long double)i / 32);
  if (config->type == TDM_ROPE_PLAIN) return kept;
  double low, high;
  tdm_rope_yarn_range(config, &low, &high);
  long double ramp = ((long double)i - (long double)low) / ((long double)high - (long double)low);
  ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
  return ramp * kept / (long double)config->factor + (1 - ramp) * kept;
}

static void expect_table(const char* name, const tdm_rope_config* config, double factor, int64_t n) {
  float inv_freq[TDM_ROPE_PAIRS];
  tdm_rope_inv_freq(config, inv_freq);
  for (int i = 0; i < TDM_ROPE_PAIRS; i++) {
    /* a few roundings, and that of 1 - ramp, which weighs with the frequency that is kept */
    const double expected = (double)exact_inv_freq(config, i);
    const double tolerance = 4e-7 * expected + 6e-8 * pow(config->theta, -i / 32.0);
    cr_expect_float_eq((double)inv_freq[i], expected, tolerance, "%s: inv_freq[%d] %.9g, expected %.9g", name, i,
                       (double)inv_freq[i], expected);
  }
  float* table = malloc((size_t)n * TDM_ROPE_DIM * sizeof *table);
  tdm_rope_table_fill(config, n, table);
  for (int64_t p = 0; p < n; p = p < 300 ? p + 1 : p * 2 - 41)
    for (int i = 0; i < TDM_ROPE_PAIRS; i++) {
      /* one fp32 product, then exact: at long positions nothing but this rounding gives these values */
      const long double angle = (long double)((float)p * inv_freq[i]);
      const float c = table[p * TDM_ROPE_DIM + i], s = table[p * TDM_ROPE_DIM + TDM_ROPE_PAIRS + i];
      cr_expect_float_eq((double)c, (double)cosl(angle) * factor, 1.2e-7 * factor, "%s: cos[%lld, %d] %.9g", name,
                         (long long)p, i, (double)c);
      cr_expect_float_eq((double)s, (double)sinl(angle) * factor, 1.2e-7 * factor, "%s: sin[%lld, %d] %.9g", name,
                         (long long)p, i, (double)s);
    }
  for (int i = 0; i < TDM_ROPE_PAIRS; i++) {
    cr_expect_eq(table[i], (float)factor, "%s: cos at 0", name);
    cr_expect_eq(table[TDM_ROPE_PAIRS + i], 0.0f, "%s: sin at 0", name);
  }
  free(table);
}

Test(rope_table, tables) {
  const tdm_rope_config plain = {.type = TDM_ROPE_PLAIN, .theta = 10000};
  expect_table("plain", &plain, 1, 5000);
  expect_table("V3", &v3, 1, 163840);
  const tdm_rope_config golden = with(1e4, 40, 64);
  expect_table("golden V3", &golden, 1, 4096);
  tdm_rope_config scaled = with(1.6e5, 16, 65536);
  scaled.attention_factor = 1.25;
  scaled.truncate = false;
  expect_table("scaled", &scaled, 1.25, 70000);
}

/* Contexts so short that the blend has no width, or a negative one, still give frequencies. */
Test(rope_table, degenerate_range) {
  double low, high;
  float inv_freq[TDM_ROPE_PAIRS];
  tdm_rope_config config = with(1e4, 40, 6);
  tdm_rope_yarn_range(&config, &low, &high);
  cr_expect_eq(low, 0);
  cr_expect_float_eq(high, 0.001, 1e-12);
  tdm_rope_inv_freq(&config, inv_freq);
  cr_expect_eq(inv_freq[0], 1.0f);
  cr_expect_float_eq(inv_freq[8], 0.1f / 40, 1e-9f);

  config.original_max_position_embeddings = 1;
  tdm_rope_inv_freq(&config, inv_freq);
  cr_expect_eq(inv_freq[0], 1.0f);
  cr_expect_float_eq(inv_freq[8], 0.1f, 1e-8f);
}

/* V3's frequencies by hand: pairs up to 10 as they are, from 23 on divided by 40, in between a blend. */
Test(rope_table, v3_frequencies) {
  float inv_freq[TDM_ROPE_PAIRS];
  tdm_rope_inv_freq(&v3, inv_freq);
  cr_expect_eq(inv_freq[0], 1.0f);
  cr_expect_float_eq(inv_freq[8], 0.1f, 1e-8f);
  cr_expect_float_eq(inv_freq[24], 2.5e-5f, 4e-12f);
  const double kept = pow(10000, -16.0 / 32), ramp = 6.0 / 13; /* pair 16 */
  cr_expect_float_eq((double)inv_freq[16], kept * (1 - ramp) + kept / 40 * ramp, 1e-9);
}
