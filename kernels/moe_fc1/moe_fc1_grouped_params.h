#ifndef KERNELS_MOE_FC1_MOE_FC1_GROUPED_PARAMS_H
#define KERNELS_MOE_FC1_MOE_FC1_GROUPED_PARAMS_H

#include "kernels/device/choices_params.h"
#include "kernels/moe_fc1/moe_fc1_params.h"

typedef struct tdm_moe_fc1_grouped_params {
  tdm_moe_fc1_params fc1; /* without its maps of x and x_scale */
  const uint8_t* x;       /* [M, H] e4m3 */
  int64_t x_stride;       /* M times it is below 2^32 */
  const float* x_scale;   /* [H/128, M] */
  int64_t x_scale_stride;
  uint32_t* done; /* moe_experts alone: [E] rows of an expert's tiles that are stored, then CTAs that have left; zero
                     before and after */
  int32_t runs;   /* experts are gone through in so many runs side by side, the first of each first; 1: ascending */
  int32_t padding[5];
} tdm_moe_fc1_grouped_params;

static_assert(sizeof(tdm_moe_fc1_grouped_params) == 640, "kernel ABI");

/* Launch size of a variant, asserted in the kernel; the choices' bytes come on top. */
#define TDM_MOE_FC1_GROUPED_SHARED(tokens, stages) (TDM_MOE_FC1_SWAP_SHARED(tokens, stages) + 4 * 3 * (tokens))

#endif
