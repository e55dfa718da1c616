#ifndef BENCH_RULER_PARAMS_H
#define BENCH_RULER_PARAMS_H

#include "kernels/device/abi.h"

typedef struct bench_bandwidth_params {
  const void* data; /* [bytes], a multiple of tile_bytes */
  uint32_t* out;    /* [1], never written in practice */
  int64_t bytes;
  int32_t tile_bytes; /* bulk: of a stage */
  int32_t stages;     /* bulk: at most 16 */
} bench_bandwidth_params;

static_assert(sizeof(bench_bandwidth_params) == 32, "kernel ABI");

typedef struct bench_clock_params {
  int64_t* sums; /* [2] cycles and nanoseconds, added to */
  int64_t ns;    /* how long to run */
} bench_clock_params;

static_assert(sizeof(bench_clock_params) == 16, "kernel ABI");

#endif
