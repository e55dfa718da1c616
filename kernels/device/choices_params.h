#ifndef KERNELS_DEVICE_CHOICES_PARAMS_H
#define KERNELS_DEVICE_CHOICES_PARAMS_H

#include "kernels/device/abi.h"

enum {
  TDM_CHOICES_ROWS = 256, /* the most that are looked at together */
  TDM_CHOICES_EXPERTS = 1024
};

/* Which experts each row chose, as moe_route says it. Strides count elements. */
typedef struct tdm_choices_params {
  const int32_t* bits; /* [M, ceil(E / 32)] */
  int64_t stride;
} tdm_choices_params;

/* Shared memory for `rows` rows of n_experts. */
static inline uint32_t tdm_choices_bytes(int64_t n_experts, int64_t rows) {
  const int64_t experts = (n_experts + 31) / 32 * 32, words = (rows + 31) / 32;
  return (uint32_t)(4 * (experts * words + 2 * experts + experts / 32 + 1));
}

#endif
