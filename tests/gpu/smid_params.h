#ifndef TESTS_GPU_SMID_PARAMS_H
#define TESTS_GPU_SMID_PARAMS_H

#include "kernels/device/abi.h"

typedef struct tdm_test_smid_params {
  int32_t* out; /* [grid] */
  int64_t cycles;
} tdm_test_smid_params;

static_assert(sizeof(tdm_test_smid_params) == 16, "kernel ABI");

#endif
