#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/moe_gate/moe_gate.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

/* The two ops have oracles of their own; here are their bits. */

typedef struct gate_case {
  int64_t m, experts, hidden;
  int64_t live; /* -1: no count */
  int32_t top_k, n_group, topk_group, n_shared;
  bool with_bias, with_hits, broken; /* hits and chosen */
  tdm_dtype x;
} gate_case;

static const gate_case cases[] = {
    {1, 256, 64, -1, 8, 8, 4, 1, true, true, false, TDM_BF16},
    {3, 256, 72, 2, 8, 1, 1, 0, false, false, true, TDM_BF16},
    {7, 384, 64, -1, 6, 1, 1, 1, true, true, true, TDM_F32},
    {16, 256, 64, 0, 8, 8, 4, 1, true, true, false, TDM_BF16},
    {17, 384, 40, 13, 8, 12, 5, 2, true, false, false, TDM_BF16},
    {37, 256, 33, -1, 32, 8, 8, 3, true, true, true, TDM_F32},
    {128, 256, 16, 65, 8, 8, 4, 0, false, true, true, TDM_BF16},
    {128, 384, 16, -1, 8, 1, 1, 1, true, true, false, TDM_BF16},
};

enum { OUTPUTS = 6 };

typedef struct bench {
  test_tensor *x, *out[OUTPUTS]; /* logits, ids, weights, alpha; chosen, hits or NULL */
  tdm_moe_gate_args args;
} bench;

static void make_outputs(test_rig* rig, const gate_case* c, test_tensor** out) {
  const int64_t wide = c->experts + c->n_shared, live = c->live < 0 ? c->m : c->live;
  out[0] = test_rig_strided(rig, "logits", TDM_F32, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 4, 1});
  out[1] = test_rig_strided(rig, "ids", TDM_I32, 2, (int64_t[]){c->m, c->top_k}, (int64_t[]){c->top_k + 1, 1});
  out[2] = test_rig_strided(rig, "weights", TDM_F32, 2, (int64_t[]){c->m, c->top_k}, (int64_t[]){c->top_k + 3, 1});
  out[3] = test_rig_strided(rig, "alpha", TDM_F32, 2, (int64_t[]){c->m, wide}, (int64_t[]){wide + 5, 1});
  const int64_t words = (wide + 31) / 32;
  out[4] = c->with_hits
               ? test_rig_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){c->m, words}, (int64_t[]){words + 2, 1})
               : NULL;
  out[5] = c->with_hits ? test_rig_tensor(rig, "hits", TDM_I32, 1, (int64_t[]){1 + wide}) : NULL;
  for (int i = 0; i < 5 && out[i] && live > 0; i++) {
    tdm_view part = tdm_view_slice(out[i]->view, 0, 0, live);
    test_tensor_allow(out[i], &part);
  }
  if (out[5]) test_tensor_allow(out[5], &out[5]->view);
}

static void make_bench(test_rig* rig, bench* b, const gate_case* c) {
  test_rig_label(rig, "moe_gate m %lld e %lld h %lld live %lld top %d of %d/%d", (long long)c->m, (long long)c->experts,
                 (long long)c->hidden, (long long)c->live, c->top_k, c->topk_group, c->n_group);
  b->x = test_rig_tensor(rig, "x", c->x, 2, (int64_t[]){c->m, c->hidden});
  test_tensor* w = test_rig_tensor(rig, "w", TDM_BF16, 2, (int64_t[]){c->experts, c->hidden});
  test_view_set_normal(&b->x->view, &rig->random, 1.0f);
  test_view_set_normal(&w->view, &rig->random, 0.3f);
  if (c->broken) oracle_set(&b->x->view, (c->m > 1 ? c->hidden : 0) + 5, NAN);
  make_outputs(rig, c, b->out);
  b->args = (tdm_moe_gate_args){.size = sizeof b->args,
                                .x = b->x->view,
                                .w = w->view,
                                .logits = b->out[0]->view,
                                .ids = b->out[1]->view,
                                .weights = b->out[2]->view,
                                .alpha = b->out[3]->view,
                                .top_k = c->top_k,
                                .n_group = c->n_group,
                                .topk_group = c->topk_group,
                                .n_shared = c->n_shared,
                                .norm_topk_prob = true,
                                .routed_scaling_factor = 2.5f};
  if (b->out[4]) b->args.chosen = b->out[4]->view;
  if (b->out[5]) b->args.hits = b->out[5]->view;
  if (c->with_bias) {
    test_tensor* bias = test_rig_tensor(rig, "bias", TDM_F32, 1, &c->experts);
    test_view_set_normal(&bias->view, &rig->random, 0.5f);
    b->args.bias = bias->view;
  }
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

Test(moe_gate, has_the_bits_of_the_two_ops) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const gate_case* c = &cases[i];
    test_rig rig;
    bench b;
    test_tensor* want[OUTPUTS];
    test_rig_open(&rig);
    make_bench(&rig, &b, c);
    make_outputs(&rig, c, want);
    tdm_moe_gate_args two = b.args;
    two.logits = want[0]->view;
    two.ids = want[1]->view;
    two.weights = want[2]->view;
    two.alpha = want[3]->view;
    if (want[4]) two.chosen = want[4]->view;
    if (want[5]) two.hits = want[5]->view;
    const tdm_router_gemm_args router = tdm_moe_gate_router(&two);
    const tdm_moe_route_args route = tdm_moe_gate_route(&two);
    cr_assert_eq(TEST_RUN(&rig, router_gemm, &router), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&rig, moe_route, &route), TDM_OK, "%s", tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&rig, moe_gate, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int output = 0; output < OUTPUTS; output++)
      if (want[output]) oracle_expect_same_bits(rig.label, &b.out[output]->view, &want[output]->view);
    cr_expect_eq(test_rig_run_direct(&rig, &tdm_op_moe_gate, &b.args), TDM_OK);
    test_rig_close(&rig);
  }
}

Test(moe_gate, zero_means_the_default) {
  const gate_case c = {3, 256, 16, -1, 8, 1, 1, 0, false, false, false, TDM_BF16};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  b.args.n_group = b.args.topk_group = 0;
  b.args.routed_scaling_factor = 0;
  cr_assert_eq(tdm_op_moe_gate.check(&b.args), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(b.args.n_group, 1);
  cr_expect_eq(b.args.topk_group, 1);
  cr_expect_eq((double)b.args.routed_scaling_factor, 1.0);
  test_rig_close(&rig);
}

/* ---- what it takes, what it plans ------------------------------------------------------------------------------- */

static const struct {
  gate_case c;
  const char* words; /* of the refusal; NULL: it is taken */
} limits[] = {
    {{128, 256, 16, -1, 8, 8, 4, 1, true, true, false, TDM_BF16}, NULL},
    {{128, 384, 16, -1, 8, 1, 1, 1, true, true, false, TDM_BF16}, NULL},
    {{1, 256, 16, -1, 8, 16, 16, 1, true, true, false, TDM_BF16}, NULL},
    {{512, 256, 16, -1, 8, 8, 4, 1, true, true, false, TDM_BF16}, NULL},
    {{513, 256, 16, -1, 8, 8, 4, 1, true, false, false, TDM_BF16}, "moe_gate|513|512"},
    {{1, 255, 16, -1, 8, 1, 1, 1, true, true, false, TDM_BF16}, "moe_gate|255 experts"},
    {{1, 512, 16, -1, 8, 16, 4, 1, true, true, false, TDM_BF16}, "moe_gate|512 experts|4 of 16"},
    {{1, 256, 16, -1, 8, 4, 2, 1, true, true, false, TDM_BF16}, "moe_gate|256 experts|2 of 4"},
    {{1, 1025, 16, -1, 8, 1, 1, 1, true, false, false, TDM_BF16}, "moe_gate|1025|1024"},
};

Test(moe_gate, names_its_limits) {
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    const gate_case* c = &limits[i].c;
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    make_bench(&rig, &b, c);
    const tdm_status status = tdm_append_moe_gate(test_rig_program(&rig), rig.lane, "gate", &b.args);
    cr_expect_eq(tdm_moe_gate_supported(c->m, c->experts, c->n_group, c->topk_group), !limits[i].words, "%s",
                 rig.label);
    if (limits[i].words)
      test_expect_failure(rig.label, status, TDM_UNSUPPORTED, limits[i].words);
    else
      cr_expect_eq(status, TDM_OK, "%s", tdm_last_error()->message);
    test_rig_close(&rig);
  }
  cr_expect(tdm_moe_gate_supported(1, 256, 0, 0));
  cr_expect(tdm_moe_gate_supported(1, 256, 8, 0));
}

Test(moe_gate, plans_as_the_router) {
  for (int64_t m = 1; m <= 128; m += 9) {
    for (int32_t sms = 1; sms <= 132; sms += 131) {
      test_rig rig;
      bench b;
      const gate_case c = {m, 256, 7168, -1, 8, 8, 4, 1, true, true, false, TDM_BF16};
      tdm_plan gate = {.splits = 1}, router = {.splits = 1};
      test_rig_open(&rig);
      make_bench(&rig, &b, &c);
      const tdm_router_gemm_args args = tdm_moe_gate_router(&b.args);
      tdm_op_moe_gate.plan(&b.args, sms, &gate);
      tdm_op_router_gemm.plan(&args, sms, &router);
      cr_expect_eq(gate.splits, router.splits);
      cr_expect_eq(gate.scratch_bytes, (size_t)(router.splits * m * 256) * sizeof(float));
      cr_expect_eq(gate.state_bytes, 0);
      cr_expect_eq(strcmp(gate.variant + strlen("tdm_moe_gate_router"), router.variant + strlen("tdm_router_gemm")), 0);
      test_rig_close(&rig);
    }
  }
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)       TEST_SET(tdm_moe_gate_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_moe_gate_args, member, value)
#define COPY(member, other)      TEST_COPY(tdm_moe_gate_args, member, other)
#define ABSENT(member)           TEST_ABSENT(tdm_moe_gate_args, member)

/* Of a call with x [5, 64], 256 experts in 8 groups, 4 kept, 8 chosen, one shared. */
static const test_refusal refusals[] = {
    {"x is e4m3", "x is e4m3", {SET(x.dtype, TDM_E4M3)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"x has 32 columns", "x has 32 columns, w 64", {SET(x.shape[1], 32)}},
    {"w is absent", "w", {ABSENT(w)}},
    {"logits are absent", "logits", {ABSENT(logits)}},
    {"logits are bf16", "logits|bf16", {SET(logits.dtype, TDM_BF16)}},
    {"logits have 4 rows", "logits|4|5", {SET(logits.shape[0], 4)}},
    {"short bias", "bias|8|256", {SET(bias.shape[0], 8)}},
    {"no output",
     "ids, weights and alpha",
     {ABSENT(ids), ABSENT(weights), ABSENT(alpha), ABSENT(hits), ABSENT(chosen)}},
    {"3 ids", "ids|3|8", {SET(ids.shape[1], 3)}},
    {"weights of 4 rows", "weights|4|5", {SET(weights.shape[0], 4)}},
    {"alpha without the shared expert", "alpha|256|257", {SET(alpha.shape[1], 256)}},
    {"hits without alpha", "hits without alpha", {ABSENT(alpha)}},
    {"chosen without alpha", "chosen without alpha", {ABSENT(alpha), ABSENT(hits)}},
    {"chosen of 8 words", "chosen|[5, 8]|[5, 9]", {SET(chosen.shape[1], 8)}},
    {"chosen of floats", "chosen|f32", {SET(chosen.dtype, TDM_F32)}},
    {"chosen in alpha", "alpha|overlaps|chosen", {COPY(chosen.buffer, alpha.buffer)}},
    {"hits too short", "hits|257|258", {SET(hits.shape[0], 257)}},
    {"top_k left out", "top_k|0", {SET(top_k, 0)}},
    {"3 groups of 256", "n_group|3|256", {SET(n_group, 3)}},
    {"9 groups kept of 8", "topk_group|9|8", {SET(topk_group, 9)}},
    {"negative shared experts", "n_shared|-1", {SET(n_shared, -1)}},
    {"NaN factor", "routed_scaling_factor|nan", {SET_FLOAT(routed_scaling_factor, NAN)}},
    {"a count of 256", "n_tokens", {COPY(n_tokens, bias)}},
    {"prefetch starts at byte 264",
     "prefetch starts at byte 264",
     {COPY(prefetch, w), SET(prefetch.offset_bytes, 264), SET(prefetch.shape[0], 4)}},
    {"prefetch overlaps logits", "prefetch|overlaps|logits", {COPY(prefetch, logits)}},
    {"ids in alpha", "ids|overlaps|alpha", {COPY(ids.buffer, alpha.buffer)}},
    {"weights in the logits", "weights|overlaps|logits", {COPY(weights.buffer, logits.buffer)}},
};

Test(moe_gate, refuses_bad_arguments) {
  const gate_case c = {5, 256, 64, -1, 8, 8, 4, 1, true, true, false, TDM_BF16};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  test_rig_refusals(&rig, &tdm_op_moe_gate, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(moe_gate, refuses_a_wrong_count) {
  const gate_case c = {5, 256, 16, -1, 8, 8, 4, 1, true, true, false, TDM_BF16};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  b.args.n_tokens = test_rig_count(&rig, "n_tokens", 6)->view;
  test_expect_failure("count", TEST_RUN(&rig, moe_gate, &b.args), TDM_INVALID_ARGUMENT, "moe_gate|6|5");
  test_rig_close(&rig);
}
