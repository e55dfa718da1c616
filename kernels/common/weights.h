#ifndef KERNELS_COMMON_WEIGHTS_H
#define KERNELS_COMMON_WEIGHTS_H

/* From a checkpoint's tensors to weights as the kernels want them.
 *
 * A model walks its tensors twice through one and the same function. The first pass (loading false) only checks: every
 * missing, misshapen or mistyped tensor becomes a finding, and what was asked for is remembered, so that the rest is
 * known to be extra. The second pass allocates and copies. Names are given without their ".weight".
 *
 * A loader without a checkpoint makes random weights of the same shapes instead, FP8 where a linear can be: for
 * measurements.
 *
 *   loader_create ─► walk ─► report ──(findings: CORRUPT)──► fail
 *                              └──(none)──► loading = true ─► walk again ─► loader_destroy */

#include "runtime/findings.h"
#include "runtime/op.h"
#include "runtime/runtime.h"
#include "tandem/checkpoint.h"

/* A matrix [N, K] or a stack of them. */
typedef struct tdm_weight {
  tdm_view data;  /* e4m3, bf16 or f32 */
  tdm_view scale; /* f32, one for 128 x 128; exactly with e4m3 */
} tdm_weight;

/* Drops the references to the weight's buffers. */
void tdm_weight_release(tdm_weight* weight);

/* One thread at a time. */
typedef struct tdm_loader {
  tdm_runtime* runtime;
  const tdm_checkpoint* checkpoint; /* NULL: random weights */
  uint64_t seed;                    /* of the next random tensor */
  bool loading;
  bool* seen; /* by the checkpoint's index */
  tdm_findings findings;
  size_t loaded_bytes;
  uint8_t* staging; /* the weight in the making, in host memory: its data, then from scale_offset on its scales */
  size_t staging_bytes, scale_offset;
} tdm_loader;

/* `subject`, the checkpoint's path, stands in front of findings; borrowed. `checkpoint` NULL: random weights drawn from
 * `seed`. */
tdm_status tdm_loader_create(tdm_runtime* runtime, const tdm_checkpoint* checkpoint, const char* subject, uint64_t seed,
                             tdm_loader* out_loader);
void tdm_loader_destroy(tdm_loader* loader);

/* Every tensor that was not asked for and that `ignore` does not excuse becomes a finding; then CORRUPT if there is
 * any. */
tdm_status tdm_loader_report(tdm_loader* loader, bool (*ignore)(void* ctx, const char* name), void* ctx);

/* "<name>.weight" as a vector [n] or matrix [n, k] in one piece, bf16 or f32 as stored. `n` x `k`, k = 0 for a vector.
 */
tdm_status tdm_loader_plain(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_view* out_view);
/* The tensor `name` (full name) [n], bf16 or f32, as f32. Random ones are in [-amplitude, amplitude]. */
tdm_status tdm_loader_f32(tdm_loader* loader, const char* name, int64_t n, float amplitude, tdm_view* out_view);
/* A linear [n, k] as it is stored, bf16, f32, or e4m3 with its scales, as `dtype` (bf16 or f32). */
tdm_status tdm_loader_dequantised(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_dtype dtype,
                                  tdm_view* out_view);

/* Fills a contiguous view with random values (tdm_append_fill), done when the call returns. */
tdm_status tdm_fill_random(tdm_runtime* runtime, const tdm_view* view, uint64_t seed, float amplitude, float offset);

/* A piece of a checkpoint's linear and where it goes in a weight that is put together from many. */
typedef struct tdm_weight_piece {
  const char* name;
  int64_t n, k; /* shape of the whole linear in the checkpoint */
  int64_t from_row,
      n_rows; /* with e4m3: from_row, to_row and columns are multiples of 128, n_rows unless it ends the tensor */
  int64_t from_col, n_cols;
  int64_t to_row, to_col;
} tdm_weight_piece;

/* Adds a piece to a weight of [n, k] rows and columns in all. The first piece decides the dtype and, when loading,
 * allocates; a piece of another dtype is a finding. Start from a zeroed weight in each pass, and end it before the next
 * one begins. */
tdm_status tdm_loader_piece(tdm_loader* loader, tdm_weight* weight, int64_t n, int64_t k,
                            const tdm_weight_piece* piece);
/* All pieces are there: the weight goes to the device. */
tdm_status tdm_loader_end(tdm_loader* loader, tdm_weight* weight);

/* A linear [n, k] in one piece. */
tdm_status tdm_loader_linear(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_weight* out_weight);

#endif
