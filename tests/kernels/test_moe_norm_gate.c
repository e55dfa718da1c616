#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_norm_gate/moe_norm_gate.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

/* rmsnorm, router_gemm and moe_route have oracles of their own; here are their bits. */

typedef struct norm_gate_case {
  int64_t m, live, hidden, experts; /* live -1: no count */
  int32_t top_k, n_group, topk_group, n_shared;
  tdm_dtype x, out;
  bool adds, weighs, quantises, broken;
} norm_gate_case;

static const norm_gate_case cases[] = {
    {1, -1, 128, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false},
    {2, -1, 1024, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false},
    {3, 2, 256, 384, 6, 1, 1, 0, TDM_F32, TDM_F32, false, false, false, true},
    {5, 0, 128, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false},
    {8, 7, 384, 384, 32, 12, 5, 35, TDM_BF16, TDM_F32, true, false, true, true},
};

enum { RESIDUAL_OUT, OUT, OUT_Q, OUT_SCALE, LOGITS, IDS, WEIGHTS, ALPHA, CHOSEN, OUTPUTS };

static const size_t members[OUTPUTS] = {
    offsetof(tdm_moe_norm_gate_args, residual_out), offsetof(tdm_moe_norm_gate_args, out),
    offsetof(tdm_moe_norm_gate_args, out_q),        offsetof(tdm_moe_norm_gate_args, out_scale),
    offsetof(tdm_moe_norm_gate_args, logits),       offsetof(tdm_moe_norm_gate_args, ids),
    offsetof(tdm_moe_norm_gate_args, weights),      offsetof(tdm_moe_norm_gate_args, alpha),
    offsetof(tdm_moe_norm_gate_args, chosen)};

static test_tensor* make_output(test_rig* rig, const norm_gate_case* c, const char* name, tdm_dtype dtype,
                                int64_t columns) {
  test_tensor* tensor = test_rig_strided(rig, name, dtype, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 8, 1});
  const int64_t live = c->live < 0 ? c->m : c->live;
  if (live > 0) {
    const tdm_view part = tdm_view_slice(tensor->view, 0, 0, live);
    test_tensor_allow(tensor, &part);
  }
  return tensor;
}

static void make_outputs(test_rig* rig, const norm_gate_case* c, tdm_moe_norm_gate_args* args, test_tensor** out) {
  const int64_t wide = c->experts + c->n_shared;
  memset(out, 0, OUTPUTS * sizeof *out);
  if (c->adds) out[RESIDUAL_OUT] = make_output(rig, c, "residual_out", c->x, c->hidden);
  out[OUT] = make_output(rig, c, "out", c->out, c->hidden);
  if (c->quantises) {
    out[OUT_Q] = make_output(rig, c, "out_q", TDM_E4M3, c->hidden);
    out[OUT_SCALE] = test_rig_scales(rig, "out_scale", c->m, c->hidden, 4);
    test_allow_scales(out[OUT_SCALE], c->live < 0 ? c->m : c->live);
  }
  out[LOGITS] = make_output(rig, c, "logits", TDM_F32, c->experts);
  out[IDS] = make_output(rig, c, "ids", TDM_I32, c->top_k);
  out[WEIGHTS] = make_output(rig, c, "weights", TDM_F32, c->top_k);
  out[ALPHA] = make_output(rig, c, "alpha", TDM_F32, wide);
  out[CHOSEN] = make_output(rig, c, "chosen", TDM_I32, (wide + 31) / 32);
  for (int i = 0; i < OUTPUTS; i++)
    *(tdm_view*)(void*)((char*)args + members[i]) = out[i] ? out[i]->view : (tdm_view){0};
}

static test_tensor* make_normal(test_rig* rig, const char* name, tdm_dtype dtype, int64_t rows, int64_t columns,
                                float deviation) {
  test_tensor* tensor = test_rig_tensor(rig, name, dtype, 2, (int64_t[]){rows, columns});
  test_view_set_normal(&tensor->view, &rig->random, deviation);
  return tensor;
}

static tdm_moe_norm_gate_args make(test_rig* rig, const norm_gate_case* c) {
  test_rig_label(rig, "moe_norm_gate %lld of %lld x %lld, %lld experts, top %d of %d/%d", (long long)c->live,
                 (long long)c->m, (long long)c->hidden, (long long)c->experts, c->top_k, c->topk_group, c->n_group);
  test_tensor* x = make_normal(rig, "x", c->x, c->m, c->hidden, 1.0f);
  if (c->broken) oracle_set(&x->view, c->hidden + 5, NAN);
  tdm_moe_norm_gate_args args = {
      .size = sizeof args,
      .x = x->view,
      .w = make_normal(rig, "w", TDM_BF16, c->experts, c->hidden, 2.0f / sqrtf((float)c->hidden))->view,
      .top_k = c->top_k,
      .n_group = c->n_group,
      .topk_group = c->topk_group,
      .n_shared = c->n_shared,
      .norm_topk_prob = true,
      .routed_scaling_factor = 2.5f,
      .eps = 1e-2f,
      .quant_eps = 2.0f, /* above some blocks' largest value */
      .pow2_scale = c->adds};
  if (c->adds) args.delta = make_normal(rig, "delta", TDM_BF16, c->m, c->hidden, 1.0f)->view;
  if (c->weighs) {
    test_tensor* weight = test_rig_tensor(rig, "weight", TDM_BF16, 1, &c->hidden);
    test_tensor* bias = test_rig_tensor(rig, "bias", TDM_F32, 1, &c->experts);
    test_view_set_normal(&weight->view, &rig->random, 1.0f);
    test_view_set_normal(&bias->view, &rig->random, 0.5f);
    args.weight = weight->view;
    args.bias = bias->view;
  }
  if (c->live >= 0) args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
  return args;
}

static tdm_moe_norm_gate_args open_case(test_rig* rig, const norm_gate_case* c, test_tensor** out) {
  test_rig_open(rig);
  tdm_moe_norm_gate_args args = make(rig, c);
  make_outputs(rig, c, &args, out);
  return args;
}

Test(moe_norm_gate, has_the_bits_of_the_ops) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_rig rig;
    test_tensor *out[OUTPUTS], *want[OUTPUTS];
    tdm_moe_norm_gate_args args = open_case(&rig, &cases[i], want);
    /* Written out once more, lest what the op leaves out be left out here too. */
    const tdm_rmsnorm_args norm = {.size = sizeof norm,
                                   .n_tokens = args.n_tokens,
                                   .x = args.x,
                                   .delta = args.delta,
                                   .residual_out = args.residual_out,
                                   .weight = args.weight,
                                   .out = args.out,
                                   .out_q = args.out_q,
                                   .out_scale = args.out_scale,
                                   .eps = args.eps,
                                   .quant_eps = args.quant_eps,
                                   .pow2_scale = args.pow2_scale};
    const tdm_router_gemm_args router = {
        .size = sizeof router, .n_tokens = args.n_tokens, .x = args.out, .w = args.w, .logits = args.logits};
    const tdm_moe_route_args route = {.size = sizeof route,
                                      .n_tokens = args.n_tokens,
                                      .logits = args.logits,
                                      .bias = args.bias,
                                      .ids = args.ids,
                                      .weights = args.weights,
                                      .alpha = args.alpha,
                                      .chosen = args.chosen,
                                      .top_k = args.top_k,
                                      .n_group = args.n_group,
                                      .topk_group = args.topk_group,
                                      .n_shared = args.n_shared,
                                      .norm_topk_prob = args.norm_topk_prob,
                                      .routed_scaling_factor = args.routed_scaling_factor};
    cr_assert_eq(TEST_RUN(&rig, rmsnorm, &norm), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&rig, router_gemm, &router), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&rig, moe_route, &route), TDM_OK, "%s", tdm_last_error()->message);
    make_outputs(&rig, &cases[i], &args, out);
    cr_assert_eq(TEST_RUN(&rig, moe_norm_gate, &args), TDM_OK, "%s", tdm_last_error()->message);
    for (int output = 0; output < OUTPUTS; output++)
      if (want[output]) oracle_expect_same_bits(rig.label, &out[output]->view, &want[output]->view);
    cr_expect_eq(test_rig_run_direct(&rig, &tdm_op_moe_norm_gate, &args), TDM_OK);
    test_rig_close(&rig);
  }
}

Test(moe_norm_gate, zero_means_the_default) {
  const norm_gate_case c = {3, -1, 128, 256, 8, 1, 1, 0, TDM_BF16, TDM_BF16, false, false, true, false};
  test_rig rig;
  test_tensor* out[OUTPUTS];
  tdm_moe_norm_gate_args args = open_case(&rig, &c, out);
  args.n_group = args.topk_group = 0;
  args.routed_scaling_factor = args.eps = args.quant_eps = 0;
  cr_assert_eq(tdm_op_moe_norm_gate.check(&args), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(args.n_group, 1);
  cr_expect_eq(args.topk_group, 1);
  cr_expect_eq((double)args.routed_scaling_factor, 1.0);
  cr_expect_eq((double)args.eps, (double)1e-6f);
  cr_expect_eq((double)args.quant_eps, (double)1e-4f);
  test_rig_close(&rig);
}

/* ---- what it takes, what it plans ------------------------------------------------------------------------------- */

static const struct {
  norm_gate_case c;
  const char* words; /* of the refusal; NULL: it is taken */
} limits[] = {
    {{8, -1, 8192, 384, 8, 12, 5, 1, TDM_BF16, TDM_BF16, true, true, true, false}, NULL},
    {{9, -1, 128, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false}, "moe_norm_gate|9 rows|8 rows"},
    {{1, -1, 8320, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false}, "moe_norm_gate|8320 columns|8192"},
    {{1, -1, 192, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, false, false}, "moe_norm_gate|192 columns|128"},
    {{1, -1, 128, 64, 8, 1, 1, 1, TDM_BF16, TDM_BF16, true, true, true, false}, "moe_norm_gate|64 experts"},
    {{1, -1, 128, 256, 8, 4, 2, 1, TDM_BF16, TDM_BF16, true, true, true, false}, "moe_norm_gate|2 of 4 groups"},
};

Test(moe_norm_gate, names_its_limits) {
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    const norm_gate_case* c = &limits[i].c;
    test_rig rig;
    test_tensor* out[OUTPUTS];
    tdm_moe_norm_gate_args args = open_case(&rig, c, out);
    const tdm_status status = tdm_append_moe_norm_gate(test_rig_program(&rig), rig.lane, "norm_gate", &args);
    cr_expect_eq(tdm_moe_norm_gate_supported(c->m, c->hidden, c->experts, c->n_group, c->topk_group), !limits[i].words,
                 "%s", rig.label);
    if (limits[i].words)
      test_expect_failure(rig.label, status, TDM_UNSUPPORTED, limits[i].words);
    else
      cr_expect_eq(status, TDM_OK, "%s", tdm_last_error()->message);
    test_rig_close(&rig);
  }
}

Test(moe_norm_gate, plans_a_cta_a_unit_of_the_router) {
  const norm_gate_case c = {2, -1, 7168, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false};
  test_rig rig;
  test_tensor* out[OUTPUTS];
  tdm_plan plan = {.splits = 1}, router = {.splits = 1};
  tdm_moe_norm_gate_args args = open_case(&rig, &c, out);
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(&args);
  const tdm_router_gemm_args router_args = tdm_moe_gate_router(&gate);
  tdm_op_moe_norm_gate.plan(&args, 132, &plan);
  tdm_op_router_gemm.plan(&router_args, 132, &router);
  cr_expect_eq(plan.splits, router.splits);
  cr_expect_geq(plan.scratch_bytes, (size_t)(router.splits * 2 * 256) * sizeof(float));
  cr_expect_eq(plan.state_bytes, 0);
  cr_expect_str_eq(plan.variant, "tdm_moe_norm_gate_sm90");
  const double bytes = plan.bytes;
  args.prefetch[0] = args.prefetch[1] = args.w; /* is not counted */
  tdm_op_moe_norm_gate.plan(&args, 132, &plan);
  cr_expect_eq(plan.bytes, bytes);
  test_rig_close(&rig);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)       TEST_SET(tdm_moe_norm_gate_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_moe_norm_gate_args, member, value)
#define COPY(member, other)      TEST_COPY(tdm_moe_norm_gate_args, member, other)
#define ABSENT(member)           TEST_ABSENT(tdm_moe_norm_gate_args, member)

static const norm_gate_case good = {5, -1, 128, 256, 8, 8, 4, 1, TDM_BF16, TDM_BF16, true, true, true, false};

/* Of a call of that. */
static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"delta of 4 rows", "delta|4|5", {SET(delta.shape[0], 4)}},
    {"residual_out is x", "residual_out|overlaps|x", {COPY(residual_out, x)}},
    {"short weight", "weight|8|128", {SET(weight.shape[0], 8)}},
    {"out is absent", "out is absent", {ABSENT(out)}},
    {"out has 64 columns", "out|64|128", {SET(out.shape[1], 64)}},
    {"out_scale without out_q", "out_scale is given but out_q is absent", {ABSENT(out_q)}},
    {"out_q without out_scale", "out_scale", {ABSENT(out_scale)}},
    {"w is absent", "w", {ABSENT(w)}},
    {"w has 64 columns", "x has 128 columns, w 64", {SET(w.shape[1], 64)}},
    {"logits are bf16", "logits|bf16", {SET(logits.dtype, TDM_BF16)}},
    {"short bias", "bias|8|256", {SET(bias.shape[0], 8)}},
    {"no output", "ids, weights and alpha", {ABSENT(ids), ABSENT(weights), ABSENT(alpha), ABSENT(chosen)}},
    {"chosen without alpha", "chosen without alpha", {ABSENT(alpha)}},
    {"top_k left out", "top_k|0", {SET(top_k, 0)}},
    {"negative eps", "eps|-1", {SET_FLOAT(eps, -1.0f)}},
    {"NaN floor", "quant_eps|nan", {SET_FLOAT(quant_eps, NAN)}},
    {"a count of 256", "n_tokens", {COPY(n_tokens, bias)}},
    {"prefetch overlaps logits", "prefetch[1]|overlaps|logits", {COPY(prefetch[1], logits)}},
    {"out in delta", "out|overlaps|delta", {COPY(out, delta)}},
};

Test(moe_norm_gate, refuses_bad_arguments) {
  test_rig rig;
  test_tensor* out[OUTPUTS];
  tdm_moe_norm_gate_args args = open_case(&rig, &good, out);
  test_rig_refusals(&rig, &tdm_op_moe_norm_gate, &args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(moe_norm_gate, refuses_a_wrong_count) {
  test_rig rig;
  test_tensor* out[OUTPUTS];
  tdm_moe_norm_gate_args args = open_case(&rig, &good, out);
  args.n_tokens = test_rig_count(&rig, "n_tokens", 6)->view;
  test_expect_failure("count", TEST_RUN(&rig, moe_norm_gate, &args), TDM_INVALID_ARGUMENT, "moe_norm_gate|6|5");
  test_rig_close(&rig);
}
