#include <string.h>

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/common/mla.h"
#include "kernels/common/sequence.h"
#include "kernels/common/softmax.h"
#include "kernels/mla_decode/mla_decode.h"

/* Heads that share one decoding of the cache; bounds the scratch, the scores of all heads of a long context being
 * large. */
enum { GROUP_HEADS = 16 };

/* What a group of heads of one token works on; carved out of the scratch. */
typedef struct group {
  double* sums;  /* [heads][512] */
  double* dots;  /* [heads][8] */
  float* q;      /* [heads][576] */
  float* scores; /* [heads][max_keys] */
  int64_t heads, max_keys;
} group;

/* A query's keys: tokens 0 .. n-1 of a sequence. */
typedef struct keys {
  const void* cache;
  const tdm_view* view;
  const int32_t* pages;
  int64_t n;
} keys;

static int64_t group_heads(const tdm_mla_decode_args* args) {
  return args->q.shape[1] < GROUP_HEADS ? args->q.shape[1] : GROUP_HEADS;
}

size_t tdm_mla_decode_ref_scratch_bytes(const tdm_mla_decode_args* args) {
  size_t max_keys = (size_t)args->block_table.shape[1] * TDM_PAGE_TOKENS;
  size_t head_bytes = (TDM_MLA_LATENT + TDM_TILE_ROWS) * sizeof(double) + (TDM_MLA_CACHED + max_keys) * sizeof(float);
  return ((size_t)group_heads(args) * head_bytes + 255) / 256 * 256;
}

static group carve(const tdm_mla_decode_args* args, void* scratch) {
  group g = {.heads = group_heads(args), .max_keys = args->block_table.shape[1] * TDM_PAGE_TOKENS};
  g.sums = scratch;
  g.dots = g.sums + g.heads * TDM_MLA_LATENT;
  g.q = (float*)(g.dots + g.heads * TDM_TILE_ROWS);
  g.scores = g.q + g.heads * TDM_MLA_CACHED;
  return g;
}

/* Element offset of a token in the cache. */
static int64_t token_offset(const keys* k, int64_t token) {
  return k->pages[token / TDM_PAGE_TOKENS] * k->view->stride[0] + token % TDM_PAGE_TOKENS * k->view->stride[1];
}

static void score(const group* g, const keys* k, float scale) {
  for (int64_t first = 0; first < k->n; first += TDM_TILE_ROWS) { /* 8 divides 64: a tile stays in its page */
    int64_t tokens = k->n - first < TDM_TILE_ROWS ? k->n - first : TDM_TILE_ROWS;
    memset(g->dots, 0, (size_t)(g->heads * TDM_TILE_ROWS) * sizeof *g->dots);
    for (int64_t c = 0; c < TDM_MLA_CACHED; c += TDM_TILE_COLS) {
      int64_t cols = TDM_MLA_CACHED - c < TDM_TILE_COLS ? TDM_MLA_CACHED - c : TDM_TILE_COLS;
      tdm_tile tile;
      tdm_tile_load(&tile, k->cache, k->view->dtype, token_offset(k, first) + c, k->view->stride[1], 1, tokens, cols);
      for (int64_t h = 0; h < g->heads; h++) {
        double sums[TDM_TILE_ROWS];
        tdm_tile_dot(&tile, g->q + h * TDM_MLA_CACHED + c, sums);
        for (int r = 0; r < TDM_TILE_ROWS; r++) g->dots[h * TDM_TILE_ROWS + r] += sums[r];
      }
    }
    for (int64_t h = 0; h < g->heads; h++) {
      for (int64_t r = 0; r < tokens; r++) {
        g->scores[h * g->max_keys + first + r] = (float)g->dots[h * TDM_TILE_ROWS + r] * scale;
      }
    }
  }
}

static void add_values(const group* g, const keys* k) {
  memset(g->sums, 0, (size_t)(g->heads * TDM_MLA_LATENT) * sizeof *g->sums);
  for (int64_t j = 0; j < k->n; j++) {
    float latent[TDM_MLA_LATENT];
    tdm_load_f32_row(k->cache, k->view->dtype, token_offset(k, j), 1, TDM_MLA_LATENT, latent);
    for (int64_t h = 0; h < g->heads; h++) {
      tdm_add_scaled(g->sums + h * TDM_MLA_LATENT, (double)g->scores[h * g->max_keys + j], latent, TDM_MLA_LATENT);
    }
  }
}

static void attend(const tdm_mla_decode_args* args, int64_t row, const keys* k, void* scratch) {
  const void* q = tdm_view_data(&args->q);
  void* out = tdm_view_data(&args->out);
  bool round = args->cache.dtype != TDM_F32;
  group g = carve(args, scratch);
  int64_t stride = g.heads;
  for (int64_t begin = 0; begin < args->q.shape[1]; begin += stride) {
    g.heads = args->q.shape[1] - begin < stride ? args->q.shape[1] - begin : stride;
    for (int64_t h = 0; h < g.heads; h++) {
      int64_t start = row * args->q.stride[0] + (begin + h) * args->q.stride[1];
      tdm_load_f32_row(q, args->q.dtype, start, 1, TDM_MLA_CACHED, g.q + h * TDM_MLA_CACHED);
    }
    score(&g, k, tdm_softmax_log2_scale(args->scale));
    double denominators[GROUP_HEADS];
    for (int64_t h = 0; h < g.heads; h++) denominators[h] = tdm_softmax_row(g.scores + h * g.max_keys, k->n, round);
    add_values(&g, k);
    for (int64_t h = 0; h < g.heads; h++) {
      float values[TDM_MLA_LATENT];
      for (int d = 0; d < TDM_MLA_LATENT; d++) {
        values[d] = (float)(g.sums[h * TDM_MLA_LATENT + d] / denominators[h]);
      }
      int64_t start = row * args->out.stride[0] + (begin + h) * args->out.stride[1];
      tdm_store_f32_row(out, args->out.dtype, start, TDM_MLA_LATENT, values);
    }
  }
}

static void clear_row(const tdm_mla_decode_args* args, int64_t row) {
  static const float zeros[TDM_MLA_LATENT];
  void* out = tdm_view_data(&args->out);
  for (int64_t h = 0; h < args->out.shape[1]; h++) {
    int64_t start = row * args->out.stride[0] + h * args->out.stride[1];
    tdm_store_f32_row(out, args->out.dtype, start, TDM_MLA_LATENT, zeros);
  }
}

/* An absorbed sequence's length covers its new tokens and fits its block table, whose pages exist. */
static tdm_status check_length(const tdm_mla_decode_args* args, int64_t s) {
  const int32_t* start = tdm_view_data(&args->seq_start);
  const int32_t* kv_len = tdm_view_data(&args->kv_len);
  const int32_t* pages = (const int32_t*)tdm_view_data(&args->block_table) + s * args->block_table.stride[0];
  int64_t max_keys = args->block_table.shape[1] * TDM_PAGE_TOKENS;
  int64_t new_tokens = start[s + 1] - start[s];
  if (kv_len[s] < new_tokens) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "mla_decode: sequence %lld has kv_len %d, less than its %lld new tokens",
                    (long long)s, kv_len[s], (long long)new_tokens);
  }
  if (kv_len[s] > max_keys) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "mla_decode: sequence %lld has kv_len %d, more than its %lld pages hold (%lld)", (long long)s,
                    kv_len[s], (long long)args->block_table.shape[1], (long long)max_keys);
  }
  for (int64_t j = 0; j * TDM_PAGE_TOKENS < kv_len[s]; j++) {
    if (pages[j] < 0 || pages[j] >= args->cache.shape[0]) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "mla_decode: entry %lld of sequence %lld's block table is page %d, outside [0, %lld)",
                      (long long)j, (long long)s, pages[j], (long long)args->cache.shape[0]);
    }
  }
  return TDM_OK;
}

tdm_status tdm_mla_decode_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_mla_decode_args* args = void_args;
  (void)plan;
  int64_t n_seqs;
  TDM_TRY(
      tdm_live_sequences("mla_decode", &args->n_seqs, &args->seq_start, &args->seq_kind, args->q.shape[0], &n_seqs));
  const int32_t* start = tdm_view_data(&args->seq_start);
  const int32_t* kind = tdm_view_data(&args->seq_kind);
  const int32_t* kv_len = tdm_view_data(&args->kv_len);
  for (int64_t s = 0; s < n_seqs; s++) {
    if (kind[s] == TDM_SEQ_ABSORBED) TDM_TRY(check_length(args, s));
  }

  for (int64_t s = 0; s < n_seqs; s++) {
    keys k = {
        .cache = tdm_view_data(&args->cache),
        .view = &args->cache,
        .pages = (const int32_t*)tdm_view_data(&args->block_table) + s * args->block_table.stride[0],
    };
    for (int64_t row = start[s]; row < start[s + 1]; row++) {
      if (kind[s] == TDM_SEQ_ABSORBED) {
        k.n = kv_len[s] - (start[s + 1] - row) + 1;
        attend(args, row, &k, scratch);
      } else {
        clear_row(args, row);
      }
    }
  }
  return TDM_OK;
}
