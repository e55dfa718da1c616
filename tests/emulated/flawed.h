#ifndef TESTS_EMULATED_FLAWED_H
#define TESTS_EMULATED_FLAWED_H

/* A small kernel with a producer and a consumer, that can be made wrong in ways the emulator is there to find. */

#include "runtime/tensor_map.h"

enum { FLAWED_COLUMNS = 64, FLAWED_STAGES = 2, FLAWED_THREADS = 64, FLAWED_SHARED_BYTES = 1024 };

typedef enum flaw {
  FLAW_NONE = 1,
  FLAW_READS_EARLY,       /* a stage before it waits for it */
  FLAW_GIVES_BACK_EARLY,  /* a stage that it still reads */
  FLAW_FILLS_EARLY,       /* does not wait until a stage is empty */
  FLAW_ARRIVES_TOO_OFTEN, /* at a stage's barrier */
  FLAW_STOPS_EARLY,       /* with a copy under way */
  FLAW_WAITS_FOREVER,     /* for one row more than there are */
  FLAW_MISSES_A_BARRIER,  /* a thread of the CTA */
  FLAW_WRITES_TOO_FAR,    /* past its shared memory */
  FLAW_COPIES_TOO_FAR,
} flaw;

/* out[column] = sum of the column over `rows` rows of f32. */
typedef struct flawed_params {
  tdm_tensor_map x; /* a row a tile */
  float* out;
  int32_t rows;
  int32_t flaw;
} flawed_params;

#endif
