#ifndef RUNTIME_WORKSPACE_H
#define RUNTIME_WORKSPACE_H

/* Where temporaries lie in the workspace. Two of them share bytes only if every use of one is ordered before every use
 * of the other by the waits that the data need anyway, so sharing memory never costs overlap. */

#include "runtime/schedule.h"

typedef struct tdm_block {
  size_t bytes;  /* > 0 */
  bool keep;     /* shares with nobody that comes later: its contents are read after the launch */
  size_t offset; /* out: multiple of 256 */
} tdm_block;

/* `uses` with space >= 0 are of blocks[space]; a block without uses shares with nobody. Answers the bytes needed. */
tdm_status tdm_workspace_layout(tdm_runtime* runtime, const tdm_schedule* schedule, const int32_t* lane_of,
                                const tdm_use* uses, int64_t n_uses, tdm_block* blocks, int32_t n_blocks,
                                size_t* out_bytes);

#endif
