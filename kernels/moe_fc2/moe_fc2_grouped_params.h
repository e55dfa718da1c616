#ifndef KERNELS_MOE_FC2_MOE_FC2_GROUPED_PARAMS_H
#define KERNELS_MOE_FC2_MOE_FC2_GROUPED_PARAMS_H

#include "kernels/device/choices_params.h"

/* Strides count elements. */
typedef struct tdm_moe_fc2_grouped_params {
  tdm_tensor_map w;     /* w2 as e4m3 [E*I/128][H][128] */
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
  uint32_t* counters; /* zero before the first launch; every launch leaves zeros */
  int32_t addend_dtype;
  int32_t out_dtype;
  int32_t m;
  int32_t n; /* H */
  int32_t n_experts;
  int32_t blocks; /* of an expert */
  int32_t segments;
  int32_t padding[13];
} tdm_moe_fc2_grouped_params;

static_assert(sizeof(tdm_moe_fc2_grouped_params) == 384, "kernel ABI");

enum { TDM_MOE_FC2_GROUPED_THREADS = 384, TDM_MOE_FC2_GROUPED_NOTE_BYTES = 400, TDM_MOE_FC2_GATHERERS = 3 };

/* Launch size of a variant: what sizeof gives in the kernel, asserted there; the choices' bytes come on top. */
#define TDM_MOE_FC2_GROUPED_SHARED(tokens, stages)                                                                     \
  (((stages) * (128 * 128 + 128 * TDM_CHOICES_GROUP + 2 * TDM_MOE_FC2_GROUPED_NOTE_BYTES + 16) + 4 * 128 * (tokens) +  \
    4 * TDM_CHOICES_GROUP * TDM_MOE_FC2_GATHERERS + 8 + 1023) /                                                        \
   1024 * 1024)

#endif
