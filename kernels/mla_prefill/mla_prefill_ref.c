#include <string.h>

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/common/mla.h"
#include "kernels/common/sequence.h"
#include "kernels/common/softmax.h"
#include "kernels/mla_prefill/mla_prefill.h"

/* Eight keys of one head, decoded. */
typedef struct key_tile {
  tdm_tile nope;
  tdm_tile rope;
} key_tile;

/* One head of one sequence; carved out of the scratch. */
typedef struct head {
  key_tile* keys; /* [ceil(n/8)] */
  float* values;  /* [n][128] */
  float* scores;  /* [n rounded up to 8] */
} head;

static int64_t tile_count(int64_t n) {
  return (n + TDM_TILE_ROWS - 1) / TDM_TILE_ROWS;
}

size_t tdm_mla_prefill_ref_scratch_bytes(const tdm_mla_prefill_args* args) {
  size_t tiles = (size_t)tile_count(args->q_nope.shape[0]);
  size_t token_bytes = (TDM_MLA_VALUE + 1) * sizeof(float);
  return (tiles * (sizeof(key_tile) + TDM_TILE_ROWS * token_bytes) + 255) / 256 * 256;
}

static head carve(const tdm_mla_prefill_args* args, void* scratch) {
  int64_t tiles = tile_count(args->q_nope.shape[0]);
  head hd = {.keys = scratch};
  hd.values = (float*)(hd.keys + tiles);
  hd.scores = hd.values + tiles * TDM_TILE_ROWS * TDM_MLA_VALUE;
  return hd;
}

static void load_keys(const tdm_mla_prefill_args* args, int64_t h, int64_t begin, int64_t n, const head* hd) {
  const void* kv = tdm_view_data(&args->kv);
  const void* k_rope = tdm_view_data(&args->k_rope);
  for (int64_t j = 0; j < n; j += TDM_TILE_ROWS) {
    key_tile* keys = &hd->keys[j / TDM_TILE_ROWS];
    int64_t tokens = n - j < TDM_TILE_ROWS ? n - j : TDM_TILE_ROWS;
    int64_t start = (begin + j) * args->kv.stride[0] + h * args->kv.stride[1];
    tdm_tile_load(&keys->nope, kv, args->kv.dtype, start, args->kv.stride[0], 1, tokens, TDM_MLA_NOPE);
    tdm_tile_load(&keys->rope, k_rope, args->k_rope.dtype, (begin + j) * args->k_rope.stride[0], args->k_rope.stride[0],
                  1, tokens, TDM_MLA_ROPE);
    for (int64_t r = 0; r < tokens; r++) {
      tdm_load_f32_row(kv, args->kv.dtype, start + r * args->kv.stride[0] + TDM_MLA_NOPE, 1, TDM_MLA_VALUE,
                       hd->values + (j + r) * TDM_MLA_VALUE);
    }
  }
}

/* Query i of a sequence whose keys are loaded; its row of the batch is `row`. */
static void attend(const tdm_mla_prefill_args* args, int64_t h, int64_t row, int64_t i, const head* hd) {
  float nope[TDM_MLA_NOPE], rope[TDM_MLA_ROPE];
  tdm_load_f32_row(tdm_view_data(&args->q_nope), args->q_nope.dtype,
                   row * args->q_nope.stride[0] + h * args->q_nope.stride[1], 1, TDM_MLA_NOPE, nope);
  tdm_load_f32_row(tdm_view_data(&args->q_rope), args->q_rope.dtype,
                   row * args->q_rope.stride[0] + h * args->q_rope.stride[1], 1, TDM_MLA_ROPE, rope);
  float scale = tdm_softmax_log2_scale(args->scale);
  for (int64_t tile = 0; tile <= i / TDM_TILE_ROWS; tile++) {
    double with_nope[TDM_TILE_ROWS], with_rope[TDM_TILE_ROWS];
    tdm_tile_dot(&hd->keys[tile].nope, nope, with_nope);
    tdm_tile_dot(&hd->keys[tile].rope, rope, with_rope);
    for (int r = 0; r < TDM_TILE_ROWS; r++) {
      hd->scores[tile * TDM_TILE_ROWS + r] = (float)(with_nope[r] + with_rope[r]) * scale;
    }
  }
  /* Scores of the last tile beyond i are of later keys: never looked at. */
  double denominator = tdm_softmax_row(hd->scores, i + 1, args->kv.dtype != TDM_F32);
  double sums[TDM_MLA_VALUE] = {0};
  for (int64_t j = 0; j <= i; j++) {
    tdm_add_scaled(sums, (double)hd->scores[j], hd->values + j * TDM_MLA_VALUE, TDM_MLA_VALUE);
  }
  float values[TDM_MLA_VALUE];
  for (int d = 0; d < TDM_MLA_VALUE; d++) values[d] = (float)(sums[d] / denominator);
  tdm_store_f32_row(tdm_view_data(&args->out), args->out.dtype, row * args->out.stride[0] + h * args->out.stride[1],
                    TDM_MLA_VALUE, values);
}

tdm_status tdm_mla_prefill_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_mla_prefill_args* args = void_args;
  (void)plan;
  int64_t n_seqs;
  TDM_TRY(tdm_live_sequences("mla_prefill", &args->n_seqs, &args->seq_start, &args->seq_kind, args->q_nope.shape[0],
                             &n_seqs));
  const int32_t* start = tdm_view_data(&args->seq_start);
  const int32_t* kind = tdm_view_data(&args->seq_kind);
  head hd = carve(args, scratch);
  for (int64_t s = 0; s < n_seqs; s++) {
    int64_t n = start[s + 1] - start[s];
    if (kind[s] != TDM_SEQ_EXPANDED || n == 0) continue;
    for (int64_t h = 0; h < args->q_nope.shape[1]; h++) {
      load_keys(args, h, start[s], n, &hd);
      for (int64_t i = 0; i < n; i++) attend(args, h, start[s] + i, i, &hd);
    }
  }
  return TDM_OK;
}
