#include <criterion/criterion.h>

#include "kernels/mla_qkv_a/mla_qkv_a.h"
#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* mla_qkv_a: the bits of gemm_fp8's and mla_norm_write's kernels. */

enum { LATENT = 512, CACHED = 576, POSITIONS = 40 };

typedef struct qkv_case {
  int64_t m, live, k, d;
  tdm_dtype cache;
  bool plain, quant, pow2, with_kv;
  tdm_rope_style style;
  const char *gemm, *behind;
} qkv_case;

#define B TDM_BF16
#define F TDM_F32

/* All token tiles that leave segments apart; and where there is one segment or many, or many rows, the ops' kernels. */
static const qkv_case cases[] = {
    {1, 1, 2048, 128, B, false, true, false, false, TDM_ROPE_DEINTERLEAVE, "swap_n64t8", "mla_qkv_a"},
    {7, 5, 2048, 256, B, true, true, true, true, TDM_ROPE_INTERLEAVED, "swap_n64t8", "mla_qkv_a"},
    {12, 12, 2048, 200, F, true, false, false, true, TDM_ROPE_HALVES, "swap_n64t16", "mla_qkv_a"},
    {24, 23, 2048, 128, B, false, true, false, false, TDM_ROPE_HALVES, "swap_n64t24", "mla_qkv_a"},
    {32, 0, 2048, 128, B, true, true, false, true, TDM_ROPE_HALVES, "swap_n64t32", "mla_qkv_a"},
    {40, 37, 2048, 128, B, false, true, false, false, TDM_ROPE_DEINTERLEAVE, "n64t64", "mla_qkv_a"},
    {70, 67, 2048, 136, B, true, false, false, true, TDM_ROPE_HALVES, "n64t128", "mla_qkv_a"},
    {9, 9, 128, 128, B, false, true, false, false, TDM_ROPE_HALVES, "swap_n64t16", "mla_norm_write"},
    {2, 2, 4096, 128, B, true, false, false, false, TDM_ROPE_HALVES, "swap_n64t8", "mla_norm_write"},
};

static struct {
  test_rig* rig;
  test_tensor* qkv;
  const qkv_case* c;
} apart;

static tdm_status run_apart(const void* args, const tdm_plan* plan, void* scratch) {
  const tdm_gemm_fp8_args product = tdm_mla_qkv_a_product(args, &apart.qkv->view);
  const tdm_mla_norm_write_args rows = tdm_mla_qkv_a_rows(args, &apart.qkv->view);
  (void)plan;
  (void)scratch;
  emulated_run(apart.rig, &(emulated_call){.op = &tdm_op_gemm_fp8, .args = &product, .kernel = apart.c->gemm});
  emulated_run(apart.rig, &(emulated_call){.op = &tdm_op_mla_norm_write, .args = &rows, .kernel = "mla_norm_write"});
  return TDM_OK;
}

static test_tensor* make_rows(test_rig* rig, const qkv_case* c, const char* name, tdm_dtype dtype, int64_t columns) {
  test_tensor* t = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 16, 1});
  if (c->live > 0) {
    const tdm_view part = tdm_view_slice(t->view, 0, 0, c->live);
    test_tensor_allow(t, &part);
  }
  return t;
}

static test_tensor* make_cache(test_rig* rig, const qkv_case* c, test_tensor* slots) {
  const int64_t pages = (c->m + 63) / 64 + 1;
  test_tensor* cache =
      test_rig_strided(rig, "cache", c->cache, 3, (int64_t[]){pages, 64, CACHED}, (int64_t[]){64 * 584, 584, 1});
  for (int64_t i = 0; i < c->m; i++) {
    int32_t* slot = test_view_at(&slots->view, i);
    *slot = i == 1 ? -1 : (int32_t)((i * 37 + 63) % (pages * 64));
    if (i >= c->live || *slot < 0) continue;
    const tdm_view row = tdm_view_slice(tdm_view_slice(cache->view, 0, *slot / 64, 1), 1, *slot % 64, 1);
    test_tensor_allow(cache, &row);
  }
  return cache;
}

static tdm_mla_qkv_a_args make(test_rig* rig, const qkv_case* c, emulated_output* outputs, int32_t* n_outputs) {
  const int64_t rows = c->d + CACHED;
  test_tensor* a_scale = test_rig_scales(rig, "a_scale", c->m, c->k, 4);
  test_tensor* a = test_rig_activation(rig, "a", TDM_E4M3, c->m, c->k, c->k + 16, 1.0f, a_scale);
  test_tensor* w = test_rig_tensor(rig, "w", TDM_E4M3, 2, (int64_t[]){rows, c->k});
  test_tensor* w_scale = test_rig_tensor(rig, "w_scale", F, 2, (int64_t[]){(rows + 127) / 128, c->k / 128});
  test_tensor* q_weight = test_rig_tensor(rig, "q_weight", B, 1, &c->d);
  test_tensor* kv_weight = test_rig_tensor(rig, "kv_weight", B, 1, (int64_t[]){LATENT});
  test_tensor* table = test_rig_tensor(rig, "cos_sin", F, 2, (int64_t[]){POSITIONS, 64});
  test_tensor* positions = test_rig_tensor(rig, "positions", TDM_I32, 1, &c->m);
  test_tensor* slots = test_rig_tensor(rig, "slots", TDM_I32, 1, &c->m);
  test_view_set_normal(&w->view, &rig->random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig->random, 0.001f, 0.003f);
  test_view_set_normal(&q_weight->view, &rig->random, 1.0f);
  test_view_set_normal(&kv_weight->view, &rig->random, 1.0f);
  oracle_fill_uniform(&table->view, &rig->random, -1.0f, 1.0f);
  for (int64_t i = 0; i < c->m; i++) *(int32_t*)test_view_at(&positions->view, i) = (int32_t)((i * 31 + 9) % POSITIONS);
  tdm_mla_qkv_a_args args = {.size = sizeof args,
                             .a = a->view,
                             .a_scale = a_scale->view,
                             .w = w->view,
                             .w_scale = w_scale->view,
                             .q_weight = q_weight->view,
                             .kv_weight = kv_weight->view,
                             .positions = positions->view,
                             .cos_sin = table->view,
                             .slots = slots->view,
                             .pow2_scale = c->pow2,
                             .style = c->style};
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(a->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
    args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
  }
  int32_t n = 0;
  outputs[n++] = (emulated_output){make_cache(rig, c, slots), true};
  args.cache = outputs[0].tensor->view;
  if (c->plain) {
    outputs[n++] = (emulated_output){make_rows(rig, c, "out", F, c->d), true};
    args.out = outputs[n - 1].tensor->view;
  }
  if (c->quant) {
    outputs[n++] = (emulated_output){make_rows(rig, c, "out_q", TDM_E4M3, c->d), true};
    args.out_q = outputs[n - 1].tensor->view;
    outputs[n++] = (emulated_output){test_rig_scales(rig, "out_scale", c->m, c->d, 4), true};
    args.out_scale = outputs[n - 1].tensor->view;
    test_allow_scales(outputs[n - 1].tensor, c->live);
  }
  if (c->with_kv) {
    outputs[n++] = (emulated_output){make_rows(rig, c, "out_kv", c->cache, CACHED), true};
    args.out_kv = outputs[n - 1].tensor->view;
  }
  *n_outputs = n;
  return args;
}

static void run(const qkv_case* c) {
  test_rig rig;
  emulated_output outputs[5];
  int32_t n_outputs;
  test_rig_open(&rig);
  test_rig_label(&rig, "mla_qkv_a, %lld of %lld rows, %lld to %lld", (long long)c->live, (long long)c->m,
                 (long long)c->k, (long long)c->d);
  const tdm_mla_qkv_a_args args = make(&rig, c, outputs, &n_outputs);
  apart.rig = &rig;
  apart.qkv = make_rows(&rig, c, "qkv", B, c->d + CACHED);
  apart.c = c;
  tdm_op op = tdm_op_mla_qkv_a;
  op.ref = run_apart;
  emulated_compare(
      &rig,
      &(emulated_call){.op = &op, .args = &args, .outputs = outputs, .n_outputs = n_outputs, .kernel = c->behind});
  test_rig_close(&rig);
}

Test(mla_qkv_a, has_the_bits_of_the_kernels) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run(&cases[i]);
}
