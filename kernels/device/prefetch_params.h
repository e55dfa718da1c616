#ifndef KERNELS_DEVICE_PREFETCH_PARAMS_H
#define KERNELS_DEVICE_PREFETCH_PARAMS_H

#include "kernels/device/abi.h"

/* Rows of bytes, to be asked for into L2. Addresses and sizes are multiples of 16. */
typedef struct tdm_prefetch {
  const uint8_t* data; /* NULL: none */
  int64_t stride;      /* bytes */
  int64_t bytes;       /* of a row */
  int32_t rows;
  int32_t padding;
} tdm_prefetch;

static_assert(sizeof(tdm_prefetch) == 32, "kernel ABI");

#endif
