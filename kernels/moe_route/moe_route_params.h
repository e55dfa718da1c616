#ifndef KERNELS_MOE_ROUTE_MOE_ROUTE_PARAMS_H
#define KERNELS_MOE_ROUTE_MOE_ROUTE_PARAMS_H

#include "kernels/device/abi.h"

/* Absent operands are NULL; strides count elements between rows. */
typedef struct tdm_moe_route_params {
  const int32_t* n_tokens;
  const float* logits;
  const float* bias;
  int32_t* ids;
  float* weights;
  float* alpha;
  int32_t* chosen; /* [rows, ceil((experts + n_shared) / 32)] a bit an expert; with alpha */
  int64_t logits_stride;
  int64_t ids_stride;
  int64_t weights_stride;
  int64_t alpha_stride;
  int64_t chosen_stride;
  int32_t rows;
  int32_t experts;
  int32_t top_k;
  int32_t n_group;
  int32_t topk_group;
  int32_t n_shared;
  int32_t norm_topk_prob;
  float routed_scaling_factor;
} tdm_moe_route_params;

static_assert(sizeof(tdm_moe_route_params) == 128, "kernel ABI");

/* Which experts have a weight: one CTA, a thread an expert. */
typedef struct tdm_moe_hits_params {
  const int32_t* n_tokens;
  const float* alpha; /* [rows, experts] */
  int64_t alpha_stride;
  int32_t* hits; /* [1 + experts] */
  int32_t rows;
  int32_t experts;
} tdm_moe_hits_params;

static_assert(sizeof(tdm_moe_hits_params) == 40, "kernel ABI");

enum {
  TDM_MOE_HITS_THREADS = 1024, /* the most experts */
  TDM_MOE_ROUTE_WARPS = 4      /* rows a CTA */
};

/* Shared memory of a row: scores, biased scores, group scores. */
#define TDM_MOE_ROUTE_FLOATS(experts, n_group) (2 * (experts) + (n_group))

#endif
