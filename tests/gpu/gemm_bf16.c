/* gemm_bf16 and router_gemm. Bounds: f32 output 1e-10 (order of additions), bf16 output 1e-6. The same row has the same
 * bits in every batch. */

#include <stdlib.h>
#include <string.h>

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/ops.h"
#include "kernels/router_gemm/router_gemm_sm90.h"
#include "tests/gpu/gpu.h"

static const int64_t row_counts[] = {1, 2, 3, 7, 16, 17, 24, 37, 64, 65, 100, 128, 129, 257, 1025, 1500};

typedef struct gemm_case {
  int64_t batch; /* 0: rank 2 */
  int64_t max_rows, n, k;
  bool mn_major;
  tdm_dtype out;
  int64_t gap;
  bool heads_inside; /* batch between rows and columns, [M, B, K], as attention has it */
} gemm_case;

static void launch_gemm(gpu_rig* rig, tdm_gemm_bf16_args args, int64_t rows, int32_t sms) {
  int32_t dim = args.a.rank - 2;
  args.a.shape[dim] = args.out.shape[dim] = rows;
  tdm_gemm_bf16_sm90_plan plan;
  tdm_gemm_bf16_sm90_make_plan(dim ? args.a.shape[0] : 1, rows, args.w.shape[dim], args.a.shape[dim + 1],
                               tdm_gemm_bf16_sm90_mn_major(&args.w), sms, &plan);
  CUdeviceptr partials = gpu_scratch(rig, plan.partial_bytes, 0xff), counters = gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_gemm_bf16_params params;
  if (tdm_gemm_bf16_sm90_params(&args, &plan, (void*)(uintptr_t)partials, (void*)(uintptr_t)counters, gpu_encode, rig,
                                &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

static void run_gemm(gpu_rig* rig, const gemm_case* c, bool quick) {
  int64_t batch = c->batch ? c->batch : 1;
  gpu_begin(rig, "gemm_bf16 %lld x up to %lld x %lld x %lld %s dtype %d", (long long)c->batch, (long long)c->max_rows,
            (long long)c->n, (long long)c->k, c->mn_major ? "mn-major" : "k-major", c->out);
  int32_t first = c->batch ? 0 : 1, rank = c->batch ? 3 : 2;
  int64_t a_row = c->k + 8 * c->gap, out_row = c->n + c->gap;
  int64_t a_shape[] = {batch, c->max_rows, c->k}, a_stride[] = {c->max_rows * a_row, a_row, 1};
  int64_t out_shape[] = {batch, c->max_rows, c->n}, out_stride[] = {c->max_rows * out_row, out_row, 1};
  if (c->heads_inside) {
    a_stride[0] = a_row;
    a_stride[1] = batch * a_row;
    out_stride[0] = out_row;
    out_stride[1] = batch * out_row;
  }
  int64_t w_shape[] = {batch, c->n, c->k}, w_stride[] = {2 * c->n * c->k, c->k, 1};
  if (c->mn_major) {
    w_stride[1] = 1;
    w_stride[2] = c->n;
  }
  gpu_tensor* a = gpu_make_strided(rig, "a", TDM_BF16, rank, a_shape + first, a_stride + first);
  gpu_tensor* w = gpu_make_strided(rig, "w", TDM_BF16, rank, w_shape + first, w_stride + first);
  gpu_tensor* out = gpu_make_strided(rig, "out", c->out, rank, out_shape + first, out_stride + first);
  gpu_fill_normal(rig, a, 1.0f);
  gpu_fill_normal(rig, w, 0.05f);
  tdm_gemm_bf16_args args = {.size = sizeof args, .a = a->view, .w = w->view, .out = out->view};
  gpu_upload(rig);
  tdm_gemm_bf16_args device = args;
  if (!gpu_reference(rig, &tdm_op_gemm_bf16, &args)) {
    gpu_end(rig);
    gpu_free(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_gemm_bf16, &device);
  launch_gemm(rig, device, c->max_rows, rig->sms);
  gpu_download(rig);
  gpu_expect_close(rig, out, c->out == TDM_F32 ? 1e-10 : 1e-6);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_poison(out);
  gpu_end(rig);
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    int64_t rows = row_counts[i];
    if (rows > c->max_rows || (quick && rows > 37)) continue;
    gpu_begin(rig, "gemm_bf16 %lld x %lld x %lld x %lld %s dtype %d", (long long)c->batch, (long long)rows,
              (long long)c->n, (long long)c->k, c->mn_major ? "mn-major" : "k-major", c->out);
    gpu_upload_one(rig, out);
    launch_gemm(rig, device, rows, i % 2 ? 5 : rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, rank - 2, rows);
    gpu_end(rig);
  }
  static const int32_t lives[] = {0, 3, 37};
  for (size_t i = 0; i < sizeof lives / sizeof *lives; i++) {
    if (lives[i] > c->max_rows) continue;
    gpu_begin(rig, "gemm_bf16 %lld x %lld x %lld live %d", (long long)c->batch, (long long)c->n, (long long)c->k,
              lives[i]);
    gpu_tensor* count = gpu_make_count(rig, "n_tokens", lives[i]);
    gpu_upload_one(rig, count);
    gpu_upload_one(rig, out);
    tdm_gemm_bf16_args counted = device;
    counted.n_tokens = count->view;
    gpu_to_device(rig, &tdm_op_gemm_bf16, &counted);
    launch_gemm(rig, counted, c->max_rows, rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, rank - 2, lives[i]);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

void test_gemm_bf16(gpu_rig* rig, bool quick) {
  static const gemm_case cases[] = {
      {0, 65, 576, 320, false, TDM_BF16, 0, false},   {0, 65, 100, 1024, false, TDM_F32, 1, false},
      {0, 65, 72, 1000, true, TDM_F32, 0, false},     {3, 65, 512, 128, true, TDM_BF16, 8, true},
      {0, 1500, 576, 384, false, TDM_BF16, 0, false}, {4, 1500, 512, 128, true, TDM_BF16, 0, true},
      {4, 257, 128, 512, false, TDM_BF16, 64, true},  {2, 129, 200, 264, false, TDM_F32, 4, false},
      {0, 300, 2112, 1024, false, TDM_F32, 0, false}, {128, 64, 512, 128, true, TDM_BF16, 8, true},
      {0, 16, 16000, 7168, false, TDM_F32, 0, false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !(quick && i == 4); i++) run_gemm(rig, &cases[i], quick);
}

static void launch_router(gpu_rig* rig, tdm_router_gemm_args args, int64_t rows) {
  args.x.shape[0] = args.logits.shape[0] = rows;
  tdm_gemm_bf16_sm90_plan plan;
  tdm_router_gemm_sm90_make_plan(rows, args.w.shape[0], args.x.shape[1], rig->sms, &plan);
  CUdeviceptr partials = gpu_scratch(rig, plan.partial_bytes, 0xff), counters = gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_gemm_bf16_params params;
  if (tdm_router_gemm_sm90_params(&args, &plan, (void*)(uintptr_t)partials, (void*)(uintptr_t)counters, gpu_encode, rig,
                                  &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

static void run_router(gpu_rig* rig, int64_t max_rows, int64_t experts, int64_t hidden, bool quick) {
  gpu_begin(rig, "router_gemm up to %lld x %lld x %lld", (long long)max_rows, (long long)experts, (long long)hidden);
  gpu_tensor* x = gpu_make(rig, "x", TDM_BF16, 2, (int64_t[]){max_rows, hidden});
  gpu_tensor* w = gpu_make(rig, "w", TDM_BF16, 2, (int64_t[]){experts, hidden});
  gpu_tensor* logits = gpu_make(rig, "logits", TDM_F32, 2, (int64_t[]){max_rows, experts});
  gpu_fill_normal(rig, x, 1.0f);
  gpu_fill_normal(rig, w, 0.02f);
  tdm_router_gemm_args args = {.size = sizeof args, .x = x->view, .w = w->view, .logits = logits->view};
  gpu_upload(rig);
  tdm_router_gemm_args device = args;
  if (gpu_reference(rig, &tdm_op_router_gemm, &args)) {
    gpu_to_device(rig, &tdm_op_router_gemm, &device);
    launch_router(rig, device, max_rows);
    gpu_download(rig);
    gpu_expect_close(rig, logits, 1e-10);
  }
  uint8_t* bits = malloc(logits->bytes);
  if (!bits) abort();
  memcpy(bits, logits->got, logits->bytes);
  gpu_poison(logits);
  gpu_end(rig);
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    int64_t rows = row_counts[i];
    if (rows > max_rows || (quick && rows > 37)) continue;
    gpu_begin(rig, "router_gemm %lld x %lld x %lld", (long long)rows, (long long)experts, (long long)hidden);
    gpu_upload_one(rig, logits);
    launch_router(rig, device, rows);
    gpu_download(rig);
    gpu_expect_rows(rig, logits, bits, 0, rows);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

void test_router_gemm(gpu_rig* rig, bool quick) {
  run_router(rig, 65, 72, 1024, quick);
  if (quick) return;
  run_router(rig, 257, 256, 7168, false);
  run_router(rig, 130, 384, 7168, false);
  run_router(rig, 1500, 8, 384, false);
}
