#ifndef MODELS_BATCH_H
#define MODELS_BATCH_H

/* What changes from step to step, as arrays in device memory at fixed addresses, mirrored in host memory: a forward
 * call fills the mirror and copies it over in one piece, so that captured graphs need no update. */

#include "attention/mla.h"

typedef struct tdm_batch_limits {
  int64_t tokens, seqs, pages_per_seq;
} tdm_batch_limits;

/* The arrays. M = limits.tokens, S = limits.seqs. */
typedef enum tdm_batch_array {
  TDM_BATCH_N_TOKENS,       /* [1] i32 */
  TDM_BATCH_N_SEQS,         /* [1] i32 */
  TDM_BATCH_N_LOGITS,       /* [1] i32 */
  TDM_BATCH_TOKEN_IDS,      /* [M] i32 */
  TDM_BATCH_POSITIONS,      /* [M] i32 */
  TDM_BATCH_SLOTS,          /* [M] i32 */
  TDM_BATCH_SEQ_START,      /* [S + 1] i32 */
  TDM_BATCH_KV_LEN,         /* [S] i32 */
  TDM_BATCH_SEQ_KIND,       /* [S] i32 */
  TDM_BATCH_BLOCK_TABLE,    /* [S, pages_per_seq] i32 */
  TDM_BATCH_LOGIT_ROWS,     /* [M] i32 */
  TDM_BATCH_TEMPERATURES,   /* [M] f32, by row of logits */
  TDM_BATCH_TOP_P,          /* [M] f32 */
  TDM_BATCH_SEEDS,          /* [M] i64 */
  TDM_BATCH_DRAW_POSITIONS, /* [M] i32: position of the token drawn */
  TDM_BATCH_ARRAYS
} tdm_batch_array;

/* One thread at a time. */
typedef struct tdm_batch {
  tdm_runtime* runtime;
  tdm_batch_limits limits;
  tdm_view views[TDM_BATCH_ARRAYS]; /* in one buffer */
  uint8_t* mirror;
  size_t bytes;
} tdm_batch;

tdm_status tdm_batch_init(tdm_runtime* runtime, const tdm_batch_limits* limits, tdm_batch* out_batch);
void tdm_batch_fini(tdm_batch* batch);

/* The mirror of an array. */
int32_t* tdm_batch_i32(tdm_batch* batch, tdm_batch_array array);
float* tdm_batch_f32(tdm_batch* batch, tdm_batch_array array);
int64_t* tdm_batch_i64(tdm_batch* batch, tdm_batch_array array);

/* Copies the mirror to the device. */
tdm_status tdm_batch_upload(tdm_batch* batch);

/* An array's first `rows` rows. */
tdm_view tdm_batch_view(const tdm_batch* batch, tdm_batch_array array, int64_t rows);

#endif
