#ifndef TESTS_GPU_SMID_PARAMS_H
#define TESTS_GPU_SMID_PARAMS_H

#include "kernels/device/abi.h"

typedef struct tdm_test_smid_params {
  int32_t* out; /* [grid] SM of each CTA */
  int64_t cycles;
  const volatile int32_t* gate; /* host memory: every CTA waits until it is not 0; NULL: none */
  const int32_t* after;         /* [grid] copied to out + grid, to see what a step before has written; NULL: none */
} tdm_test_smid_params;

static_assert(sizeof(tdm_test_smid_params) == 32, "kernel ABI");

#endif
