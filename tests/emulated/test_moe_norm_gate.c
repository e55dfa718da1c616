#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_norm_gate/moe_norm_gate.h"
#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* moe_norm_gate: the bits of rmsnorm's, router_gemm's and moe_route's kernels. */

enum { DELTA = 1, RESIDUAL = 2, WEIGHT = 4, QUANT = 8, POW2 = 16, BIAS = 32, BITS = 64, BROKEN = 128 };

typedef struct norm_gate_case {
  int64_t m, live;
  int64_t hidden, experts;
  tdm_dtype x, delta, residual;
  int32_t top_k, n_group, topk_group, n_shared;
  uint32_t with;
} norm_gate_case;

static const norm_gate_case cases[] = {
    {1, 1, 7168, 256, TDM_BF16, TDM_BF16, TDM_BF16, 8, 8, 4, 1, DELTA | RESIDUAL | WEIGHT | QUANT | BIAS | BITS},
    {2, 2, 1024, 256, TDM_BF16, TDM_BF16, TDM_BF16, 8, 8, 4, 1, DELTA | RESIDUAL | WEIGHT | QUANT | BIAS | BITS},
    {3, 2, 128, 384, TDM_F32, TDM_BF16, TDM_F32, 6, 1, 1, 0, DELTA | RESIDUAL | WEIGHT | QUANT | POW2 | BROKEN},
    {4, 4, 2304, 256, TDM_BF16, TDM_F32, TDM_BF16, 8, 1, 1, 2, DELTA | QUANT | BIAS | BITS},
    {5, 0, 512, 256, TDM_BF16, TDM_BF16, TDM_BF16, 8, 8, 4, 1, RESIDUAL | WEIGHT | QUANT | BITS},
    {7, 7, 896, 384, TDM_F32, TDM_BF16, TDM_BF16, 32, 12, 5, 35, RESIDUAL | WEIGHT | BIAS | BITS | BROKEN},
    {8, 7, 8192, 384, TDM_BF16, TDM_BF16, TDM_BF16, 8, 1, 1, 1, DELTA | RESIDUAL | WEIGHT | QUANT | BIAS},
    {8, 8, 1152, 256, TDM_BF16, TDM_BF16, TDM_BF16, 8, 8, 4, 1, WEIGHT | QUANT | BITS},
};

enum { RESIDUAL_OUT, OUT, OUT_Q, OUT_SCALE, LOGITS, IDS, WEIGHTS, ALPHA, CHOSEN, OUTPUTS };

static tdm_view view_of(const emulated_output* output) {
  return output->tensor ? output->tensor->view : (tdm_view){0};
}

static tdm_view make_input(test_rig* rig, const norm_gate_case* c, const char* name, tdm_dtype dtype) {
  test_tensor* tensor =
      test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 8, 1});
  test_view_set_normal(&tensor->view, &rig->random, 1.0f);
  /* In one of two that are added: which NaN their sum is, is up to the compiler here. */
  if ((c->with & BROKEN) && strcmp(name, "x") == 0) oracle_set(&tensor->view, c->hidden + 5, NAN);
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(tensor->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
  }
  return tensor->view;
}

static emulated_output make_output(test_rig* rig, const norm_gate_case* c, const char* name, tdm_dtype dtype,
                                   int64_t columns) {
  test_tensor* tensor = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 8, 1});
  if (c->live > 0) {
    const tdm_view live = tdm_view_slice(tensor->view, 0, 0, c->live);
    test_tensor_allow(tensor, &live);
  }
  return (emulated_output){tensor, true};
}

static tdm_moe_norm_gate_args make(test_rig* rig, const norm_gate_case* c, emulated_output* outputs) {
  const int64_t wide = c->experts + c->n_shared;
  test_tensor* w = test_rig_tensor(rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  test_view_set_normal(&w->view, &rig->random, 2.0f / sqrtf((float)c->hidden));
  tdm_moe_norm_gate_args args = {.size = sizeof args,
                                 .x = make_input(rig, c, "x", c->x),
                                 .w = w->view,
                                 .top_k = c->top_k,
                                 .n_group = c->n_group,
                                 .topk_group = c->topk_group,
                                 .n_shared = c->n_shared,
                                 .norm_topk_prob = true,
                                 .routed_scaling_factor = 2.5f,
                                 .pow2_scale = (c->with & POW2) != 0};
  if (c->live < c->m) args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
  if (c->with & DELTA) args.delta = make_input(rig, c, "delta", c->delta);
  if (c->with & WEIGHT) {
    test_tensor* weight = test_rig_tensor(rig, "weight", c->residual, 1, &c->hidden);
    test_view_set_normal(&weight->view, &rig->random, 1.0f);
    args.weight = weight->view;
  }
  if (c->with & BIAS) {
    test_tensor* bias = test_rig_tensor(rig, "bias", TDM_F32, 1, &c->experts);
    test_view_set_normal(&bias->view, &rig->random, 0.5f);
    args.bias = bias->view;
  }
  if (c->with & RESIDUAL) outputs[RESIDUAL_OUT] = make_output(rig, c, "residual_out", c->residual, c->hidden);
  outputs[OUT] = make_output(rig, c, "out", TDM_BF16, c->hidden);
  if (c->with & QUANT) {
    outputs[OUT_Q] = make_output(rig, c, "out_q", TDM_E4M3, c->hidden);
    outputs[OUT_SCALE] = (emulated_output){test_rig_scales(rig, "out_scale", c->m, c->hidden, 4), true};
    test_allow_scales(outputs[OUT_SCALE].tensor, c->live);
  }
  outputs[LOGITS] = make_output(rig, c, "logits", TDM_F32, c->experts);
  outputs[IDS] = make_output(rig, c, "ids", TDM_I32, c->top_k);
  outputs[WEIGHTS] = make_output(rig, c, "weights", TDM_F32, c->top_k);
  outputs[ALPHA] = make_output(rig, c, "alpha", TDM_F32, wide);
  if (c->with & BITS) outputs[CHOSEN] = make_output(rig, c, "chosen", TDM_I32, (wide + 31) / 32);
  args.residual_out = view_of(&outputs[RESIDUAL_OUT]);
  args.out = view_of(&outputs[OUT]);
  args.out_q = view_of(&outputs[OUT_Q]);
  args.out_scale = view_of(&outputs[OUT_SCALE]);
  args.logits = view_of(&outputs[LOGITS]);
  args.ids = view_of(&outputs[IDS]);
  args.weights = view_of(&outputs[WEIGHTS]);
  args.alpha = view_of(&outputs[ALPHA]);
  args.chosen = view_of(&outputs[CHOSEN]);
  return args;
}

/* In the reference's place: the ops' kernels. */
static test_rig* apart_rig;

static tdm_status run_apart(const void* args, const tdm_plan* plan, void* scratch) {
  const tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(args);
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(args);
  const tdm_router_gemm_args router = tdm_moe_gate_router(&gate);
  const tdm_moe_route_args route = tdm_moe_gate_route(&gate);
  (void)plan;
  (void)scratch;
  emulated_run(apart_rig, &(emulated_call){.op = &tdm_op_rmsnorm, .args = &norm, .kernel = "rmsnorm"});
  emulated_run(apart_rig, &(emulated_call){.op = &tdm_op_router_gemm, .args = &router, .kernel = "router_gemm_t8"});
  emulated_run(apart_rig, &(emulated_call){.op = &tdm_op_moe_route, .args = &route, .kernel = "moe_route"});
  return TDM_OK;
}

static void run(const norm_gate_case* c) {
  test_rig rig;
  emulated_output outputs[OUTPUTS] = {{NULL, false}};
  test_rig_open(&rig);
  test_rig_label(&rig, "moe_norm_gate, %lld of %lld rows of %lld, %lld experts, top %d of %d/%d", (long long)c->live,
                 (long long)c->m, (long long)c->hidden, (long long)c->experts, c->top_k, c->topk_group, c->n_group);
  const tdm_moe_norm_gate_args args = make(&rig, c, outputs);
  tdm_op op = tdm_op_moe_norm_gate;
  op.ref = run_apart;
  apart_rig = &rig;
  emulated_compare(
      &rig,
      &(emulated_call){.op = &op, .args = &args, .outputs = outputs, .n_outputs = OUTPUTS, .kernel = "moe_gate_route"});
  test_rig_close(&rig);
}

Test(moe_norm_gate, has_the_bits_of_the_kernels) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run(&cases[i]);
}
