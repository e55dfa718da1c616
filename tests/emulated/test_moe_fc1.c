#include <string.h>

#include <criterion/criterion.h>
#include <math.h>

#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

typedef struct fc1_case {
  int64_t m, live, experts, intermediate, hidden;
  bool listed; /* two experts of three */
  bool broken; /* NaN in row 1 */
  bool pow2;
  float limit;
  const char* kernel;
} fc1_case;

static const fc1_case swap_cases[] = {
    {1, 1, 3, 128, 384, false, false, false, 0.0f, "moe_fc1_swap_t8"},
    {8, 5, 5, 128, 640, true, false, false, 0.0f, "moe_fc1_swap_t8"},
    {7, 0, 2, 128, 256, false, false, false, 0.0f, "moe_fc1_swap_t8"},
    {16, 13, 2, 256, 384, false, true, true, 5.0f, "moe_fc1_swap_t16"},
    {17, 17, 4, 128, 512, true, false, false, 0.0f, "moe_fc1_swap_t24"},
    {32, 27, 3, 128, 768, false, true, false, 4.0f, "moe_fc1_swap_t32"},
};

static const fc1_case upright_cases[] = {
    {37, 34, 3, 128, 640, false, false, false, 0.0f, "moe_fc1_t64"},
    {64, 64, 4, 128, 384, true, true, true, 5.0f, "moe_fc1_t64"},
    {33, 0, 2, 128, 256, true, false, false, 0.0f, "moe_fc1_t64"},
    {100, 65, 4, 128, 384, true, false, false, 0.0f, "moe_fc1_t128"},
    {129, 129, 2, 256, 384, false, true, false, 4.0f, "moe_fc1_t128"},
    {200, 64, 2, 128, 256, false, false, false, 0.0f, "moe_fc1_t128"},
};

/* Tiles in pieces: of segments of a long sum, or for few tokens' experts. */
static const fc1_case split_cases[] = {
    {1, 1, 7, 128, 384, true, false, false, 0.0f, "moe_fc1_split_n32t64"},
    {4, 3, 5, 256, 256, true, true, false, 4.0f, "moe_fc1_split_n64t64"},
    {1, 1, 1, 128, 1536, false, false, false, 0.0f, "moe_fc1_split_n64t64"},
    {37, 22, 4, 128, 2304, true, false, false, 0.0f, "moe_fc1_split_n64t64"},
    {5, 0, 1, 128, 1536, false, false, false, 0.0f, "moe_fc1_split_n64t64"},
    {64, 64, 1, 256, 1920, false, true, true, 5.0f, "moe_fc1_split_n64t64"},
    {65, 65, 1, 128, 1536, false, true, false, 4.0f, "moe_fc1_split_n64t128"},
    {150, 131, 2, 128, 1536, true, false, false, 0.0f, "moe_fc1_split_n64t128"},
};

static bool is_hit(const fc1_case* c, int64_t expert) {
  return !c->listed || expert % 3 != 1;
}

/* The experts that are hit may be written; the weights of the others are NaN, which must show nowhere. */
static tdm_view make_hits(test_rig* rig, const fc1_case* c, const test_tensor* w) {
  test_tensor* hits = test_rig_tensor(rig, "hits", TDM_I32, 1, (int64_t[]){1 + c->experts});
  int32_t* list = tdm_view_data(&hits->view);
  list[0] = 0;
  for (int64_t e = 0; e < c->experts; e++) {
    const tdm_view weights = tdm_view_slice(w->view, 0, e, 1);
    if (is_hit(c, e))
      list[1 + list[0]++] = (int32_t)e;
    else
      test_view_poison(&weights);
  }
  return hits->view;
}

static void allow(const fc1_case* c, test_tensor* out, test_tensor* out_scale) {
  for (int64_t e = 0; e < c->experts && c->live > 0; e++) {
    if (!is_hit(c, e)) continue;
    const tdm_view columns = tdm_view_slice(out->view, 1, e * c->intermediate, c->intermediate),
                   part = tdm_view_slice(columns, 0, 0, c->live);
    tdm_view scales = tdm_view_slice(out_scale->view, 0, e * c->intermediate / 128, c->intermediate / 128);
    scales.shape[1] = tdm_scale_stride(c->live);
    test_tensor_allow(out, &part);
    test_tensor_allow(out_scale, &scales);
  }
}

static void run(const fc1_case* c) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "moe_fc1 %lld of %lld rows, %s%lld x %lld x %lld", (long long)c->live, (long long)c->m,
                 c->listed ? "some of " : "", (long long)c->experts, (long long)c->intermediate, (long long)c->hidden);
  const int64_t columns = c->experts * c->intermediate, two = 2 * c->intermediate;
  const float deviation = 2.0f / sqrtf((float)c->hidden) / 30.0f; /* gate and up around 2 */
  test_tensor* x_scale = test_rig_scales(&rig, "x_scale", c->m, c->hidden, 4);
  test_tensor* x = test_rig_activation(&rig, "x", TDM_E4M3, c->m, c->hidden, c->hidden + 16, 1.0f, x_scale);
  test_tensor* w = test_rig_tensor(&rig, "w13", TDM_E4M3, 3, (int64_t[]){c->experts, two, c->hidden});
  test_tensor* w_scale =
      test_rig_tensor(&rig, "w13_scale", TDM_F32, 3, (int64_t[]){c->experts, two / 128, c->hidden / 128});
  test_tensor* out =
      test_rig_strided(&rig, "out", TDM_E4M3, 2, (int64_t[]){c->m, columns}, (int64_t[]){columns + 16, 1});
  test_tensor* out_scale = test_rig_scales(&rig, "out_scale", c->m, columns, 8);
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.5f * deviation, 1.5f * deviation);
  if (c->broken) oracle_set(&x->view, c->hidden + 131, NAN);
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(x->view, 0, c->live, c->m - c->live);
    test_view_poison(&dead);
  }
  tdm_moe_fc1_args args = {.size = sizeof args,
                           .x = x->view,
                           .x_scale = x_scale->view,
                           .w13 = w->view,
                           .w13_scale = w_scale->view,
                           .out = out->view,
                           .out_scale = out_scale->view,
                           .swiglu_limit = c->limit,
                           .pow2_scale = c->pow2};
  if (c->listed) args.hits = make_hits(&rig, c, w);
  if (c->live < c->m) args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)c->live)->view;
  allow(c, out, out_scale);
  const emulated_output outputs[] = {{out, false}, {out_scale, false}};
  emulated_compare(&rig, &(emulated_call){.op = &tdm_op_moe_fc1,
                                          .args = &args,
                                          .outputs = outputs,
                                          .n_outputs = 2,
                                          .kernel = c->kernel,
                                          .counts_launches = strstr(c->kernel, "swap") != NULL});
  test_rig_close(&rig);
}

Test(moe_fc1, swap) {
  for (size_t i = 0; i < sizeof swap_cases / sizeof *swap_cases; i++) run(&swap_cases[i]);
}

Test(moe_fc1, upright) {
  for (size_t i = 0; i < sizeof upright_cases / sizeof *upright_cases; i++) run(&upright_cases[i]);
}

Test(moe_fc1, split) {
  for (size_t i = 0; i < sizeof split_cases / sizeof *split_cases; i++) run(&split_cases[i]);
}
