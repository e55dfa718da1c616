/* moe_gate: the bits of router_gemm and moe_route on the same GPU, whole tensors with what must stay as it was; logits
 * within 1e-10 of the reference, and of these logits the reference's choice, weights 1e-12. The workspace is used again
 * and again and left as zeros. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { OUTPUTS = 6 };

typedef struct gate_case {
  int64_t rows, live; /* live -1: no count */
  int64_t experts, hidden;
  int32_t top_k, n_group, topk_group, n_shared, sms; /* sms 0: all */
  bool bias, hits, broken;
} gate_case;

static const size_t outputs[OUTPUTS] = {offsetof(tdm_moe_gate_args, logits),  offsetof(tdm_moe_gate_args, ids),
                                        offsetof(tdm_moe_gate_args, weights), offsetof(tdm_moe_gate_args, alpha),
                                        offsetof(tdm_moe_gate_args, hits),    offsetof(tdm_moe_gate_args, chosen)};

static tdm_view* view_at(tdm_moe_gate_args* args, size_t offset) {
  return (tdm_view*)(void*)((char*)args + offset);
}

static void make_outputs(gpu_rig* rig, const gate_case* c, gpu_tensor** out) {
  const int64_t wide = c->experts + c->n_shared;
  out[0] = gpu_make_strided(rig, "logits", TDM_F32, 2, (int64_t[]){c->rows, c->experts}, (int64_t[]){wide + 3, 1});
  out[1] = gpu_make(rig, "ids", TDM_I32, 2, (int64_t[]){c->rows, c->top_k});
  out[2] = gpu_make(rig, "weights", TDM_F32, 2, (int64_t[]){c->rows, c->top_k});
  out[3] = gpu_make_strided(rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, wide}, (int64_t[]){wide + 7, 1});
  out[4] = c->hits ? gpu_make(rig, "hits", TDM_I32, 1, (int64_t[]){1 + wide}) : NULL;
  out[5] = gpu_make_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){c->rows, (wide + 31) / 32},
                            (int64_t[]){(wide + 31) / 32 + 1, 1});
}

static tdm_router_gemm_args router_of(const tdm_moe_gate_args* args) {
  return (tdm_router_gemm_args){.size = sizeof(tdm_router_gemm_args),
                                .n_tokens = args->n_tokens,
                                .x = args->x,
                                .w = args->w,
                                .logits = args->logits};
}

static tdm_moe_route_args route_of(const tdm_moe_gate_args* args) {
  return (tdm_moe_route_args){.size = sizeof(tdm_moe_route_args),
                              .n_tokens = args->n_tokens,
                              .logits = args->logits,
                              .bias = args->bias,
                              .ids = args->ids,
                              .weights = args->weights,
                              .alpha = args->alpha,
                              .hits = args->hits,
                              .chosen = args->chosen,
                              .top_k = args->top_k,
                              .n_group = args->n_group,
                              .topk_group = args->topk_group,
                              .n_shared = args->n_shared,
                              .norm_topk_prob = args->norm_topk_prob,
                              .routed_scaling_factor = args->routed_scaling_factor};
}

static void slice_router(void* void_args, int64_t first, int64_t count) {
  tdm_router_gemm_args* args = void_args;
  args->w = tdm_view_slice(args->w, 0, first, count);
  args->logits = tdm_view_slice(args->logits, 1, first, count);
}

static void run(gpu_rig* rig, const gate_case* c) {
  gpu_begin(rig, "moe_gate %lld x %lld x %lld live %lld top %d of %d/%d groups shared %d sms %d bias %d hits %d %s",
            (long long)c->rows, (long long)c->experts, (long long)c->hidden, (long long)c->live, c->top_k,
            c->topk_group, c->n_group, c->n_shared, c->sms, c->bias, c->hits, c->broken ? "broken" : "");
  gpu_tensor* x = gpu_make(rig, "x", TDM_BF16, 2, (int64_t[]){c->rows, c->hidden});
  gpu_tensor* w = gpu_make(rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  gpu_tensor* bias = c->bias ? gpu_make(rig, "bias", TDM_F32, 1, &c->experts) : NULL;
  gpu_tensor* count = c->live >= 0 ? gpu_make_count(rig, "n_tokens", (int32_t)c->live) : NULL;
  gpu_tensor *want[OUTPUTS], *out[OUTPUTS];
  make_outputs(rig, c, want);
  make_outputs(rig, c, out);
  gpu_fill_normal(rig, x, 1.0f);
  gpu_fill_normal(rig, w, 2.0f / sqrtf((float)c->hidden));
  if (bias) gpu_fill_normal(rig, bias, 0.3f);
  uint16_t* values = (uint16_t*)(void*)(x->host + GPU_GUARD_BYTES);
  if (c->broken) values[(c->rows > 1 ? c->hidden : 0) + 5] = 0x7fc0; /* NaN */
  if (c->broken && c->rows > 2) values[2 * c->hidden] = 0x7f80;      /* infinity */
  tdm_moe_gate_args args = {.size = sizeof args,
                            .x = x->view,
                            .w = w->view,
                            .top_k = c->top_k,
                            .n_group = c->n_group,
                            .topk_group = c->topk_group,
                            .n_shared = c->n_shared,
                            .norm_topk_prob = true,
                            .routed_scaling_factor = 2.5f};
  if (bias) args.bias = bias->view;
  if (count) args.n_tokens = count->view;
  if (c->rows % 2 == 0) args.prefetch = w->view;
  gpu_upload(rig);

  tdm_moe_gate_args two = args;
  for (int i = 0; i < OUTPUTS; i++) {
    if (!out[i]) continue;
    *view_at(&two, outputs[i]) = want[i]->view;
    *view_at(&args, outputs[i]) = out[i]->view;
  }
  tdm_router_gemm_args router = router_of(&two);
  tdm_moe_route_args route = route_of(&two);
  tdm_moe_gate_args gate = args;
  if (tdm_op_moe_gate.check(&gate) != TDM_OK) gpu_fail(rig, "check: %s", tdm_last_error()->message);
  if (rig->ok && gpu_reference_sliced(rig, &tdm_op_router_gemm, &router, slice_router, c->experts, 8)) {
    tdm_router_gemm_args device_router = router;
    tdm_moe_route_args device_route = route;
    gpu_to_device(rig, &tdm_op_router_gemm, &device_router);
    gpu_to_device(rig, &tdm_op_moe_route, &device_route);
    gpu_to_device(rig, &tdm_op_moe_gate, &gate);
    (void)(gpu_run(rig, &tdm_op_router_gemm, &device_router, rig->sms) &&
           gpu_run(rig, &tdm_op_moe_route, &device_route, rig->sms));
    for (int i = 0; i < OUTPUTS; i++)
      if (want[i]) gpu_download_one(want[i]);
    gpu_expect_close(rig, want[0], 1e-10);
    gpu_expect_same_as(rig, &tdm_op_moe_gate, &gate, c->sms ? c->sms : rig->sms, out, want, OUTPUTS);
    memcpy(want[0]->host, want[0]->got, want[0]->bytes);
    if (rig->ok && gpu_reference(rig, &tdm_op_moe_route, &route)) {
      gpu_expect_same_bits(rig, want[1]);
      gpu_expect_close(rig, want[2], 1e-12);
      gpu_expect_close(rig, want[3], 1e-12);
      if (want[4]) gpu_expect_same_bits(rig, want[4]);
      gpu_expect_same_bits(rig, want[5]);
    }
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_moe_gate(gpu_rig* rig, bool quick) {
  static const int32_t sms[] = {0, 5, 40};
  for (int i = 0; i < GPU_ROW_COUNTS && gpu_row_counts[i] <= (quick ? 17 : 128); i++) {
    const int64_t m = gpu_row_counts[i];
    for (int j = 0; j < 3 && !(quick && j != i % 3); j++) {
      run(rig, &(gate_case){m, -1, 256, 1024, 8, 8, 4, 1, sms[j], true, j != 1 || i % 2 == 0, i % 2 == j % 2});
      run(rig, &(gate_case){m, m - m / 3, 384, 512, 6, 1, 1, 1, sms[j], j != 2, i % 2 == 1 || j == 0, i % 3 == 0});
    }
    if (quick) continue;
    run(rig, &(gate_case){m, -1, 256, 7168, 8, 8, 4, 1, 0, true, true, false}); /* DeepSeek-V3 */
    run(rig, &(gate_case){m, -1, 384, 7168, 8, 1, 1, 1, 0, true, true, false});
  }
  /* A live count in every token tile and around the groups of 16, also none; one segment; more to choose. */
  static const int64_t lives[] = {0, 1, 4, 5, 6, 15, 16, 17, 20, 21, 33, 48, 63, 64, 65, 127, 128};
  for (size_t i = 0; i < sizeof lives / sizeof *lives && !quick; i++) {
    run(rig, &(gate_case){128, lives[i], 256, 7168, 8, 8, 4, 1, sms[i % 3], true, true, i % 2 == 0});
    run(rig, &(gate_case){128, lives[i], 384, 1024, 8, 1, 1, 0, 0, true, true, i % 2 == 1});
  }
  /* Several token tiles. */
  static const int64_t many[] = {129, 200, 256, 257, 512};
  for (size_t i = 0; i < sizeof many / sizeof *many && !quick; i++) {
    run(rig, &(gate_case){many[i], -1, 256, 7168, 8, 8, 4, 1, sms[i % 3], true, i % 2 == 0, false});
    run(rig, &(gate_case){many[i], many[i] - 60, 384, 1024, 8, 1, 1, 1, 0, true, false, true});
  }
  run(rig, &(gate_case){8, 0, 256, 512, 8, 1, 1, 2, 0, false, true, false});
  run(rig, &(gate_case){24, 23, 256, 64, 8, 1, 1, 0, 0, false, true, true});
  run(rig, &(gate_case){17, 17, 384, 128, 32, 12, 5, 3, 0, true, true, true});
}
