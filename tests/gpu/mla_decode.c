/* The kernels of mla_decode against the reference. A row has the same bits in any batch, on any number of SMs (which
 * decides whether splits are leaves or groups of leaves), and with or without the tokens after it. */

#include <stdlib.h>
#include <string.h>

#include "kernels/mla_decode/mla_decode_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { MAX_SEQS = 257, MAX_NEW = 3 };

typedef struct split_case {
  int64_t heads;
  int32_t n_seqs, live_seqs;
  tdm_dtype out;
  int32_t max_pages;     /* of a block table: decides the splits */
  int32_t gap;           /* elements between rows, pages and tokens of the cache */
  bool mixed;            /* sequences of the other kind, a few new tokens each, a token of NaN */
  bool chunk;            /* half of the first sequence is new */
  int32_t len[MAX_SEQS]; /* none: the first sequence fills its pages, the others have random lengths */
} split_case;

static int32_t* ints(gpu_tensor* tensor) {
  return (int32_t*)(void*)(tensor->host + GPU_GUARD_BYTES);
}

static void launch(gpu_rig* rig, const tdm_mla_decode_args* args, int32_t sms) {
  tdm_mla_decode_plan plan;
  tdm_mla_decode_params params;
  tdm_mla_decode_sm90_make_plan(args, sms, &plan);
  void* partials = (void*)(uintptr_t)gpu_scratch(rig, plan.partial_bytes, 0xff);
  if (tdm_mla_decode_sm90_params(args, &plan, partials, gpu_encode, rig, &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.attend, &params, sizeof params);
  if (plan.max_splits > 1) gpu_launch(rig, &plan.merge, &params, sizeof params);
}

/* Random latents on shuffled pages; slots that no sequence uses stay NaN. */
static void fill_cache(gpu_rig* rig, const split_case* c, const int32_t* len, gpu_tensor* cache, gpu_tensor* table) {
  int32_t n_pages = (int32_t)cache->view.shape[0], used = 0;
  int32_t* order = malloc((size_t)n_pages * sizeof *order);
  if (!order) abort();
  for (int32_t i = 0; i < n_pages; i++) order[i] = i;
  for (int32_t i = n_pages - 1; i > 0; i--) {
    int32_t j = (int32_t)(gpu_random(rig) % (uint64_t)(i + 1)), page = order[i];
    order[i] = order[j];
    order[j] = page;
  }
  uint16_t* values = (uint16_t*)(void*)(cache->host + GPU_GUARD_BYTES);
  for (int32_t s = 0; s < c->n_seqs; s++) {
    for (int32_t t = 0; t < len[s]; t++) {
      int32_t* page = &ints(table)[s * c->max_pages + t / 64];
      if (t % 64 == 0) *page = order[used++];
      uint16_t* token = values + *page * cache->view.stride[0] + t % 64 * cache->view.stride[1];
      for (int d = 0; d < 576; d++) { /* about uniform in (-2, 2), as bf16 bits */
        uint64_t bits = gpu_random(rig);
        token[d] = (uint16_t)((bits & 0x8000) | (0x3e80 + bits % 0x180));
      }
      if (c->mixed && s == 3 && t == len[s] - 1) memset(token, 0xff, 576 * sizeof *token);
    }
  }
  free(order);
}

static void run_split(gpu_rig* rig, const split_case* given) {
  split_case made = *given;
  const split_case* c = &made;
  for (int32_t s = 0; given->len[0] == 0 && s < c->n_seqs; s++) {
    uint64_t keys = (uint64_t)c->max_pages * 64;
    made.len[s] = (int32_t)(s == 0 ? keys : 1 + gpu_random(rig) % keys);
  }
  gpu_begin(rig, "mla_decode %lld heads, %d of %d sequences, %d pages, gap %d, dtype %d mixed %d", (long long)c->heads,
            c->live_seqs, c->n_seqs, c->max_pages, c->gap, c->out, c->mixed);
  int32_t start[MAX_SEQS + 1] = {0}, kind[MAX_SEQS];
  int64_t n_pages = 2;
  for (int32_t s = 0; s < c->n_seqs; s++) {
    int32_t tokens = c->mixed ? 1 + s % MAX_NEW : c->chunk && s == 0 ? c->len[0] / 2 : 1;
    start[s + 1] = start[s] + (tokens < c->len[s] ? tokens : c->len[s]);
    kind[s] = c->mixed && s % 4 == 2 ? TDM_SEQ_EXPANDED : TDM_SEQ_ABSORBED;
    n_pages += (c->len[s] + 63) / 64;
  }
  int64_t rows = start[c->n_seqs] + 2, token_stride = 576 + c->gap;
  gpu_tensor* count = gpu_make_count(rig, "n_seqs", c->live_seqs);
  gpu_tensor* q = gpu_make_strided(rig, "q", TDM_BF16, 3, (int64_t[]){rows, c->heads, 576},
                                   (int64_t[]){c->heads * 576 + c->gap, 576, 1});
  gpu_tensor* cache = gpu_make_strided(rig, "cache", TDM_BF16, 3, (int64_t[]){n_pages, 64, 576},
                                       (int64_t[]){64 * token_stride + c->gap, token_stride, 1});
  gpu_tensor* table = gpu_make(rig, "block_table", TDM_I32, 2, (int64_t[]){c->n_seqs, c->max_pages});
  gpu_tensor* seq_start = gpu_make(rig, "seq_start", TDM_I32, 1, (int64_t[]){c->n_seqs + 1});
  gpu_tensor* kv_len = gpu_make(rig, "kv_len", TDM_I32, 1, (int64_t[]){c->n_seqs});
  gpu_tensor* seq_kind = gpu_make(rig, "seq_kind", TDM_I32, 1, (int64_t[]){c->n_seqs});
  gpu_tensor* out = gpu_make_strided(rig, "out", c->out, 3, (int64_t[]){rows, c->heads, 512},
                                     (int64_t[]){c->heads * 512 + c->gap, 512, 1});
  gpu_fill_normal(rig, q, 0.3f);
  memcpy(ints(seq_start), start, (size_t)(c->n_seqs + 1) * 4);
  memcpy(ints(kv_len), c->len, (size_t)c->n_seqs * 4);
  memcpy(ints(seq_kind), kind, (size_t)c->n_seqs * 4);
  fill_cache(rig, c, c->len, cache, table);
  tdm_mla_decode_args args = {.size = sizeof args,
                              .n_seqs = count->view,
                              .q = q->view,
                              .cache = cache->view,
                              .block_table = table->view,
                              .seq_start = seq_start->view,
                              .kv_len = kv_len->view,
                              .seq_kind = seq_kind->view,
                              .out = out->view,
                              .scale = 0.0721688f};
  gpu_upload(rig);
  tdm_mla_decode_args device = args;
  bool done = gpu_reference(rig, &tdm_op_mla_decode, &args);
  if (done) {
    gpu_to_device(rig, &tdm_op_mla_decode, &device);
    launch(rig, &device, rig->sms);
    gpu_download(rig);
    gpu_expect_close(rig, out, 1e-6);
  }
  gpu_end(rig);

  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  for (int32_t run = 0; done && run < 3 && c->live_seqs > 0; run++) {
    static const char* const names[] = {"again, on 3 SMs", "first sequence alone", "first token alone"};
    gpu_begin(rig, "mla_decode %lld heads, %s", (long long)c->heads, names[run]);
    int32_t n = run == 0 ? c->live_seqs : 1;
    ints(count)[0] = n;
    if (run == 2) {
      ints(kv_len)[0] -= start[1] - 1;
      ints(seq_start)[1] = 1;
    }
    gpu_poison(out);
    gpu_upload(rig);
    launch(rig, &device, run == 0 ? 3 : rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, 0, run == 2 ? 1 : start[n]);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

void test_mla_decode(gpu_rig* rig, bool quick) {
  static const split_case cases[] = {
      {4, 5, 5, TDM_F32, 10, 0, true, false, {600, 1, 63, 65, 64}},
      {16, 6, 5, TDM_BF16, 10, 8, true, false, {514, 513, 100, 600, 512, 40}},
      {20, 4, 4, TDM_F32, 9, 24, true, false, {560, 64, 5, 513}},
      {128, 4, 4, TDM_BF16, 20, 8, true, false, {700, 2, 10, 1030}},
      {16, 8, 8, TDM_BF16, 64, 0, false, false, {4096, 1, 63, 64, 65, 128, 1000, 511}},
      {4, 2, 2, TDM_F32, 2560, 0, false, false, {6000, 2561}}, /* leaves of 640 keys */
      {32, 7, 7, TDM_BF16, 20, 16, true, false, {1000, 128, 129, 1024, 1025, 3, 511}},
      {64, 40, 37, TDM_F32, 20, 0, true, false, {1000, 320, 321, 577, 64, 5,   6,  7,  8,  9,  10, 11, 12, 13,
                                                 14,   15,  16,  17,  18, 19,  20, 21, 22, 23, 24, 25, 26, 27,
                                                 28,   29,  30,  31,  32, 600, 34, 35, 36, 37, 38, 39}},
      {100, 3, 3, TDM_BF16, 8, 0, true, false, {512, 65, 64}},
      {128, 2, 2, TDM_F32, 64, 0, false, false, {4096, 1000}},
      {24, 2, 2, TDM_BF16, 40, 0, false, false, {2560, 1500}},
      {16, 3, 0, TDM_F32, 8, 0, true, false, {300, 65, 64}},
      {1, 3, 3, TDM_F32, 9, 0, true, false, {513, 65, 64}},
      {16, 1, 1, TDM_BF16, 17, 0, false, true, {0}},
      {64, 2, 2, TDM_BF16, 4, 0, false, true, {0}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (!quick || (cases[i].max_pages < 64 && !cases[i].chunk)) run_split(rig, &cases[i]);
  static const int32_t tokens[] = {1, 2, 3, 7, 16, 17, 37, 64, 65, 100, 128, 129, 257};
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens && !quick; i++) {
    split_case few = {16, tokens[i], tokens[i], TDM_BF16, 6, 0, false, false, {0}};
    split_case many = {64, tokens[i], tokens[i], TDM_BF16, tokens[i] < 8 ? 18 : 2, 0, false, false, {0}};
    run_split(rig, &few);
    run_split(rig, &many);
  }
}
