#ifndef KERNELS_MOE_FC2_MOE_FC2_GROUPED_PARAMS_H
#define KERNELS_MOE_FC2_MOE_FC2_GROUPED_PARAMS_H

#include "kernels/device/choices_params.h"

/* Strides count elements. */
typedef struct tdm_moe_fc2_grouped_params {
  tdm_tensor_map w;     /* w2 as e4m3 [E*I/128][H][128], boxes of a stage */
  const uint8_t* x;     /* [M, E*I] e4m3 */
  int64_t x_stride;     /* M times it is below 2^32 */
  const float* x_scale; /* [E*I/128, M] */
  int64_t x_scale_stride;
  const float* w_scale; /* [ceil(H/128), E*I/128] */
  int64_t w_scale_stride;
  const float* alpha; /* [M, E]; NULL: 1 everywhere */
  int64_t alpha_stride;
  tdm_choices_params choices;
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* addend;      /* [M, H], added last; NULL: none */
  int64_t addend_stride;
  void* out; /* [M, H] */
  int64_t out_stride;
  float* partials;    /* workspace of the plan; NULL where it is 0 bytes */
  uint32_t* counters; /* zero before the first launch, then as the last one left them; NULL: CTAs have whole tiles */
  int32_t addend_dtype;
  int32_t out_dtype;
  int32_t m;
  int32_t n; /* H */
  int32_t n_experts;
  int32_t blocks; /* of an expert */
  int32_t segments;
  int32_t tokens;   /* whose sums a CTA keeps, a multiple of 8 */
  int32_t stages;   /* of weights in shared memory */
  int32_t x_stages; /* of tokens */
  int32_t padding[10];
} tdm_moe_fc2_grouped_params;

static_assert(sizeof(tdm_moe_fc2_grouped_params) == 384, "kernel ABI");

enum {
  TDM_MOE_FC2_GROUPED_COLUMNS = 64,  /* of a tile */
  TDM_MOE_FC2_GROUPED_TOKENS = 256,  /* the most that `tokens` is */
  TDM_MOE_FC2_GROUPED_SEGMENTS = 16, /* the most */
  TDM_MOE_FC2_GROUPED_W_BYTES = 2 * 64 * 128
};

#define TDM_MOE_FC2_GROUPED_NOTE_BYTES(group) (16 * (group) + 16)

/* Two warpgroups that multiply, a warp that asks for weights, one that finishes pieces, and those that gather. */
#define TDM_MOE_FC2_GROUPED_GATHERERS(group) ((group) == 8 ? 2 : 3)
#define TDM_MOE_FC2_GROUPED_THREADS(group)   (256 + 32 * (2 + TDM_MOE_FC2_GROUPED_GATHERERS(group)))

/* Shared memory before the choices: tiles, then sums, notes, barriers and the rest, as the kernel has them. */
static inline uint32_t tdm_moe_fc2_grouped_bytes(int32_t tokens, int32_t group, int32_t stages, int32_t x_stages) {
  const int32_t x_stage = 2 * 128 * group + 2 * TDM_MOE_FC2_GROUPED_NOTE_BYTES(group) + 2 * 8;
  const int32_t rest = 8 * (8 + 4) + 8 + 4 + 4 * (TDM_MOE_FC2_GROUPED_SEGMENTS + 1);
  return (uint32_t)(stages * (TDM_MOE_FC2_GROUPED_W_BYTES + 2 * 8) + x_stages * x_stage +
                    (tokens + group) * TDM_MOE_FC2_GROUPED_COLUMNS * 4 + rest);
}

#endif
