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
  TDM_MOE_EXPERTS_MANY_W_SLOTS = 3 /* of FC1's ring, for FC2's weights; the others are for its tokens and sums */
};

/* Shared memory behind FC1's: two barriers and a number, what FC2 has beside its tiles, its groups before each expert,
 * choices. */
static inline uint32_t tdm_moe_experts_many_rest(int32_t n_experts, int32_t stages, int32_t x_stages) {
  const int32_t fc2 = 2 * 8 * (stages + x_stages) + 8 * (8 + 4) + 8 + 4 + 4 * (TDM_MOE_FC2_GROUPED_SEGMENTS + 1);
  return (uint32_t)((3 * 8 + fc2 + 4 * (n_experts + 1) + 15) / 16 * 16);
}

#endif
