#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/moe_experts/moe_experts.h"
#include "kernels/moe_experts/moe_experts_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

/* The two ops have oracles of their own; here are their bits. */

typedef struct experts_case {
  int64_t rows, live; /* live -1: no count */
  int64_t experts, intermediate, hidden;
  bool with_alpha, with_addend;
  tdm_dtype out;
  float limit;
  bool pow2;
} experts_case;

static const experts_case cases[] = {
    {1, -1, 5, 128, 384, true, false, TDM_BF16, 0, false}, {8, -1, 9, 128, 896, true, true, TDM_F32, 2, false},
    {5, 3, 9, 128, 640, true, false, TDM_BF16, 0, true},   {3, 0, 4, 128, 256, true, true, TDM_F32, 0, false},
    {2, -1, 5, 256, 384, false, false, TDM_F32, 1, false}, {4, -1, 40, 128, 4096, true, false, TDM_BF16, 0, false},
};

typedef struct bench {
  test_tensor* out;
  tdm_moe_experts_args args;
} bench;

/* Row m chose expert e. Nobody chose expert 3, everybody the last one. */
static bool has(const void* of, int64_t m, int64_t e) {
  const experts_case* c = of;
  return e != 3 && (e == c->experts - 1 || (m * 5 + e * 11) % 7 == 0);
}

static test_tensor* make_out(test_rig* rig, const experts_case* c) {
  test_tensor* out =
      test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->rows, c->hidden}, (int64_t[]){c->hidden + 8, 1});
  const tdm_view part = tdm_view_slice(out->view, 0, 0, c->live < 0 ? c->rows : c->live);
  if (c->live != 0) test_tensor_allow(out, &part);
  return out;
}

static void make_bench(test_rig* rig, bench* b, const experts_case* c) {
  test_rig_label(rig, "moe_experts %d rows %d live, %d of %d x %d", (int)c->rows, (int)c->live, (int)c->experts,
                 (int)c->intermediate, (int)c->hidden);
  const int64_t depth = c->experts * c->intermediate, gate_up = 2 * c->intermediate, blocks = c->hidden / 128;
  const int64_t live = c->live < 0 ? c->rows : c->live;
  test_tensor* x_scale = test_rig_scales(rig, "x_scale", c->rows, c->hidden, 0);
  test_tensor* x = test_rig_activation(rig, "x", TDM_E4M3, c->rows, c->hidden, 0, 1.0f, x_scale);
  test_tensor* w13 = test_rig_tensor(rig, "w13", TDM_E4M3, 3, (int64_t[]){c->experts, gate_up, c->hidden});
  test_tensor* w13_scale =
      test_rig_tensor(rig, "w13_scale", TDM_F32, 3, (int64_t[]){c->experts, gate_up / 128, blocks});
  test_tensor* w2 = test_rig_tensor(rig, "w2", TDM_E4M3, 2, (int64_t[]){c->hidden, depth});
  test_tensor* w2_scale = test_rig_tensor(rig, "w2_scale", TDM_F32, 2, (int64_t[]){blocks, depth / 128});
  test_view_set_normal(&w13->view, &rig->random, 30.0f);
  test_view_set_normal(&w2->view, &rig->random, 30.0f);
  oracle_fill_uniform(&w13_scale->view, &rig->random, 0.001f, 0.003f);
  oracle_fill_uniform(&w2_scale->view, &rig->random, 0.001f, 0.003f);
  b->out = make_out(rig, c);
  b->args = (tdm_moe_experts_args){.size = sizeof b->args,
                                   .x = x->view,
                                   .x_scale = x_scale->view,
                                   .w13 = w13->view,
                                   .w13_scale = w13_scale->view,
                                   .w2 = w2->view,
                                   .w2_scale = w2_scale->view,
                                   .chosen = test_rig_chosen(rig, c->rows, live, c->experts, has, c)->view,
                                   .out = b->out->view,
                                   .swiglu_limit = c->limit,
                                   .pow2_scale = c->pow2};
  if (c->with_alpha) {
    test_tensor* alpha = test_rig_tensor(rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, c->experts});
    oracle_fill_uniform(&alpha->view, &rig->random, 0.1f, 1.0f);
    b->args.alpha = alpha->view;
  }
  if (c->with_addend) {
    test_tensor* addend = test_rig_tensor(rig, "addend", TDM_BF16, 2, (int64_t[]){c->rows, c->hidden});
    test_view_set_normal(&addend->view, &rig->random, 1.0f);
    b->args.addend = addend->view;
  }
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

/* The same by moe_fc1 and moe_fc2, into `out`. */
static void run_two(test_rig* rig, const experts_case* c, const bench* b, const test_tensor* out) {
  const tdm_moe_experts_args* args = &b->args;
  const int64_t depth = c->experts * c->intermediate;
  test_tensor* values = test_rig_tensor(rig, "values", TDM_E4M3, 2, (int64_t[]){c->rows, depth});
  test_tensor* scales = test_rig_scales(rig, "scales", c->rows, depth, 0);
  test_tensor_allow(values, &values->view);
  test_tensor_allow(scales, &scales->view);
  const tdm_moe_fc1_args fc1 = {.size = sizeof fc1,
                                .n_tokens = args->n_tokens,
                                .x = args->x,
                                .x_scale = args->x_scale,
                                .w13 = args->w13,
                                .w13_scale = args->w13_scale,
                                .chosen = args->chosen,
                                .out = values->view,
                                .out_scale = scales->view,
                                .swiglu_limit = args->swiglu_limit,
                                .pow2_scale = args->pow2_scale};
  const tdm_moe_fc2_args fc2 = {.size = sizeof fc2,
                                .n_tokens = args->n_tokens,
                                .x = values->view,
                                .x_scale = scales->view,
                                .w2 = args->w2,
                                .w2_scale = args->w2_scale,
                                .alpha = args->alpha,
                                .chosen = args->chosen,
                                .addend = args->addend,
                                .out = out->view,
                                .n_experts = (int32_t)c->experts};
  cr_assert_eq(TEST_RUN(rig, moe_fc1, &fc1), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(TEST_RUN(rig, moe_fc2, &fc2), TDM_OK, "%s", tdm_last_error()->message);
}

Test(moe_experts, has_the_bits_of_the_two_ops) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const experts_case* c = &cases[i];
    test_rig rig;
    bench b;
    test_rig_open(&rig);
    make_bench(&rig, &b, c);
    test_tensor* want = make_out(&rig, c);
    run_two(&rig, c, &b, want);
    cr_assert_eq(TEST_RUN(&rig, moe_experts, &b.args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
    oracle_expect_same_bits(rig.label, &b.out->view, &want->view);
    cr_expect_eq(test_rig_run_direct(&rig, &tdm_op_moe_experts, &b.args), TDM_OK);
    test_rig_close(&rig);
  }
}

/* ---- what it takes, what it plans ------------------------------------------------------------------------------- */

static const struct {
  int64_t rows, experts, intermediate, hidden;
  bool taken;
} limits[] = {
    {1, 257, 256, 7168, true},  {8, 257, 256, 7168, true},    {9, 257, 256, 7168, true},    {128, 257, 256, 7168, true},
    {16, 385, 256, 7168, true}, {129, 257, 256, 7168, false}, {16, 65, 2048, 7168, true},   {1, 257, 2048, 7168, false},
    {1, 257, 256, 8192, true},  {1, 257, 256, 8320, false},   {9, 257, 256, 8320, true},    {1, 256, 512, 384, false},
    {1, 1024, 128, 4096, true}, {1, 1025, 128, 4096, false},  {16, 1025, 128, 4096, false}, {1, 4, 256, 7168, false},
    {16, 4, 256, 7168, false}, /* FC1's sum comes in segments */
};

Test(moe_experts, says_what_it_takes) {
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
    cr_expect_eq(tdm_moe_experts_supported(limits[i].rows, limits[i].experts, limits[i].intermediate, limits[i].hidden),
                 limits[i].taken, "%d rows, %d experts of %d x %d", (int)limits[i].rows, (int)limits[i].experts,
                 (int)limits[i].intermediate, (int)limits[i].hidden);
}

Test(moe_experts, names_its_limits) {
  const experts_case c = {129, -1, 9, 128, 256, true, false, TDM_BF16, 0, false};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  test_expect_failure(rig.label, tdm_append_moe_experts(test_rig_program(&rig), rig.lane, "experts", &b.args),
                      TDM_UNSUPPORTED, "moe_experts|129 rows|9 experts of 128 x 256|128 rows");
  test_rig_close(&rig);
}

Test(moe_experts, plans_what_fits) {
  for (int64_t hidden = 512; hidden <= 8192; hidden += 512) {
    for (int32_t sms = 1; sms <= 132; sms += 131) {
      tdm_moe_experts_sm90_plan plan;
      tdm_moe_experts_sm90_make_plan(1, 257, 256, hidden, sms, &plan);
      cr_expect(plan.stages >= TDM_MOE_EXPERTS_LEAST_STAGES && plan.stages <= TDM_MOE_EXPERTS_MOST_STAGES);
      cr_expect_leq(plan.launch.shared_bytes, 232448u, "%u bytes", plan.launch.shared_bytes);
      cr_expect(plan.launch.grid >= 1 && plan.launch.grid <= (uint32_t)sms, "%u CTAs", plan.launch.grid);
      cr_expect_eq(256 / 128 % plan.stage_blocks, 0);
    }
  }
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

#define SET(member, value)       TEST_SET(tdm_moe_experts_args, member, value)
#define SET_FLOAT(member, value) TEST_SET_FLOAT(tdm_moe_experts_args, member, value)
#define COPY(member, other)      TEST_COPY(tdm_moe_experts_args, member, other)
#define ABSENT(member)           TEST_ABSENT(tdm_moe_experts_args, member)

/* Of a call with 5 rows, 5 experts of 256 x 384, bf16 out. */
static const test_refusal refusals[] = {
    {"x is i8", "x is i8", {SET(x.dtype, TDM_I8)}},
    {"x is absent", "x", {ABSENT(x)}},
    {"x has 192 columns", "x has 192 columns|128", {SET(x.shape[1], 192)}},
    {"x_scale is absent", "x_scale", {ABSENT(x_scale)}},
    {"w13 is i8", "w13 is i8", {SET(w13.dtype, TDM_I8)}},
    {"w13 has 128 columns", "w13 is [5, 512, 128]", {SET(w13.shape[2], 128)}},
    {"w13 has 384 rows an expert", "w13 has 384 rows", {SET(w13.shape[1], 384)}},
    {"w13_scale is absent", "w13_scale", {ABSENT(w13_scale)}},
    {"w2 of 4 experts", "w2 is [384, 1024]", {SET(w2.shape[1], 4 * 256)}},
    {"w2_scale is bf16", "w2_scale", {SET(w2_scale.dtype, TDM_BF16)}},
    {"alpha of 4 experts", "alpha is [5, 4]", {SET(alpha.shape[1], 4)}},
    {"chosen is absent", "chosen", {ABSENT(chosen)}},
    {"chosen of two words", "chosen is [5, 2]|[5, 1]", {SET(chosen.shape[1], 2)}},
    {"out is e4m3", "out is e4m3", {SET(out.dtype, TDM_E4M3)}},
    {"out has 4 rows", "out is [4, 384]", {SET(out.shape[0], 4)}},
    {"out in w13", "out|overlaps|w13", {COPY(out.buffer, w13.buffer)}},
    {"a limit below 0", "swiglu_limit is -1", {SET_FLOAT(swiglu_limit, -1)}},
    {"a limit of infinity", "swiglu_limit is inf", {SET_FLOAT(swiglu_limit, INFINITY)}},
    {"eps of NaN", "quant_eps", {SET_FLOAT(quant_eps, NAN)}},
};

Test(moe_experts, refuses_bad_arguments) {
  const experts_case c = {5, -1, 5, 256, 384, true, false, TDM_BF16, 0, false};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  test_rig_refusals(&rig, &tdm_op_moe_experts, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(moe_experts, refuses_counts_and_bits_of_nobody) {
  const experts_case c = {5, -1, 9, 128, 256, true, false, TDM_BF16, 0, false};
  test_rig rig;
  bench b;
  test_rig_open(&rig);
  make_bench(&rig, &b, &c);
  b.args.n_tokens = test_rig_count(&rig, "n_tokens", 6)->view;
  test_expect_failure("count", TEST_RUN(&rig, moe_experts, &b.args), TDM_INVALID_ARGUMENT, "moe_experts|6|5");
  b.args.n_tokens = (tdm_view){0};
  ((uint32_t*)tdm_view_data(&b.args.chosen))[0] |= UINT32_C(1) << 9;
  test_expect_failure("bit", TEST_RUN(&rig, moe_experts, &b.args), TDM_INVALID_ARGUMENT, "moe_experts|chosen|9");
  test_rig_close(&rig);
}
