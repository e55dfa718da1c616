#ifndef KERNELS_MOE_EXPERTS_MOE_EXPERTS_MANY_PARAMS_H
#define KERNELS_MOE_EXPERTS_MOE_EXPERTS_MANY_PARAMS_H

#include "kernels/moe_fc1/moe_fc1_grouped_params.h"
#include "kernels/moe_fc2/moe_fc2_grouped_params.h"

typedef struct tdm_moe_experts_many_params {
  tdm_moe_fc1_grouped_params fc1; /* its counters draw two numbers a CTA */
  tdm_moe_fc2_grouped_params fc2; /* `stages` and `x_stages` with sums and notes fit into FC1's stages */
} tdm_moe_experts_many_params;

static_assert(sizeof(tdm_moe_experts_many_params) == 1024, "kernel ABI");

enum {
  TDM_MOE_EXPERTS_MANY_ROWS = 128, /* the most: groups of eight tokens in FC2 */
  TDM_MOE_EXPERTS_MANY_THREADS = 384,
  TDM_MOE_EXPERTS_MANY_W_SLOTS = 3 /* of FC1's ring, for FC2's weights; the others are for its sums */
};

/* Shared memory: FC1's stages and staging, FC2's tokens, two barriers and a number, FC1's places, what FC2 has beside
 * its weights and sums, its groups before each expert; the choices' bytes come on top. */
static inline uint32_t tdm_moe_experts_many_bytes(int32_t fc1_tokens, int32_t fc1_stages, int32_t n_experts,
                                                  int32_t stages, int32_t x_stages) {
  const int32_t tokens = x_stages * (2 * 128 * 8 + 2 * TDM_MOE_FC2_GROUPED_NOTE_BYTES(8));
  const int32_t fc2 = 2 * 8 * (stages + x_stages) + 8 * (8 + 4) + 8 + 4 + 4 * (TDM_MOE_FC2_GROUPED_SEGMENTS + 1);
  return (uint32_t)(TDM_MOE_FC1_SWAP_SHARED(fc1_tokens, fc1_stages) + tokens + 32 + 4 * 3 * fc1_tokens + fc2 +
                    4 * (n_experts + 1));
}

#endif
