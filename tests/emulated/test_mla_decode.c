#include <criterion/criterion.h>

#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* mla_decode of up to 16 heads: as the reference, with the same bits however the keys are split. */

enum { LATENT = 512, CACHED = 576, PAGE = 64, MOST_SEQS = 4, A = TDM_SEQ_ABSORBED, X = TDM_SEQ_EXPANDED };

typedef struct sequence {
  int32_t kind, n_new, kv_len;
} sequence;

typedef struct decode_case {
  int64_t heads;
  tdm_dtype out;
  int64_t spare_pages; /* that a row of the table has beyond the longest sequence */
  int32_t n;
  sequence seqs[MOST_SEQS];
} decode_case;

static const decode_case cases[] = {
    {1, TDM_F32, 0, 1, {{A, 1, 1}}},
    {16, TDM_BF16, 1, 4, {{A, 1, 63}, {A, 1, 64}, {X, 3, 3}, {A, 1, 65}}},
    {3, TDM_F32, 0, 3, {{A, 5, 200}, {A, 2, 130}, {A, 0, 70}}},
    {5, TDM_F32, 3, 2, {{A, 1, 257}, {A, 3, 1100}}},
    {16, TDM_F32, 0, 1, {{A, 1, 4097}}},
    {7, TDM_BF16, 5, 2, {{A, 1, 2300}, {A, 2, 2049}}},
};

static int32_t* i32_at(const test_tensor* tensor, int64_t index) {
  return test_view_at(&tensor->view, index);
}

static int64_t pages_of(const sequence* s) {
  return s->kind == A ? (s->kv_len + PAGE - 1) / PAGE : 0;
}

/* Pages are dealt out of order; what no sequence has stays NaN. */
static void run(const decode_case* c) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "mla_decode, %lld heads, %d sequences, the first of %d", (long long)c->heads, c->n,
                 c->seqs[0].kv_len);
  int64_t rows = 0, pages = 1, longest = 1;
  for (int32_t s = 0; s < c->n; s++) {
    rows += c->seqs[s].n_new;
    pages += pages_of(&c->seqs[s]);
    if (pages_of(&c->seqs[s]) > longest) longest = pages_of(&c->seqs[s]);
  }
  while (pages % 7 == 0) pages++;
  test_tensor* q = test_rig_tensor(&rig, "q", TDM_BF16, 3, (int64_t[]){rows, c->heads, CACHED});
  test_tensor* cache = test_rig_tensor(&rig, "cache", TDM_BF16, 3, (int64_t[]){pages, PAGE, CACHED});
  test_tensor* table = test_rig_tensor(&rig, "block_table", TDM_I32, 2, (int64_t[]){c->n, longest + c->spare_pages});
  test_tensor* start = test_rig_tensor(&rig, "seq_start", TDM_I32, 1, (int64_t[]){c->n + 1});
  test_tensor* length = test_rig_tensor(&rig, "kv_len", TDM_I32, 1, (int64_t[]){c->n});
  test_tensor* kind = test_rig_tensor(&rig, "seq_kind", TDM_I32, 1, (int64_t[]){c->n});
  test_tensor* out = test_rig_tensor(&rig, "out", c->out, 3, (int64_t[]){rows, c->heads, LATENT});
  test_view_set_normal(&q->view, &rig.random, 1.0f);
  test_tensor_allow(out, &out->view);
  *i32_at(start, 0) = 0;
  int64_t dealt = 0;
  for (int32_t s = 0; s < c->n; s++) {
    *i32_at(start, s + 1) = *i32_at(start, s) + c->seqs[s].n_new;
    *i32_at(length, s) = c->seqs[s].kv_len;
    *i32_at(kind, s) = c->seqs[s].kind;
    for (int64_t i = 0; i < pages_of(&c->seqs[s]); i++) {
      const int64_t page = (dealt++ * 7 + 3) % pages, left = c->seqs[s].kv_len - i * PAGE;
      *i32_at(table, s * (longest + c->spare_pages) + i) = (int32_t)page;
      const tdm_view whole = tdm_view_slice(cache->view, 0, page, 1);
      const tdm_view live = tdm_view_slice(whole, 1, 0, left < PAGE ? left : PAGE);
      test_view_set_normal(&live, &rig.random, 1.0f);
    }
  }
  const tdm_mla_decode_args args = {.size = sizeof args,
                                    .n_seqs = test_rig_count(&rig, "n_seqs", c->n)->view,
                                    .q = q->view,
                                    .cache = cache->view,
                                    .block_table = table->view,
                                    .seq_start = start->view,
                                    .kv_len = length->view,
                                    .seq_kind = kind->view,
                                    .out = out->view,
                                    .scale = 0.13523378f};
  const emulated_output output = {out, false};
  emulated_compare(&rig, &(emulated_call){.op = &tdm_op_mla_decode,
                                          .args = &args,
                                          .outputs = &output,
                                          .n_outputs = 1,
                                          .kernel = "mla_decode",
                                          .counts_launches = true,
                                          .sms = {132, 20, 1}});
  test_rig_close(&rig);
}

Test(mla_decode, splits_keep_the_bits) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run(&cases[i]);
}
