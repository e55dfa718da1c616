#include <criterion/criterion.h>
#include <math.h>

#include "kernels/moe_fc1/moe_fc1_few_sm90.h"
#include "kernels/ops.h"
#include "runtime/status.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* moe_fc1 and moe_fc2 over the rows alone that chose an expert: as the reference, with the bits of the dense kernels.
 */

#define B TDM_BF16
#define F TDM_F32

typedef struct chosen_case {
  int64_t m, live, experts, intermediate, hidden;
  int64_t top;      /* about so many of the experts that are not special */
  float limit;      /* moe_fc1 */
  tdm_dtype out;    /* moe_fc2 */
  tdm_dtype addend; /* 0: none */
  const char* kernel;
} chosen_case;

/* Up to eight rows. */
static const chosen_case few_cases[] = {
    {1, 1, 5, 128, 384, 2, .kernel = "moe_fc1_few_n16"},
    {1, 1, 35, 128, 640, 6, 5.0f, .kernel = "moe_fc1_few_n16"},
    {2, 2, 5, 256, 384, 2, .kernel = "moe_fc1_few_n32"},
    {7, 5, 33, 128, 256, 4, .kernel = "moe_fc1_few_n32"},
    {8, 8, 9, 128, 896, 3, 5.0f, .kernel = "moe_fc1_few_n32"},
    {3, 0, 4, 128, 256, 2, .kernel = "moe_fc1_few_n32"},
};

/* More blocks along K than a lane each has a scale of. The op would not choose this kernel for so few experts. */
static const chosen_case deep_cases[] = {
    {1, 1, 4, 128, 4224, 2, .kernel = "moe_fc1_few_n16"},
    {5, 4, 4, 128, 4480, 2, .kernel = "moe_fc1_few_n32"},
};

static const chosen_case fc1_cases[] = {
    {9, 9, 5, 128, 384, 2, .kernel = "moe_fc1_grouped_t16"},
    {16, 11, 33, 128, 384, 4, 5.0f, .kernel = "moe_fc1_grouped_t16"},
    {37, 37, 6, 256, 256, 3, .kernel = "moe_fc1_grouped_t32"},
    {70, 66, 40, 128, 256, 3, .kernel = "moe_fc1_grouped_t32"},
    {129, 129, 5, 128, 384, 2, 5.0f, .kernel = "moe_fc1_grouped_t32"},
    {256, 200, 4, 128, 128, 1, .kernel = "moe_fc1_grouped_t32"},
    {300, 300, 4, 128, 128, 2, .kernel = "moe_fc1_grouped_t32"},
    {300, 31, 4, 128, 256, 2, .kernel = "moe_fc1_grouped_t32"},
    {20, 0, 4, 128, 256, 2, .kernel = "moe_fc1_grouped_t16"},
};

static const chosen_case fc1_segment_cases[] = {
    {2, 2, 4, 128, 1536, 2, .kernel = "moe_fc1_grouped_segments_t32"},
    {50, 40, 4, 128, 2304, 2, 5.0f, .kernel = "moe_fc1_grouped_segments_t32"},
    {260, 258, 3, 128, 1536, 1, .kernel = "moe_fc1_grouped_segments_t32"},
};

static const chosen_case fc2_cases[] = {
    {1, 1, 5, 128, 384, 2, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b1_t8"},
    {7, 5, 9, 384, 200, 3, .out = F, .addend = F, .kernel = "moe_fc2_grouped_b1_t8"},
    {16, 16, 35, 128, 136, 4, .out = B, .addend = B, .kernel = "moe_fc2_grouped_b1_t8"},
    {65, 65, 5, 256, 320, 2, .out = F, .addend = B, .kernel = "moe_fc2_grouped_b2_t8"},
    {128, 100, 4, 128, 200, 2, .out = B, .addend = 0, .kernel = "moe_fc2_grouped_b1_t8"},
    {129, 129, 5, 128, 136, 2, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b1_t16"},
    {300, 270, 4, 256, 264, 2, .out = B, .addend = F, .kernel = "moe_fc2_grouped_b2_t16"},
    {20, 0, 4, 128, 200, 2, .out = F, .addend = F, .kernel = "moe_fc2_grouped_b1_t8"},
    {6, 6, 3, 1280, 200, 1, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b2_t8"}, /* once around the ring */
    {40, 40, 7, 1280, 200, 3, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b2_t8"},
    {140, 140, 5, 2048, 136, 2, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b2_t16"},
};

static const chosen_case fc2_segment_cases[] = {
    {1, 1, 35, 256, 512, 1, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b2_t8"}, /* fewer groups than CTAs */
    {3, 3, 24, 128, 200, 4, .out = F, .addend = F, .kernel = "moe_fc2_grouped_b1_t8"},
    {50, 33, 25, 128, 136, 5, .out = B, .addend = 0, .kernel = "moe_fc2_grouped_b1_t8"},
    {140, 140, 24, 128, 136, 2, .out = F, .addend = B, .kernel = "moe_fc2_grouped_b1_t16"},
    {20, 20, 16, 256, 200, 3, .out = F, .addend = 0, .kernel = "moe_fc2_grouped_b2_t8"},
    {300, 290, 24, 128, 136, 2, .out = F, .addend = B, .kernel = "moe_fc2_grouped_b1_t16"},
};

/* Expert 0 is nobody's, expert 1 every third row's, expert 2 the last live row's alone, the last one everybody's. */
static bool has(const void* of, int64_t row, int64_t expert) {
  const chosen_case* c = of;
  if (expert == c->experts - 1) return true;
  if (expert == 0) return false;
  if (expert == 1) return row % 3 == 0;
  if (expert == 2) return row == c->live - 1;
  return (7 * row + 11 * expert) % c->experts < c->top;
}

static bool live_and_has(const chosen_case* c, int64_t row, int64_t expert) {
  return row < c->live && has(c, row, expert);
}

/* Rows whose weight is 0 though they chose the expert. */
static bool weighs_nothing(const chosen_case* c, int64_t row, int64_t expert) {
  return expert == c->experts - 1 && row % 2 == 1;
}

static tdm_view columns_of(const chosen_case* c, const test_tensor* x, int64_t row, int64_t e) {
  return tdm_view_slice(tdm_view_slice(x->view, 0, row, 1), 1, e * c->intermediate, c->intermediate);
}

static tdm_view scales_of(const chosen_case* c, const test_tensor* scales, int64_t row, int64_t e) {
  const int64_t blocks = c->intermediate / 128;
  return tdm_view_slice(tdm_view_slice(scales->view, 0, e * blocks, blocks), 1, row, 1);
}

static void begin(test_rig* rig, const char* op, const chosen_case* c) {
  test_rig_open(rig);
  test_rig_label(rig, "%s chosen by %lld of %lld rows, %lld x %lld x %lld, top %lld", op, (long long)c->live,
                 (long long)c->m, (long long)c->experts, (long long)c->intermediate, (long long)c->hidden,
                 (long long)c->top);
}

static tdm_view make_chosen(test_rig* rig, const chosen_case* c) {
  return test_rig_chosen(rig, c->m, c->live, c->experts, has, c)->view;
}

static tdm_view live_count(test_rig* rig, const chosen_case* c) {
  return c->live < c->m ? test_rig_count(rig, "n_tokens", (int32_t)c->live)->view : (tdm_view){0};
}

static tdm_status encode_few(const void* void_args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  const tdm_moe_fc1_args* args = void_args;
  tdm_moe_fc1_sm90_plan plan;
  tdm_moe_fc1_params params;
  tdm_moe_fc1_few_sm90_make_plan(args->x.shape[0], args->w13.shape[0], args->w13.shape[1] / 2, args->x.shape[1],
                                 env->sms, &plan);
  TDM_TRY(
      tdm_moe_fc1_sm90_params(args, &plan, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &plan.launch, &params, sizeof params);
}

static void expect_dense_fc1(test_rig* rig, const chosen_case* c, tdm_moe_fc1_args args, const test_tensor* out,
                             const test_tensor* out_scale) {
  const int64_t columns = c->experts * c->intermediate;
  const test_tensor* dense = test_rig_tensor(rig, "dense", TDM_E4M3, 2, (int64_t[]){c->m, columns});
  const test_tensor* dense_scale = test_rig_scales(rig, "dense_scale", c->m, columns, 0);
  args.chosen = (tdm_view){0};
  args.out = dense->view;
  args.out_scale = dense_scale->view;
  emulated_run(rig, &(emulated_call){.op = &tdm_op_moe_fc1, .args = &args, .kernel = "moe_fc1_"});
  for (int64_t m = 0; m < c->live; m++)
    for (int64_t e = 0; e < c->experts; e++) {
      if (!has(c, m, e)) continue;
      const tdm_view got = columns_of(c, out, m, e), want = columns_of(c, dense, m, e);
      const tdm_view got_scales = scales_of(c, out_scale, m, e), want_scales = scales_of(c, dense_scale, m, e);
      oracle_expect_same_bits(rig->label, &got, &want);
      oracle_expect_same_bits(rig->label, &got_scales, &want_scales);
    }
}

static void run_fc1(const chosen_case* c, bool counts_launches, emulated_encode_fn encode) {
  test_rig rig;
  begin(&rig, "moe_fc1", c);
  const int64_t columns = c->experts * c->intermediate, two = 2 * c->intermediate;
  const float deviation = 2.0f / sqrtf((float)c->hidden) / 30.0f; /* gate and up around 2 */
  test_tensor* x_scale = test_rig_scales(&rig, "x_scale", c->m, c->hidden, 4);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_E4M3, c->m, c->hidden, c->hidden + 16, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w13", TDM_E4M3, 3, (int64_t[]){c->experts, two, c->hidden});
  test_tensor* w_scale = test_rig_tensor(&rig, "w13_scale", F, 3, (int64_t[]){c->experts, two / 128, c->hidden / 128});
  test_tensor* out =
      test_rig_strided(&rig, "out", TDM_E4M3, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 16, 1});
  test_tensor* out_scale = test_rig_scales(&rig, "out_scale", c->m, columns, 8);
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.5f * deviation, 1.5f * deviation);
  const tdm_view nobodys = tdm_view_slice(w->view, 0, 0, 1);
  test_view_poison(&nobodys);
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(x->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
  }
  for (int64_t m = 0; m < c->live; m++)
    for (int64_t e = 0; e < c->experts; e++) {
      if (!has(c, m, e)) continue;
      const tdm_view part = columns_of(c, out, m, e), scales = scales_of(c, out_scale, m, e);
      test_tensor_allow(out, &part);
      test_tensor_allow(out_scale, &scales);
    }
  const tdm_moe_fc1_args args = {.size = sizeof args,
                                 .n_tokens = live_count(&rig, c),
                                 .x = x->view,
                                 .x_scale = x_scale->view,
                                 .w13 = w->view,
                                 .w13_scale = w_scale->view,
                                 .chosen = make_chosen(&rig, c),
                                 .out = out->view,
                                 .out_scale = out_scale->view,
                                 .swiglu_limit = c->limit};
  const emulated_output outputs[] = {{out, false}, {out_scale, false}};
  emulated_compare(&rig, &(emulated_call){.op = &tdm_op_moe_fc1,
                                          .args = &args,
                                          .outputs = outputs,
                                          .n_outputs = 2,
                                          .kernel = c->kernel,
                                          .counts_launches = counts_launches,
                                          .encode = encode,
                                          .memory_bytes = 1 << 16});
  if (!encode) expect_dense_fc1(&rig, c, args, out, out_scale);
  test_rig_close(&rig);
}

static void expect_dense_fc2(test_rig* rig, const chosen_case* c, tdm_moe_fc2_args args, const test_tensor* out) {
  const test_tensor* dense = test_rig_tensor(rig, "dense", c->out, 2, (int64_t[]){c->m, c->hidden});
  args.chosen = (tdm_view){0};
  args.out = dense->view;
  for (int64_t i = 0; i < c->m * c->experts; i++) /* no weight says so there */
    if (!live_and_has(c, i / c->experts, i % c->experts)) oracle_set(&args.alpha, i, 0.0f);
  emulated_run(rig, &(emulated_call){.op = &tdm_op_moe_fc2, .args = &args, .kernel = "moe_fc2_n"});
  if (c->live == 0) return;
  const tdm_view got = tdm_view_slice(out->view, 0, 0, c->live), want = tdm_view_slice(dense->view, 0, 0, c->live);
  oracle_expect_same_bits(rig->label, &got, &want);
}

static void run_fc2(const chosen_case* c) {
  test_rig rig;
  begin(&rig, "moe_fc2", c);
  const int64_t depth = c->experts * c->intermediate;
  test_tensor* x_scale = test_rig_scales(&rig, "x_scale", c->m, depth, 4);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_E4M3, c->m, depth, depth + 16, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w2", TDM_E4M3, 2, (int64_t[]){c->hidden, depth});
  test_tensor* w_scale = test_rig_tensor(&rig, "w2_scale", F, 2, (int64_t[]){(c->hidden + 127) / 128, depth / 128});
  test_tensor* alpha =
      test_rig_strided(&rig, "alpha", F, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 3, 1});
  test_tensor* out =
      test_rig_strided(&rig, "out", c->out, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 8, 1});
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.001f, 0.003f);
  const tdm_view nobodys = tdm_view_slice(w->view, 1, 0, c->intermediate);
  test_view_poison(&nobodys);
  for (int64_t m = 0; m < c->m; m++)
    for (int64_t e = 0; e < c->experts; e++) {
      const bool weighs = live_and_has(c, m, e) && !weighs_nothing(c, m, e);
      if (live_and_has(c, m, e))
        oracle_set(&alpha->view, m * c->experts + e, weighs ? test_random_uniform(&rig.random, 0.1f, 1.0f) : 0.0f);
      if (weighs) continue;
      const tdm_view part = columns_of(c, x, m, e);
      test_view_poison(&part);
    }
  tdm_moe_fc2_args args = {.size = sizeof args,
                           .n_tokens = live_count(&rig, c),
                           .x = x->view,
                           .x_scale = x_scale->view,
                           .w2 = w->view,
                           .w2_scale = w_scale->view,
                           .alpha = alpha->view,
                           .chosen = make_chosen(&rig, c),
                           .out = out->view,
                           .n_experts = (int32_t)c->experts};
  if (c->addend) {
    test_tensor* addend = test_rig_tensor(&rig, "addend", c->addend, 2, (int64_t[]){c->m, c->hidden});
    test_view_set_normal(&addend->view, &rig.random, 1.0f);
    args.addend = addend->view;
  }
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
                                          .counts_launches = true});
  expect_dense_fc2(&rig, c, args, out);
  test_rig_close(&rig);
}

Test(moe_chosen, fc1_few) {
  for (size_t i = 0; i < sizeof few_cases / sizeof *few_cases; i++) run_fc1(&few_cases[i], false, NULL);
  for (size_t i = 0; i < sizeof deep_cases / sizeof *deep_cases; i++) run_fc1(&deep_cases[i], false, encode_few);
}

Test(moe_chosen, fc1_grouped) {
  for (size_t i = 0; i < sizeof fc1_cases / sizeof *fc1_cases; i++) run_fc1(&fc1_cases[i], true, NULL);
}

Test(moe_chosen, fc1_segments) {
  for (size_t i = 0; i < sizeof fc1_segment_cases / sizeof *fc1_segment_cases; i++)
    run_fc1(&fc1_segment_cases[i], false, NULL);
}

Test(moe_chosen, fc2) {
  for (size_t i = 0; i < sizeof fc2_cases / sizeof *fc2_cases; i++) run_fc2(&fc2_cases[i]);
}

Test(moe_chosen, fc2_segments) {
  for (size_t i = 0; i < sizeof fc2_segment_cases / sizeof *fc2_segment_cases; i++) run_fc2(&fc2_segment_cases[i]);
}
