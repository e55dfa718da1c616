#include <criterion/criterion.h>
#include <math.h>

#include "kernels/moe_experts/moe_experts.h"
#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

/* moe_experts: the bits of moe_fc1's and moe_fc2's kernels over the same experts. */

#define B TDM_BF16
#define F TDM_F32

typedef struct experts_case {
  int64_t m, live, experts, intermediate, hidden;
  int64_t top; /* about so many of the experts that are not special */
  float limit;
  tdm_dtype out;
  tdm_dtype addend; /* 0: none */
  bool weighs;      /* there is alpha */
  bool pow2;
} experts_case;

static const experts_case cases[] = {
    {1, 1, 5, 128, 384, 2, 0.0f, F, 0, true, false},   {1, 1, 4, 256, 896, 2, 5.0f, B, F, true, true},
    {1, 1, 9, 128, 640, 0, 0.0f, F, 0, false, false},  {2, 2, 5, 256, 384, 2, 0.0f, F, F, true, false},
    {7, 5, 9, 128, 256, 4, 5.0f, B, B, true, false},   {8, 8, 9, 128, 896, 3, 0.0f, F, 0, true, true},
    {3, 0, 4, 128, 256, 2, 0.0f, F, F, true, false},   {4, 4, 3, 384, 512, 2, 0.0f, F, B, true, false},
    {8, 7, 4, 1280, 2304, 2, 0.0f, B, F, true, false}, {1, 1, 40, 128, 4096, 4, 0.0f, B, 0, true, false},
};

/* One kernel behind the other in a launch: all variants; fewer tiles than CTAs and more; two segments of FC2 and one;
 * no live row; an expert that all choose. */
static const experts_case many_cases[] = {
    {9, 9, 5, 128, 384, 2, 0.0f, F, 0, true, false},     {16, 12, 9, 256, 256, 3, 5.0f, B, F, true, true},
    {24, 24, 12, 384, 128, 4, 0.0f, F, 0, false, false}, {40, 37, 9, 256, 384, 3, 0.0f, B, B, true, false},
    {64, 0, 5, 128, 256, 2, 0.0f, F, F, true, false},    {70, 70, 7, 128, 512, 2, 0.0f, F, B, true, false},
    {128, 128, 6, 256, 128, 2, 0.0f, B, 0, true, false}, {12, 12, 4, 128, 896, 0, 0.0f, F, 0, true, false},
    {33, 31, 260, 128, 128, 6, 0.0f, B, 0, true, false}, {10, 10, 4, 1280, 256, 2, 0.0f, B, F, true, false},
};

/* Expert 0 is nobody's, expert 1 every third row's, expert 2 the last live row's alone, the last one everybody's. */
static bool has(const void* of, int64_t row, int64_t expert) {
  const experts_case* c = of;
  if (expert == c->experts - 1) return c->top > 0;
  if (expert == 0) return false;
  if (c->top == 0) return false;
  if (expert == 1) return row % 3 == 0;
  if (expert == 2) return row == c->live - 1;
  return (7 * row + 11 * expert) % c->experts < c->top;
}

/* The case's operands; rows of x that are not live, and what nobody chose of the weights, are NaN. */
static tdm_moe_experts_args make(test_rig* rig, const experts_case* c) {
  const int64_t two = 2 * c->intermediate, depth = c->experts * c->intermediate;
  const float deviation = 2.0f / sqrtf((float)c->hidden) / 30.0f; /* gate and up around 2 */
  test_tensor* x_scale = test_rig_scales(rig, "x_scale", c->m, c->hidden, 4);
  test_tensor* x = test_rig_activation(rig, "x", TDM_E4M3, c->m, c->hidden, c->hidden + 16, 1.0f, x_scale);
  test_tensor* w13 = test_rig_tensor(rig, "w13", TDM_E4M3, 3, (int64_t[]){c->experts, two, c->hidden});
  test_tensor* w13_scale = test_rig_tensor(rig, "w13_scale", F, 3, (int64_t[]){c->experts, two / 128, c->hidden / 128});
  test_tensor* w2 = test_rig_tensor(rig, "w2", TDM_E4M3, 2, (int64_t[]){c->hidden, depth});
  test_tensor* w2_scale = test_rig_tensor(rig, "w2_scale", F, 2, (int64_t[]){(c->hidden + 127) / 128, depth / 128});
  test_view_set_normal(&w13->view, &rig->random, 30.0f);
  test_view_set_normal(&w2->view, &rig->random, 30.0f);
  oracle_fill_uniform(&w13_scale->view, &rig->random, 0.5f * deviation, 1.5f * deviation);
  oracle_fill_uniform(&w2_scale->view, &rig->random, 0.001f, 0.003f);
  const tdm_view nobodys[] = {tdm_view_slice(w13->view, 0, 0, 1), tdm_view_slice(w2->view, 1, 0, c->intermediate)};
  for (int i = 0; i < 2; i++) test_view_poison(&nobodys[i]);
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(x->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
  }
  tdm_moe_experts_args args = {.size = sizeof args,
                               .x = x->view,
                               .x_scale = x_scale->view,
                               .w13 = w13->view,
                               .w13_scale = w13_scale->view,
                               .w2 = w2->view,
                               .w2_scale = w2_scale->view,
                               .chosen = test_rig_chosen(rig, c->m, c->live, c->experts, has, c)->view,
                               .swiglu_limit = c->limit,
                               .pow2_scale = c->pow2};
  if (c->live < c->m) args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
  if (c->weighs) {
    test_tensor* alpha =
        test_rig_strided(rig, "alpha", F, 2, (int64_t[]){c->m, c->experts}, (int64_t[]){c->experts + 3, 1});
    for (int64_t i = 0; i < c->m * c->experts; i++) /* of some that were chosen, 0 */
      oracle_set(&alpha->view, i, i % 7 == 6 ? 0.0f : test_random_uniform(&rig->random, 0.1f, 1.0f));
    args.alpha = alpha->view;
  }
  if (c->addend) {
    test_tensor* addend = test_rig_tensor(rig, "addend", c->addend, 2, (int64_t[]){c->m, c->hidden});
    test_view_set_normal(&addend->view, &rig->random, 1.0f);
    args.addend = addend->view;
  }
  return args;
}

/* In the reference's place: the two ops' kernels. */
static struct {
  test_rig* rig;
  test_tensor *values, *scales;
} two;

static tdm_status run_two(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_experts_args* args = void_args;
  (void)plan;
  (void)scratch;
  const tdm_moe_fc1_args fc1 = tdm_moe_experts_fc1(args, &two.values->view, &two.scales->view);
  const tdm_moe_fc2_args fc2 = tdm_moe_experts_fc2(args, &two.values->view, &two.scales->view);
  const bool few = args->x.shape[0] <= 8;
  emulated_run(two.rig, &(emulated_call){.op = &tdm_op_moe_fc1,
                                         .args = &fc1,
                                         .kernel = few ? "moe_fc1_few" : "moe_fc1_grouped_t",
                                         .counts_launches = !few});
  emulated_run(two.rig, &(emulated_call){
                            .op = &tdm_op_moe_fc2, .args = &fc2, .kernel = "moe_fc2_grouped", .counts_launches = true});
  return TDM_OK;
}

static void run(const experts_case* c) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "moe_experts, %lld of %lld rows, %lld x %lld x %lld, top %lld", (long long)c->live,
                 (long long)c->m, (long long)c->experts, (long long)c->intermediate, (long long)c->hidden,
                 (long long)c->top);
  cr_assert(tdm_moe_experts_supported(c->m, c->experts, c->intermediate, c->hidden), "%s", rig.label);
  tdm_moe_experts_args args = make(&rig, c);
  test_tensor* out =
      test_rig_strided(&rig, "out", c->out, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + 8, 1});
  args.out = out->view;
  if (c->live > 0) {
    const tdm_view live = tdm_view_slice(out->view, 0, 0, c->live);
    test_tensor_allow(out, &live);
  }
  two.rig = &rig;
  two.values = test_rig_tensor(&rig, "values", TDM_E4M3, 2, (int64_t[]){c->m, c->experts * c->intermediate});
  two.scales = test_rig_scales(&rig, "scales", c->m, c->experts * c->intermediate, 0);
  test_tensor_allow(two.values, &two.values->view);
  test_tensor_allow(two.scales, &two.scales->view);
  tdm_op op = tdm_op_moe_experts;
  op.ref = run_two;
  const emulated_output output = {out, true};
  emulated_compare(&rig, &(emulated_call){.op = &op,
                                          .args = &args,
                                          .outputs = &output,
                                          .n_outputs = 1,
                                          .kernel = c->m > 8    ? "moe_experts_many_t"
                                                    : c->m <= 2 ? "moe_experts_n19"
                                                                : "moe_experts_n32",
                                          .counts_launches = c->m > 8});
  test_rig_close(&rig);
}

Test(moe_experts, has_the_bits_of_the_two_kernels) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run(&cases[i]);
}

Test(moe_experts, has_the_bits_of_the_two_kernels_for_many) {
  for (size_t i = 0; i < sizeof many_cases / sizeof *many_cases; i++) run(&many_cases[i]);
}
