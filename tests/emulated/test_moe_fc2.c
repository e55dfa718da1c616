#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2_sm90.h"
#include "kernels/ops.h"
#include "runtime/status.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

#define B TDM_BF16
#define F TDM_F32

typedef struct fc2_case {
  int64_t m, live, experts, intermediate, hidden;
  tdm_dtype out, addend; /* addend 0: none */
  bool routed;           /* with alpha, of which half is 0 */
  bool listed;           /* two experts of three */
  const char* kernel;
} fc2_case;

static const fc2_case swap_cases[] = {
    {1, 1, 1, 384, 128, F, 0, false, false, "moe_fc2_n64t8"},
    {8, 5, 5, 128, 320, B, B, true, true, "moe_fc2_n64t8"},
    {3, 0, 3, 128, 128, F, 0, true, false, "moe_fc2_n64t8"},
    {16, 13, 3, 384, 200, F, F, true, false, "moe_fc2_n64t16"},
    {17, 17, 9, 128, 136, B, 0, true, true, "moe_fc2_n64t24"},
    {32, 27, 4, 256, 328, F, B, true, true, "moe_fc2_n64t32"},
    {6, 6, 1, 2048, 200, F, 0, false, false, "moe_fc2_n64t8"}, /* more stages than the ring has */
};

static const fc2_case upright_cases[] = {
    {37, 34, 5, 128, 320, F, 0, true, true, "moe_fc2_n64t64"},
    {64, 64, 3, 384, 200, B, B, true, false, "moe_fc2_n64t64"},
    {33, 0, 2, 128, 128, F, F, true, true, "moe_fc2_n64t64"},
    {50, 50, 4, 256, 136, F, F, false, true, "moe_fc2_n64t64"},
    {100, 65, 5, 128, 200, B, 0, true, true, "moe_fc2_n64t128"},
    {129, 129, 3, 256, 328, F, B, true, false, "moe_fc2_n64t128"},
    {40, 40, 1, 1536, 200, F, 0, false, false, "moe_fc2_n64t64"}, /* more stages than the ring has */
};

/* The sum is long: segments are units of their own. */
static const fc2_case segment_cases[] = {
    {5, 4, 24, 128, 200, F, F, true, false, "moe_fc2_n64t8"},
    {32, 32, 25, 128, 128, B, B, true, true, "moe_fc2_n64t32"},
    {40, 33, 24, 128, 200, F, 0, true, true, "moe_fc2_n64t64"},
    {130, 130, 24, 128, 136, F, F, true, true, "moe_fc2_n64t128"},
};

/* Two segments that a CTA adds up in turn, as for very long sums. */
static const fc2_case half_cases[] = {
    {7, 6, 5, 128, 200, F, F, true, false, "moe_fc2_n64t8"},
    {32, 32, 5, 384, 136, F, 0, true, true, "moe_fc2_n64t32"},
    {64, 50, 6, 256, 200, B, B, true, true, "moe_fc2_n64t64"},
    {100, 65, 7, 128, 200, F, B, true, true, "moe_fc2_n128t128"},
    {129, 129, 5, 128, 328, B, 0, false, false, "moe_fc2_n128t128"},
};

static bool is_hit(const fc2_case* c, int64_t expert) {
  return !c->listed || expert % 3 != 1;
}

static bool has_weight(const fc2_case* c, int64_t row, int64_t expert) {
  return is_hit(c, expert) && (!c->routed || (row + 3 * expert) % 4 < 2);
}

/* NaN to what must not reach a sum: activations and scales of experts without weight, weights of those not listed. */
static void spoil(const fc2_case* c, test_tensor* x, test_tensor* x_scale, test_tensor* w) {
  const int64_t blocks = c->intermediate / 128;
  for (int64_t e = 0; e < c->experts; e++) {
    const tdm_view columns = tdm_view_slice(x->view, 1, e * c->intermediate, c->intermediate),
                   scales = tdm_view_slice(x_scale->view, 0, e * blocks, blocks),
                   weights = tdm_view_slice(w->view, 1, e * c->intermediate, c->intermediate);
    for (int64_t m = 0; m < c->m; m++) {
      if (m < c->live && has_weight(c, m, e)) continue;
      const tdm_view row = tdm_view_slice(columns, 0, m, 1), scale = tdm_view_slice(scales, 1, m, 1);
      test_view_poison(&row);
      test_view_poison(&scale);
    }
    if (!is_hit(c, e)) test_view_poison(&weights);
  }
}

static tdm_view make_alpha(test_rig* rig, const fc2_case* c) {
  test_tensor* alpha =
      test_rig_strided(rig, "alpha", F, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 3, 1});
  oracle_fill_uniform(&alpha->view, &rig->random, 0.1f, 1.0f);
  for (int64_t i = 0; i < c->m * c->experts; i++)
    if (!has_weight(c, i / c->experts, i % c->experts)) oracle_set(&alpha->view, i, i % 2 ? -0.0f : 0.0f);
  return alpha->view;
}

static tdm_view make_hits(test_rig* rig, const fc2_case* c) {
  test_tensor* hits = test_rig_tensor(rig, "hits", TDM_I32, 1, (int64_t[]){1 + c->experts});
  int32_t* list = tdm_view_data(&hits->view);
  list[0] = 0;
  for (int64_t e = 0; e < c->experts; e++)
    if (is_hit(c, e)) list[1 + list[0]++] = (int32_t)e;
  return hits->view;
}

static void run(const fc2_case* c, emulated_encode_fn encode) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "moe_fc2 %lld of %lld rows, %s%lld x %lld x %lld", (long long)c->live, (long long)c->m,
                 c->listed ? "some of " : "", (long long)c->experts, (long long)c->intermediate, (long long)c->hidden);
  const int64_t depth = c->experts * c->intermediate;
  test_tensor* x_scale = test_rig_scales(&rig, "x_scale", c->m, depth, 4);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_E4M3, c->m, depth, depth + 16, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w2", TDM_E4M3, 2, (int64_t[]){c->hidden, depth});
  test_tensor* w_scale = test_rig_tensor(&rig, "w2_scale", F, 2, (int64_t[]){(c->hidden + 127) / 128, depth / 128});
  test_tensor* out =
      test_rig_strided(&rig, "out", c->out, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 8, 1});
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.001f, 0.003f);
  tdm_moe_fc2_args args = {.size = sizeof args,
                           .x = x->view,
                           .x_scale = x_scale->view,
                           .w2 = w->view,
                           .w2_scale = w_scale->view,
                           .out = out->view,
                           .n_experts = (int32_t)c->experts};
  if (c->routed) args.alpha = make_alpha(&rig, c);
  if (c->listed) args.hits = make_hits(&rig, c);
  spoil(c, x, x_scale, w);
  if (c->addend) {
    test_tensor* addend = test_rig_tensor(&rig, "addend", c->addend, 2, (int64_t[]){c->m, c->hidden});
    test_view_set_normal(&addend->view, &rig.random, 1.0f);
    args.addend = addend->view;
  }
  if (c->live < c->m) args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)c->live)->view;
  if (c->live > 0) {
    const tdm_view live = tdm_view_slice(out->view, 0, 0, c->live);
    test_tensor_allow(out, &live);
  }
  const emulated_output output = {out, false};
  emulated_compare(&rig, &(emulated_call){.op = &tdm_op_moe_fc2,
                                          .args = &args,
                                          .outputs = &output,
                                          .n_outputs = 1,
                                          .kernel = c->kernel,
                                          .encode = encode,
                                          .memory_bytes = 1 << 20});
  test_rig_close(&rig);
}

/* As the op plans sums of 256 blocks and more, of which these have no need. */
static tdm_status encode_halves(const void* void_args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  const tdm_moe_fc2_args* args = void_args;
  const int64_t m = args->x.shape[0], hidden = args->w2.shape[0];
  tdm_moe_fc2_sm90_plan plan;
  tdm_moe_fc2_fold_params fold;
  tdm_gemm_fp8_params params;
  tdm_moe_fc2_sm90_make_plan(m, hidden, args->n_experts, args->x.shape[1] / args->n_experts,
                             tdm_view_present(&args->alpha), env->sms, &plan);
  cr_assert_eq(plan.gemm.segments, 1);
  plan.gemm.segments = 2;
  if (plan.gemm.tokens == 128) {
    const int64_t tiles = (m + 127) / 128 * ((hidden + 127) / 128), units = 2 * tiles;
    plan.gemm.rows = 128;
    plan.gemm.split = true;
    plan.gemm.partial_bytes = (size_t)(units * 128 * 128) * sizeof(float);
    plan.gemm.launch.grid = (uint32_t)(units < env->sms ? units : env->sms);
    plan.gemm.launch.shared_bytes = TDM_GEMM_FP8_UPRIGHT_SHARED(128, 128, 6);
    (void)snprintf(plan.gemm.launch.kernel, sizeof plan.gemm.launch.kernel, "tdm_moe_fc2_n128t128_sm90");
  }
  TDM_TRY(tdm_moe_fc2_sm90_params(args, &plan, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &fold,
                                  &params));
  if (plan.folds) TDM_TRY(tdm_encoded_step_add(out_step, &plan.fold, &fold, sizeof fold));
  return tdm_encoded_step_add(out_step, &plan.gemm.launch, &params, sizeof params);
}

Test(moe_fc2, swap) {
  for (size_t i = 0; i < sizeof swap_cases / sizeof *swap_cases; i++) run(&swap_cases[i], NULL);
}

Test(moe_fc2, upright) {
  for (size_t i = 0; i < sizeof upright_cases / sizeof *upright_cases; i++) run(&upright_cases[i], NULL);
}

Test(moe_fc2, segments) {
  for (size_t i = 0; i < sizeof segment_cases / sizeof *segment_cases; i++) run(&segment_cases[i], NULL);
}

Test(moe_fc2, halves) {
  for (size_t i = 0; i < sizeof half_cases / sizeof *half_cases; i++) run(&half_cases[i], encode_halves);
}
