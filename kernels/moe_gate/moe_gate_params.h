#ifndef KERNELS_MOE_GATE_MOE_GATE_PARAMS_H
#define KERNELS_MOE_GATE_MOE_GATE_PARAMS_H

#include "kernels/moe_route/moe_route_params.h"

enum {
  TDM_MOE_GATE_ROUTE_THREADS = 128,
  TDM_MOE_GATE_ROWS = 512,   /* the most; one takes up to 24 KB of workspace */
  TDM_MOE_GATE_EXPERTS = 384 /* the most */
};

/* Of the launch that routes: logits are the sum of segments in a workspace. */
typedef struct tdm_moe_gate_route_params {
  tdm_moe_route_params route; /* logits: where they go */
  float* logits;
  const float* partials; /* [segments][rows][experts] */
  int32_t segments;
  int32_t padding;
} tdm_moe_gate_route_params;

static_assert(sizeof(tdm_moe_gate_route_params) == 152, "kernel ABI");

#endif
