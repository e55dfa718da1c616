#include <criterion/criterion.h>
#include <math.h>

#include "kernels/moe_gate/moe_gate.h"
#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* moe_route, router_gemm, and both in one launch (moe_gate). */

enum {
  BIAS = 1,
  LIST = 2,   /* of hit experts */
  BROKEN = 4, /* NaN in row 1 and infinity in row 2 of what is read, where there are such rows */
  TIED = 8,   /* many equal logits */
  BITS = 16   /* of what each row chose */
};

typedef struct route_case {
  int64_t m, live, experts;
  int64_t hidden; /* of router_gemm and moe_gate */
  const char* kernel;
  int32_t top_k, n_group, topk_group, n_shared;
  unsigned with;
} route_case;

#define ROUTE "tdm_moe_route_sm90"
#define HITS  "tdm_moe_route_hits_sm90"

static const route_case route_cases[] = {
    /* in registers */
    {1, 1, 256, 0, HITS, 8, 8, 4, 1, BIAS | LIST},
    {7, 5, 384, 0, HITS, 6, 1, 1, 1, BIAS | LIST | BROKEN | BITS},
    {37, 37, 256, 0, ROUTE, 8, 1, 1, 0, BROKEN | BITS},
    {9, 9, 384, 0, HITS, 32, 12, 5, 35, BIAS | LIST | BITS},
    {21, 19, 256, 0, HITS, 8, 8, 4, 1, LIST | TIED},
    {6, 0, 256, 0, HITS, 8, 8, 4, 1, BIAS | LIST | BITS},
    /* in shared memory */
    {3, 3, 8, 0, HITS, 3, 4, 2, 1, BIAS | LIST | BROKEN},
    {17, 16, 7, 0, ROUTE, 2, 7, 3, 33, BIAS | BITS},
    {5, 5, 1, 0, HITS, 1, 1, 1, 0, LIST},
    {40, 33, 160, 0, HITS, 6, 8, 3, 2, BIAS | LIST | BROKEN | BITS},
    {19, 19, 160, 0, HITS, 6, 8, 3, 2, LIST | TIED},
    {4, 4, 1020, 0, HITS, 32, 15, 2, 3, BIAS | LIST},
};

static const route_case router_cases[] = {
    {1, 1, 256, 1024, .kernel = "router_gemm_t8"},
    {5, 0, 64, 128, .kernel = "router_gemm_t8"},
    {16, 13, 384, 512, .kernel = "router_gemm_t16", .with = BROKEN},
    {17, 17, 200, 72, .kernel = "router_gemm_t24"},
    {32, 27, 130, 2048, .kernel = "router_gemm_t32", .with = BROKEN},
    {37, 34, 256, 1536, .kernel = "router_gemm_t64"},
    {130, 129, 200, 1024, .kernel = "router_gemm_t128", .with = BROKEN},
};

static const route_case gate_cases[] = {
    {1, 1, 256, 1024, "moe_route_hits", 8, 8, 4, 1, BIAS | LIST},
    {7, 5, 384, 960, "moe_route_hits", 6, 1, 1, 1, BIAS | LIST | BROKEN | BITS},
    {8, 0, 256, 512, "moe_route_hits", 8, 8, 4, 2, BIAS | LIST},
    {16, 16, 256, 64, "moe_gate_route", 8, 1, 1, 0, BITS},
    {17, 17, 384, 128, "moe_route_hits", 32, 12, 5, 35, BIAS | LIST | BROKEN | BITS},
    {32, 27, 256, 2048, "moe_route_hits", 8, 8, 4, 1, BIAS | LIST},
    {64, 50, 256, 1536, "moe_route_hits", 8, 8, 4, 1, BIAS | LIST | BROKEN},
    {3, 2, 256, 2048, "moe_gate_route", 8, 8, 4, 1, BIAS | BITS},
    {64, 49, 384, 1536, "moe_gate_route", 8, 1, 1, 1, BIAS | BITS | BROKEN},
    {128, 125, 256, 1024, "moe_gate_route", 8, 8, 4, 1, BIAS | BITS},
    {128, 113, 384, 768, "moe_route_hits", 8, 1, 1, 1, BIAS | LIST | BITS},
};

enum { LOGITS, IDS, WEIGHTS, ALPHA, HITS_LIST, CHOSEN, OUTPUTS };

static void begin(test_rig* rig, const char* op, const route_case* c) {
  test_rig_open(rig);
  test_rig_label(rig, "%s %lld of %lld rows, %lld experts, hidden %lld, top %d of %d/%d", op, (long long)c->live,
                 (long long)c->m, (long long)c->experts, (long long)c->hidden, c->top_k, c->topk_group, c->n_group);
}

static tdm_view live_count(test_rig* rig, const route_case* c) {
  return c->live < c->m ? test_rig_count(rig, "n_tokens", (int32_t)c->live)->view : (tdm_view){0};
}

static test_tensor* make_input(test_rig* rig, const route_case* c, const char* name, tdm_dtype dtype, int64_t columns,
                               float deviation) {
  test_tensor* tensor = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 8, 1});
  test_view_set_normal(&tensor->view, &rig->random, deviation);
  for (int64_t i = 0; (c->with & TIED) && i < test_view_count(&tensor->view); i++)
    oracle_set(&tensor->view, i, rintf(*(const float*)test_view_at(&tensor->view, i)));
  if (c->with & BROKEN) oracle_set(&tensor->view, columns + 5 % columns, NAN);
  if (c->with & BROKEN && c->m > 2) oracle_set(&tensor->view, 2 * columns + 3, INFINITY);
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(tensor->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
  }
  return tensor;
}

/* Rows that are live may be written. */
static test_tensor* make_output(test_rig* rig, const route_case* c, const char* name, tdm_dtype dtype,
                                int64_t columns) {
  test_tensor* tensor = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 4, 1});
  if (c->live > 0) {
    const tdm_view live = tdm_view_slice(tensor->view, 0, 0, c->live);
    test_tensor_allow(tensor, &live);
  }
  return tensor;
}

/* Those of moe_route; a list of hits, whose rest is not written, where there is one. */
static void make_outputs(test_rig* rig, const route_case* c, emulated_output* outputs, bool exact) {
  const int64_t wide = c->experts + c->n_shared;
  outputs[IDS] = (emulated_output){make_output(rig, c, "ids", TDM_I32, c->top_k), true};
  outputs[WEIGHTS] = (emulated_output){make_output(rig, c, "weights", TDM_F32, c->top_k), exact};
  outputs[ALPHA] = (emulated_output){make_output(rig, c, "alpha", TDM_F32, wide), exact};
  if (c->with & BITS)
    outputs[CHOSEN] = (emulated_output){make_output(rig, c, "chosen", TDM_I32, (wide + 31) / 32), true};
  if (!(c->with & LIST)) return;
  outputs[HITS_LIST].tensor = test_rig_tensor(rig, "hits", TDM_I32, 1, (int64_t[]){1 + wide});
  test_tensor_allow(outputs[HITS_LIST].tensor, &outputs[HITS_LIST].tensor->view);
}

static tdm_view view_of(const emulated_output* output) {
  return output->tensor ? output->tensor->view : (tdm_view){0};
}

static tdm_view make_bias(test_rig* rig, const route_case* c) {
  if (!(c->with & BIAS)) return (tdm_view){0};
  test_tensor* bias = test_rig_tensor(rig, "bias", TDM_F32, 1, &c->experts);
  test_view_set_normal(&bias->view, &rig->random, 0.5f);
  return bias->view;
}

static void compare(test_rig* rig, const route_case* c, const tdm_op* op, const void* args,
                    const emulated_output* outputs) {
  emulated_compare(
      rig, &(emulated_call){.op = op, .args = args, .outputs = outputs, .n_outputs = OUTPUTS, .kernel = c->kernel});
}

/* The same experts, sums and roundings as the reference: the same bits. */
static void run_route(const route_case* c) {
  test_rig rig;
  emulated_output outputs[OUTPUTS] = {{NULL, false}};
  begin(&rig, "moe_route", c);
  const test_tensor* logits = make_input(&rig, c, "logits", TDM_F32, c->experts, 2.0f);
  make_outputs(&rig, c, outputs, true);
  const tdm_moe_route_args args = {.size = sizeof args,
                                   .n_tokens = live_count(&rig, c),
                                   .logits = logits->view,
                                   .bias = make_bias(&rig, c),
                                   .ids = view_of(&outputs[IDS]),
                                   .weights = view_of(&outputs[WEIGHTS]),
                                   .alpha = view_of(&outputs[ALPHA]),
                                   .hits = view_of(&outputs[HITS_LIST]),
                                   .chosen = view_of(&outputs[CHOSEN]),
                                   .top_k = c->top_k,
                                   .n_group = c->n_group,
                                   .topk_group = c->topk_group,
                                   .n_shared = c->n_shared,
                                   .norm_topk_prob = c->top_k > 1,
                                   .routed_scaling_factor = 2.5f};
  compare(&rig, c, &tdm_op_moe_route, &args, outputs);
  test_rig_close(&rig);
}

static void run_router(const route_case* c) {
  test_rig rig;
  emulated_output outputs[OUTPUTS] = {{NULL, false}};
  begin(&rig, "router_gemm", c);
  const test_tensor* x = make_input(&rig, c, "x", TDM_BF16, c->hidden, 1.0f);
  test_tensor* w = test_rig_tensor(&rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  test_view_set_normal(&w->view, &rig.random, 2.0f / sqrtf((float)c->hidden));
  outputs[LOGITS] = (emulated_output){make_output(&rig, c, "logits", TDM_F32, c->experts), false};
  const tdm_router_gemm_args args = {.size = sizeof args,
                                     .n_tokens = live_count(&rig, c),
                                     .x = x->view,
                                     .w = w->view,
                                     .logits = outputs[LOGITS].tensor->view};
  compare(&rig, c, &tdm_op_router_gemm, &args, outputs);
  test_rig_close(&rig);
}

/* The bits of moe_route on the logits that the kernel left. */
static void expect_routed(test_rig* rig, const route_case* c, const tdm_moe_gate_args* args,
                          const emulated_output* outputs) {
  emulated_output want[OUTPUTS] = {{NULL, false}};
  tdm_moe_route_args route = tdm_moe_gate_route(args);
  make_outputs(rig, c, want, true);
  route.ids = view_of(&want[IDS]);
  route.weights = view_of(&want[WEIGHTS]);
  route.alpha = view_of(&want[ALPHA]);
  route.hits = view_of(&want[HITS_LIST]);
  route.chosen = view_of(&want[CHOSEN]);
  cr_assert_eq(test_rig_run_direct(rig, &tdm_op_moe_route, &route), TDM_OK, "%s", tdm_last_error()->message);
  for (int i = IDS; i < OUTPUTS; i++)
    if (want[i].tensor) oracle_expect_same_bits(rig->label, &outputs[i].tensor->view, &want[i].tensor->view);
}

/* Against the reference, whose logits are a little different. */
static void run_gate(const route_case* c) {
  test_rig rig;
  emulated_output outputs[OUTPUTS] = {{NULL, false}};
  begin(&rig, "moe_gate", c);
  const test_tensor* x = make_input(&rig, c, "x", TDM_BF16, c->hidden, 1.0f);
  test_tensor* w = test_rig_tensor(&rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  test_view_set_normal(&w->view, &rig.random, 2.0f / sqrtf((float)c->hidden));
  outputs[LOGITS] = (emulated_output){make_output(&rig, c, "logits", TDM_F32, c->experts), false};
  make_outputs(&rig, c, outputs, false);
  const tdm_moe_gate_args args = {.size = sizeof args,
                                  .n_tokens = live_count(&rig, c),
                                  .x = x->view,
                                  .w = w->view,
                                  .bias = make_bias(&rig, c),
                                  .logits = outputs[LOGITS].tensor->view,
                                  .ids = view_of(&outputs[IDS]),
                                  .weights = view_of(&outputs[WEIGHTS]),
                                  .alpha = view_of(&outputs[ALPHA]),
                                  .hits = view_of(&outputs[HITS_LIST]),
                                  .chosen = view_of(&outputs[CHOSEN]),
                                  .top_k = c->top_k,
                                  .n_group = c->n_group,
                                  .topk_group = c->topk_group,
                                  .n_shared = c->n_shared,
                                  .norm_topk_prob = true,
                                  .routed_scaling_factor = 2.5f};
  compare(&rig, c, &tdm_op_moe_gate, &args, outputs);
  expect_routed(&rig, c, &args, outputs);
  test_rig_close(&rig);
}

Test(moe_route, has_the_bits_of_the_reference) {
  for (size_t i = 0; i < sizeof route_cases / sizeof *route_cases; i++) run_route(&route_cases[i]);
}

Test(router_gemm, all_tiles) {
  for (size_t i = 0; i < sizeof router_cases / sizeof *router_cases; i++) run_router(&router_cases[i]);
}

Test(moe_gate, all_tiles) {
  for (size_t i = 0; i < sizeof gate_cases / sizeof *gate_cases; i++) run_gate(&gate_cases[i]);
}
