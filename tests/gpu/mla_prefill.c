/* mla_prefill against the reference. A sequence has the same bits alone and in a batch. */

#include <stdlib.h>
#include <string.h>

#include "kernels/mla_prefill/mla_prefill_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { MAX_SEQS = 64 };

static int32_t* ints(gpu_tensor* tensor) {
  return (int32_t*)(void*)(tensor->host + GPU_GUARD_BYTES);
}

typedef struct prefill_case {
  int64_t heads;
  int32_t n_seqs;
  int32_t live_seqs;
  int32_t max_len;
  tdm_dtype out;
  bool mixed;
} prefill_case;

static void run_prefill(gpu_rig* rig, const prefill_case* c) {
  gpu_begin(rig, "mla_prefill %lld heads, %d of %d sequences up to %d, dtype %d mixed %d", (long long)c->heads,
            c->live_seqs, c->n_seqs, c->max_len, c->out, c->mixed);
  int32_t start[MAX_SEQS + 1] = {0}, kind[MAX_SEQS];
  for (int32_t s = 0; s < c->n_seqs; s++) {
    int32_t tokens = 1 + (int32_t)(gpu_random(rig) % (uint64_t)c->max_len);
    if (s == 0) tokens = c->max_len;
    if (s == 1) tokens = 1;
    kind[s] = c->mixed && s % 3 == 2 ? TDM_SEQ_ABSORBED : TDM_SEQ_EXPANDED;
    start[s + 1] = start[s] + tokens;
  }
  int64_t rows = start[c->n_seqs] + 1, h = c->heads;
  gpu_tensor* count = gpu_make_count(rig, "n_seqs", c->live_seqs);
  gpu_tensor* q_nope =
      gpu_make_strided(rig, "q_nope", TDM_BF16, 3, (int64_t[]){rows, h, 128}, (int64_t[]){h * 192, 192, 1});
  gpu_tensor* q_rope = gpu_make(rig, "q_rope", TDM_BF16, 3, (int64_t[]){rows, h, 64});
  gpu_tensor* kv =
      gpu_make_strided(rig, "kv", TDM_BF16, 3, (int64_t[]){rows, h, 256}, (int64_t[]){h * 256 + 8, 256, 1});
  gpu_tensor* k_rope = gpu_make_strided(rig, "k_rope", TDM_BF16, 2, (int64_t[]){rows, 64}, (int64_t[]){576, 1});
  gpu_tensor* seq_start = gpu_make(rig, "seq_start", TDM_I32, 1, (int64_t[]){c->n_seqs + 1});
  gpu_tensor* seq_kind = gpu_make(rig, "seq_kind", TDM_I32, 1, (int64_t[]){c->n_seqs});
  gpu_tensor* out =
      gpu_make_strided(rig, "out", c->out, 3, (int64_t[]){rows, h, 128}, (int64_t[]){h * 128 + 8, 128, 1});
  gpu_fill_normal(rig, q_nope, 1.0f);
  gpu_fill_normal(rig, q_rope, 1.0f);
  gpu_fill_normal(rig, kv, 1.0f);
  gpu_fill_normal(rig, k_rope, 1.0f);
  /* NaN in the token after sequence 1, and in the middle of sequence 0, must not reach back. */
  if (c->n_seqs > 2)
    memset(kv->host + GPU_GUARD_BYTES + (size_t)(start[2] * kv->view.stride[0]) * 2, 0xff, (size_t)(h * 256) * 2);
  if (c->mixed)
    memset(kv->host + GPU_GUARD_BYTES + (size_t)(start[1] / 2 * kv->view.stride[0]) * 2, 0xff, (size_t)(h * 256) * 2);
  memcpy(ints(seq_start), start, (size_t)(c->n_seqs + 1) * 4);
  memcpy(ints(seq_kind), kind, (size_t)c->n_seqs * 4);
  tdm_mla_prefill_args args = {.size = sizeof args,
                               .n_seqs = count->view,
                               .q_nope = q_nope->view,
                               .q_rope = q_rope->view,
                               .kv = kv->view,
                               .k_rope = k_rope->view,
                               .seq_start = seq_start->view,
                               .seq_kind = seq_kind->view,
                               .out = out->view,
                               .scale = 0.0721688f};
  gpu_upload(rig);
  tdm_mla_prefill_args device = args;
  if (!gpu_reference(rig, &tdm_op_mla_prefill, &args)) {
    gpu_end(rig);
    gpu_free(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_mla_prefill, &device);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  for (int32_t alone = 0; alone < 2; alone++) { /* all of them; then the first alone, on a few SMs */
    tdm_mla_prefill_params params;
    tdm_kernel_launch kernel;
    if (tdm_mla_prefill_sm90_params(&device, gpu_encode, rig, &params) != TDM_OK) {
      gpu_fail(rig, "params: %s", tdm_last_error()->message);
      break;
    }
    tdm_mla_prefill_sm90_plan(rows, h, c->n_seqs, alone ? 3 : rig->sms, &kernel);
    if (alone) {
      ints(count)[0] = 1;
      gpu_poison(out);
      gpu_upload(rig);
    }
    gpu_launch(rig, &kernel, &params, sizeof params);
    gpu_download(rig);
    if (alone) {
      gpu_expect_rows(rig, out, bits, 0, start[1]);
    } else {
      gpu_expect_close(rig, out, 1e-6);
      memcpy(bits, out->got, out->bytes);
    }
    if (c->live_seqs < 1) break;
  }
  free(bits);
  gpu_end(rig);
  gpu_free(rig);
}

void test_mla_prefill(gpu_rig* rig, bool quick) {
  static const prefill_case cases[] = {
      {2, 3, 3, 70, TDM_F32, false},   {4, 5, 4, 200, TDM_BF16, true},  {16, 4, 4, 130, TDM_BF16, true},
      {4, 12, 12, 300, TDM_F32, true}, {1, 1, 1, 1500, TDM_F32, false}, {128, 2, 2, 129, TDM_BF16, false},
      {3, 2, 0, 64, TDM_BF16, false},  {5, 4, 4, 64, TDM_F32, false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !(quick && i == 2); i++) run_prefill(rig, &cases[i]);
  static const int32_t tokens[] = {1, 2, 3, 7, 16, 17, 37, 64, 65, 100, 128, 129, 257, 1025};
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens && !quick; i++)
    run_prefill(rig, &(prefill_case){2, 1, 1, tokens[i], i % 2 == 0 ? TDM_BF16 : TDM_F32, false});
}
