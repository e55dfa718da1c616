#ifndef KERNELS_FILL_FILL_PARAMS_H
#define KERNELS_FILL_FILL_PARAMS_H

#include "kernels/device/abi.h"

typedef struct tdm_fill_params {
  void* out;
  int64_t count;
  uint64_t seed;
  float amplitude;
  float offset;
  int32_t dtype; /* tdm_dtype: f32, bf16 or e4m3 */
  int32_t reserved;
} tdm_fill_params;

static_assert(sizeof(tdm_fill_params) == 40, "kernel ABI");

#endif
