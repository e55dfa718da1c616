#include <criterion/criterion.h>

#include "kernels/ops.h"
#include "tests/emulated/run.h"
#include "tests/kernels/oracle.h"

#define B TDM_BF16
#define F TDM_F32

typedef struct gemm_case {
  int64_t m, live, n, k;
  tdm_dtype out;
  const char* kernel;
  const char* few_kernel; /* as for emulated_call, and so is sms */
  int32_t sms[EMULATED_RUNS];
} gemm_case;

static const gemm_case swap_cases[] = {
    {1, 1, 136, 384, F, .kernel = "gemm_fp8_swap_n64t8"},    {7, 4, 328, 640, B, .kernel = "gemm_fp8_swap_n64t8"},
    {8, 0, 128, 256, F, .kernel = "gemm_fp8_swap_n64t8"},    {16, 13, 200, 512, B, .kernel = "gemm_fp8_swap_n64t16"},
    {17, 17, 576, 384, F, .kernel = "gemm_fp8_swap_n64t24"}, {32, 27, 264, 768, B, .kernel = "gemm_fp8_swap_n64t32"},
};

static const gemm_case upright_cases[] = {
    {37, 34, 200, 640, F, .kernel = "gemm_fp8_n64t64"},
    {64, 64, 328, 384, B, .kernel = "gemm_fp8_n64t64"},
    {40, 0, 128, 256, F, .kernel = "gemm_fp8_n64t64"},
    {65, 65, 264, 384, B, "gemm_fp8_n64t128", "gemm_fp8_n128t128", {132, 3, 4}},
    {128, 70, 200, 512, F, "gemm_fp8_n64t128", "gemm_fp8_n128t128", {132, 3, 2}},
};

/* The sum is long: segments are units of their own. */
static const gemm_case segment_cases[] = {
    {3, 3, 136, 3072, F, .kernel = "gemm_fp8_swap_n64t8"},
    {32, 30, 200, 2560, B, .kernel = "gemm_fp8_swap_n64t32"},
    {40, 33, 136, 3072, F, .kernel = "gemm_fp8_n64t64"},
    {100, 100, 128, 2560, B, .kernel = "gemm_fp8_n64t128"},
    {130, 129, 128, 3072, F, .kernel = "gemm_fp8_swap_n64t128", .sms = {132, 66, 48}},
};

/* Tiles of 128 weight rows on few SMs, of 64 on many. */
static const gemm_case wide_cases[] = {
    {5, 4, 2560, 384, F, "gemm_fp8_swap_n64t8", "gemm_fp8_swap_n128t8", {0}},
    {16, 16, 2568, 256, F, "gemm_fp8_swap_n64t16", "gemm_fp8_swap_n128t16", {0}},
    {24, 23, 2568, 512, B, "gemm_fp8_swap_n64t24", "gemm_fp8_swap_n128t24", {0}},
    {32, 32, 2560, 768, B, "gemm_fp8_swap_n64t32", "gemm_fp8_swap_n128t32", {0}},
    {40, 33, 1536, 384, F, "gemm_fp8_n64t64", "gemm_fp8_swap_n128t64", {132, 3, 2}},
    {100, 100, 1544, 256, B, "gemm_fp8_n64t128", "gemm_fp8_swap_n128t128", {132, 3, 2}},
};

static void run(const gemm_case* c) {
  test_rig rig;
  test_rig_open(&rig);
  test_rig_label(&rig, "gemm_fp8 %lld of %lld rows, %lld x %lld", (long long)c->live, (long long)c->m, (long long)c->n,
                 (long long)c->k);
  test_tensor* a_scale = test_rig_scales(&rig, "a_scale", c->m, c->k, 4);
  test_tensor* a = test_rig_activation(&rig, "a", TDM_E4M3, c->m, c->k, c->k + 16, 1.0f, a_scale);
  test_tensor* w = test_rig_strided(&rig, "w", TDM_E4M3, 2, (int64_t[]){c->n, c->k}, (int64_t[]){c->k + 32, 1});
  test_tensor* w_scale = test_rig_tensor(&rig, "w_scale", F, 2, (int64_t[]){(c->n + 127) / 128, c->k / 128});
  test_tensor* out = test_rig_strided(&rig, "out", c->out, 2, (int64_t[]){c->m, c->n}, (int64_t[]){c->n + 8, 1});
  test_view_set_normal(&w->view, &rig.random, 30.0f);
  oracle_fill_uniform(&w_scale->view, &rig.random, 0.001f, 0.003f);
  tdm_gemm_fp8_args args = {.size = sizeof args,
                            .a = a->view,
                            .a_scale = a_scale->view,
                            .w = w->view,
                            .w_scale = w_scale->view,
                            .out = out->view};
  if (c->live < c->m) {
    const tdm_view dead = tdm_view_slice(a->view, 0, c->live, c->m - c->live),
                   scales = tdm_view_slice(a_scale->view, 1, c->live, c->m - c->live);
    test_view_poison(&dead);
    test_view_poison(&scales);
    args.n_tokens = test_rig_count(&rig, "n_tokens", (int32_t)c->live)->view;
  }
  if (c->live > 0) {
    const tdm_view live = tdm_view_slice(out->view, 0, 0, c->live);
    test_tensor_allow(out, &live);
  }
  const emulated_output output = {out, false};
  emulated_compare(&rig, &(emulated_call){.op = &tdm_op_gemm_fp8,
                                          .args = &args,
                                          .outputs = &output,
                                          .n_outputs = 1,
                                          .kernel = c->kernel,
                                          .few_kernel = c->few_kernel,
                                          .sms = {c->sms[0], c->sms[1], c->sms[2]}});
  test_rig_close(&rig);
}

Test(gemm_fp8, swap) {
  for (size_t i = 0; i < sizeof swap_cases / sizeof *swap_cases; i++) run(&swap_cases[i]);
}

Test(gemm_fp8, upright) {
  for (size_t i = 0; i < sizeof upright_cases / sizeof *upright_cases; i++) run(&upright_cases[i]);
}

Test(gemm_fp8, segments) {
  for (size_t i = 0; i < sizeof segment_cases / sizeof *segment_cases; i++) run(&segment_cases[i]);
}

Test(gemm_fp8, wide) {
  for (size_t i = 0; i < sizeof wide_cases / sizeof *wide_cases; i++) run(&wide_cases[i]);
}
