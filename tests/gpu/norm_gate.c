/* moe_norm_gate: the bytes of rmsnorm and moe_gate on the same GPU (which norm.c and gate.c hold against the
 * references), whole tensors with what must stay as it was. The workspace is used again and again and left as zeros. */

#include <math.h>

#include "kernels/moe_norm_gate/moe_norm_gate.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { RESIDUAL_OUT, OUT, OUT_Q, OUT_SCALE, LOGITS, IDS, WEIGHTS, ALPHA, CHOSEN, OUTPUTS };

typedef struct norm_gate_case {
  int64_t rows, live; /* live -1: no count */
  int64_t experts, hidden;
  int32_t top_k, n_group, topk_group, n_shared, sms; /* sms 0: all */
  tdm_dtype x, residual;                             /* residual TDM_I32: none, and no delta */
  bool quant, broken;
} norm_gate_case;

static const size_t outputs[OUTPUTS] = {
    offsetof(tdm_moe_norm_gate_args, residual_out), offsetof(tdm_moe_norm_gate_args, out),
    offsetof(tdm_moe_norm_gate_args, out_q),        offsetof(tdm_moe_norm_gate_args, out_scale),
    offsetof(tdm_moe_norm_gate_args, logits),       offsetof(tdm_moe_norm_gate_args, ids),
    offsetof(tdm_moe_norm_gate_args, weights),      offsetof(tdm_moe_norm_gate_args, alpha),
    offsetof(tdm_moe_norm_gate_args, chosen)};

static tdm_view* view_at(tdm_moe_norm_gate_args* args, size_t offset) {
  return (tdm_view*)(void*)((char*)args + offset);
}

static void make_outputs(gpu_rig* rig, const norm_gate_case* c, tdm_moe_norm_gate_args* args, gpu_tensor** out) {
  const int64_t wide = c->experts + c->n_shared, words = (wide + 31) / 32;
  const int64_t row[] = {c->rows, c->hidden}, apart[] = {c->hidden + 16, 1};
  for (int i = 0; i < OUTPUTS; i++) out[i] = NULL;
  if (c->residual != TDM_I32) out[RESIDUAL_OUT] = gpu_make_strided(rig, "residual_out", c->residual, 2, row, apart);
  out[OUT] = gpu_make_strided(rig, "out", TDM_BF16, 2, row, apart);
  if (c->quant) {
    out[OUT_Q] = gpu_make_strided(rig, "out_q", TDM_E4M3, 2, row, apart);
    out[OUT_SCALE] = gpu_make_scales(rig, "out_scale", c->rows, c->hidden);
  }
  out[LOGITS] = gpu_make_strided(rig, "logits", TDM_F32, 2, (int64_t[]){c->rows, c->experts}, (int64_t[]){wide + 3, 1});
  out[IDS] = gpu_make(rig, "ids", TDM_I32, 2, (int64_t[]){c->rows, c->top_k});
  out[WEIGHTS] = gpu_make(rig, "weights", TDM_F32, 2, (int64_t[]){c->rows, c->top_k});
  out[ALPHA] = gpu_make_strided(rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, wide}, (int64_t[]){wide + 7, 1});
  out[CHOSEN] = gpu_make_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){c->rows, words}, (int64_t[]){words + 1, 1});
  for (int i = 0; i < OUTPUTS; i++)
    if (out[i]) *view_at(args, outputs[i]) = out[i]->view;
}

static void run(gpu_rig* rig, const norm_gate_case* c) {
  gpu_begin(rig,
            "moe_norm_gate %lld x %lld, %lld experts live %lld top %d of %d/%d groups shared %d sms %d dtypes %d %d "
            "quant %d %s",
            (long long)c->rows, (long long)c->hidden, (long long)c->experts, (long long)c->live, c->top_k,
            c->topk_group, c->n_group, c->n_shared, c->sms, (int)c->x, (int)c->residual, c->quant,
            c->broken ? "broken" : "");
  const int64_t row[] = {c->rows, c->hidden};
  const bool adds = c->residual != TDM_I32;
  gpu_tensor* x = gpu_make_strided(rig, "x", c->x, 2, row, (int64_t[]){c->hidden + 8, 1});
  gpu_tensor* delta = adds ? gpu_make(rig, "delta", TDM_BF16, 2, row) : NULL;
  gpu_tensor* weight = gpu_make(rig, "weight", TDM_BF16, 1, &c->hidden);
  gpu_tensor* w = gpu_make(rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  gpu_tensor* bias = gpu_make(rig, "bias", TDM_F32, 1, &c->experts);
  gpu_tensor* count = c->live >= 0 ? gpu_make_count(rig, "n_tokens", (int32_t)c->live) : NULL;
  gpu_fill_normal(rig, x, 1.0f);
  if (delta) gpu_fill_normal(rig, delta, 1.0f);
  gpu_fill_normal(rig, weight, 1.0f);
  gpu_fill_normal(rig, w, 2.0f / sqrtf((float)c->hidden));
  gpu_fill_normal(rig, bias, 0.3f);
  if (c->broken && delta)
    ((uint16_t*)(void*)(delta->host + GPU_GUARD_BYTES))[(c->rows > 1 ? c->hidden : 0) + 5] = 0x7fc0; /* NaN */
  tdm_moe_norm_gate_args args = {.size = sizeof args,
                                 .x = x->view,
                                 .weight = weight->view,
                                 .w = w->view,
                                 .bias = bias->view,
                                 .top_k = c->top_k,
                                 .n_group = c->n_group,
                                 .topk_group = c->topk_group,
                                 .n_shared = c->n_shared,
                                 .norm_topk_prob = true,
                                 .routed_scaling_factor = 2.5f,
                                 .pow2_scale = c->rows % 2 == 0};
  if (delta) args.delta = delta->view;
  if (c->rows % 2 == 1) args.prefetch[0] = w->view;
  if (c->rows % 4 == 3) args.prefetch[1] = tdm_view_slice(w->view, 1, 64, 128);
  if (count) args.n_tokens = count->view;
  tdm_moe_norm_gate_args two = args;
  gpu_tensor *want[OUTPUTS], *out[OUTPUTS];
  make_outputs(rig, c, &two, want);
  make_outputs(rig, c, &args, out);
  gpu_upload(rig);
  if (tdm_op_moe_norm_gate.check(&args) != TDM_OK || tdm_op_moe_norm_gate.check(&two) != TDM_OK)
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
  tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(&two);
  tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(&two);
  gpu_to_device(rig, &tdm_op_rmsnorm, &norm);
  gpu_to_device(rig, &tdm_op_moe_gate, &gate);
  gpu_to_device(rig, &tdm_op_moe_norm_gate, &args);
  if (rig->ok && gpu_run(rig, &tdm_op_rmsnorm, &norm, rig->sms) && gpu_run(rig, &tdm_op_moe_gate, &gate, rig->sms)) {
    for (int i = 0; i < OUTPUTS; i++)
      if (want[i]) gpu_download_one(want[i]);
    gpu_expect_same_as(rig, &tdm_op_moe_norm_gate, &args, c->sms ? c->sms : rig->sms, out, want, OUTPUTS);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_moe_norm_gate(gpu_rig* rig, bool quick) {
  static const int32_t sms[] = {0, 5, 40};
  for (int64_t m = 1; m <= 8; m += quick ? 3 : 1)
    for (int j = 0; j < 3 && !(quick && j != m % 3); j++) {
      const int32_t n = sms[j];
      const bool odd = (m + j) % 2 == 1;
      run(rig, &(norm_gate_case){m, -1, 256, 1024, 8, 8, 4, 1, n, TDM_BF16, TDM_BF16, true, odd});
      run(rig, &(norm_gate_case){m, m - m / 3, 384, 512, 6, 1, 1, 0, n, TDM_F32, odd ? TDM_F32 : TDM_I32, odd, !odd});
      if (quick) continue;
      run(rig, &(norm_gate_case){m, -1, 256, 7168, 8, 8, 4, 1, n, TDM_BF16, TDM_BF16, true, false}); /* DeepSeek-V3 */
      run(rig, &(norm_gate_case){m, m - 1, 384, 7168, 8, 1, 1, 1, n, TDM_BF16, TDM_BF16, true, odd});
      run(rig, &(norm_gate_case){m, m / 2, 256, 8192, 32, 8, 8, 3, n, TDM_BF16, TDM_F32, true, odd});
    }
  run(rig, &(norm_gate_case){8, 0, 256, 128, 8, 1, 1, 2, 0, TDM_BF16, TDM_BF16, true, false});
  run(rig, &(norm_gate_case){5, 5, 384, 896, 32, 12, 5, 35, 0, TDM_BF16, TDM_I32, true, false});
}
