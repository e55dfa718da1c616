#ifndef KERNELS_MOE_GATE_MOE_GATE_PARAMS_H
#define KERNELS_MOE_GATE_MOE_GATE_PARAMS_H

#include "kernels/gemm_bf16/gemm_bf16_params.h"
#include "kernels/moe_route/moe_route_params.h"

enum {
  TDM_MOE_GATE_ROUTE_THREADS = 128,
  TDM_MOE_GATE_ROWS = 512,      /* the most */
  TDM_MOE_GATE_LIST_ROWS = 128, /* the most with a list of hits: one token tile */
  TDM_MOE_GATE_GROUPS = 8,      /* of tokens, that are routed together */
  TDM_MOE_GATE_WORDS = 12       /* of 32 experts */
};

/* Zero before the first launch; every launch leaves zeros. */
typedef struct tdm_moe_gate_state {
  uint32_t meetings[TDM_MOE_GATE_GROUPS]; /* where a group's tiles meet (gemm.cuh) */
  uint32_t hits[TDM_MOE_GATE_WORDS];      /* a bit an expert that a routed row has chosen */
  uint32_t routed;                        /* rows whose bits are there */
} tdm_moe_gate_state;

typedef struct tdm_moe_gate_params {
  tdm_gemm_bf16_params gemm;  /* out: the logits */
  tdm_moe_route_params route; /* of the same logits */
  int32_t* hits;              /* [1 + experts + n_shared]; NULL: no list is wanted */
  tdm_moe_gate_state* state;
} tdm_moe_gate_params;

/* Of the second of two launches: logits are the sum of segments in a workspace. */
typedef struct tdm_moe_gate_route_params {
  tdm_moe_route_params route; /* logits: where they go */
  float* logits;
  const float* partials; /* [segments][rows][experts] */
  int32_t segments;
  int32_t padding;
} tdm_moe_gate_route_params;

static_assert(sizeof(tdm_moe_gate_route_params) == 152, "kernel ABI");
static_assert(sizeof(tdm_moe_gate_state) == 84 && sizeof(tdm_moe_gate_params) == 576, "kernel ABI");

#endif
