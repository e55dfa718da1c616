/* moe_fc1 and moe_fc2. Bounds: fc1's values are quantised from sums that differ in the 14th bit, so some round the
 * other way: e4m3 1e-4, scales 1e-7; fc2 f32 1e-7, bf16 1e-6. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/moe_fc1/moe_fc1_sm90.h"
#include "kernels/moe_fc2/moe_fc2_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

static const int64_t row_counts[] = {1, 2, 3, 7, 16, 17, 24, 37, 64, 65, 100, 128, 129, 257, 1025, 1500};

static void fill(gpu_rig* rig, gpu_tensor* tensor) {
  gpu_random_e4m3(rig, tensor->host + GPU_GUARD_BYTES, tensor->bytes - 2 * GPU_GUARD_BYTES);
}

static void launch_fc1(gpu_rig* rig, tdm_moe_fc1_args args, int64_t rows, int32_t sms) {
  args.x.shape[0] = args.out.shape[0] = rows;
  args.x_scale.shape[1] = args.out_scale.shape[1] = rows;
  tdm_moe_fc1_sm90_plan plan;
  tdm_moe_fc1_sm90_make_plan(rows, args.out.shape[1], args.x.shape[1], sms, &plan);
  CUdeviceptr partials = gpu_scratch(rig, plan.partial_bytes, 0xff), counters = gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_moe_fc1_params params;
  if (tdm_moe_fc1_sm90_params(&args, &plan, (void*)(uintptr_t)partials, (void*)(uintptr_t)counters, gpu_encode, rig,
                              &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

/* Scales of live rows have want's bits, the pads to the next multiple of 4 are zero, all else is 0xff. */
static void expect_scales(gpu_rig* rig, gpu_tensor* scale, uint8_t* want, int64_t live) {
  int64_t padded = (live + 3) / 4 * 4, stride = scale->view.stride[0];
  for (int64_t block = 0; block < scale->view.shape[0]; block++)
    for (int64_t i = live; i < padded; i++) memset(want + GPU_GUARD_BYTES + (block * stride + i) * 4, 0, 4);
  gpu_tensor padded_scale = *scale;
  padded_scale.view.shape[1] = stride;
  gpu_expect_rows(rig, &padded_scale, want, 1, padded);
}

static void run_fc1(gpu_rig* rig, int64_t max_rows, int64_t experts, int64_t intermediate, int64_t hidden, float limit,
                    bool pow2, bool broken, bool quick) {
  gpu_begin(rig, "moe_fc1 up to %lld, %lld x %lld x %lld limit %g pow2 %d broken %d", (long long)max_rows,
            (long long)experts, (long long)intermediate, (long long)hidden, (double)limit, pow2, broken);
  int64_t columns = experts * intermediate;
  gpu_tensor* x = gpu_make(rig, "x", TDM_E4M3, 2, (int64_t[]){max_rows, hidden});
  gpu_tensor* x_scale = gpu_make_scales(rig, "x_scale", max_rows, hidden);
  gpu_tensor* w = gpu_make(rig, "w13", TDM_E4M3, 3, (int64_t[]){experts, 2 * intermediate, hidden});
  gpu_tensor* w_scale =
      gpu_make(rig, "w13_scale", TDM_F32, 3, (int64_t[]){experts, 2 * intermediate / 128, hidden / 128});
  gpu_tensor* out =
      gpu_make_strided(rig, "out", TDM_E4M3, 2, (int64_t[]){max_rows, columns}, (int64_t[]){columns + 16, 1});
  gpu_tensor* out_scale = gpu_make_scales(rig, "out_scale", max_rows, columns);
  fill(rig, x);
  fill(rig, w);
  gpu_fill_uniform(rig, x_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.0003f, 0.001f);
  if (broken) x->host[GPU_GUARD_BYTES + hidden] = 0x7f; /* a NaN in row 1 */
  tdm_moe_fc1_args args = {.size = sizeof args,
                           .x = x->view,
                           .x_scale = x_scale->view,
                           .w13 = w->view,
                           .w13_scale = w_scale->view,
                           .out = out->view,
                           .out_scale = out_scale->view,
                           .swiglu_limit = limit,
                           .pow2_scale = pow2};
  gpu_upload(rig);
  tdm_moe_fc1_args device = args;
  if (!gpu_reference(rig, &tdm_op_moe_fc1, &args)) {
    gpu_end(rig);
    gpu_free(rig);
    return;
  }
  device.quant_eps = args.quant_eps;
  gpu_to_device(rig, &tdm_op_moe_fc1, &device);
  launch_fc1(rig, device, max_rows, rig->sms);
  gpu_download(rig);
  gpu_expect_close(rig, out, 1e-4);
  gpu_expect_close(rig, out_scale, 1e-7);
  uint8_t *bits = malloc(out->bytes), *scale_bits = malloc(out_scale->bytes);
  if (!bits || !scale_bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_poison(out);
  gpu_poison(out_scale);
  gpu_end(rig);
  uint8_t* all_scales = malloc(out_scale->bytes);
  if (!all_scales) abort();
  memcpy(all_scales, out_scale->got, out_scale->bytes);
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    int64_t rows = row_counts[i];
    if (rows > max_rows || (quick && rows > 37)) continue;
    for (int live = 0; live < 2; live++) {
      gpu_begin(rig, "moe_fc1 %lld%s, %lld x %lld x %lld", (long long)rows, live ? " live" : "", (long long)experts,
                (long long)intermediate, (long long)hidden);
      gpu_upload_one(rig, out);
      gpu_upload_one(rig, out_scale);
      memcpy(scale_bits, all_scales, out_scale->bytes);
      if (live) {
        gpu_tensor* count = gpu_make_count(rig, "n_tokens", (int32_t)rows);
        gpu_upload_one(rig, count);
        tdm_moe_fc1_args counted = device;
        counted.n_tokens = count->view;
        gpu_to_device(rig, &tdm_op_moe_fc1, &counted);
        launch_fc1(rig, counted, max_rows, rig->sms);
      } else {
        launch_fc1(rig, device, rows, 5);
      }
      gpu_download(rig);
      gpu_expect_rows(rig, out, bits, 0, rows);
      expect_scales(rig, out_scale, scale_bits, rows);
      gpu_end(rig);
      if (live) {
        gpu_tensor* count = &rig->tensors[--rig->n_tensors];
        gpu_free_one(count);
      }
    }
  }
  free(bits);
  free(scale_bits);
  free(all_scales);
  gpu_free(rig);
}

void test_moe_fc1(gpu_rig* rig, bool quick) {
  if (quick) {
    run_fc1(rig, 65, 2, 128, 256, 0, false, false, true);
    return;
  }
  run_fc1(rig, 1500, 3, 128, 256, 0, false, true, false);
  run_fc1(rig, 257, 2, 256, 384, 2.0f, true, true, false);
  run_fc1(rig, 130, 1, 1152, 1280, 0, false, false, false);
  run_fc1(rig, 65, 2, 256, 7168, 7.0f, false, false, false);
}

static void launch_fc2(gpu_rig* rig, tdm_moe_fc2_args args, int64_t rows, int32_t sms) {
  args.x.shape[0] = args.out.shape[0] = rows;
  args.x_scale.shape[1] = rows;
  if (tdm_view_present(&args.alpha)) args.alpha.shape[0] = rows;
  if (tdm_view_present(&args.addend)) args.addend.shape[0] = rows;
  tdm_moe_fc2_sm90_plan plan;
  tdm_moe_fc2_sm90_make_plan(rows, args.w2.shape[0], args.n_experts, args.x.shape[1] / args.n_experts,
                             tdm_view_present(&args.alpha), sms, &plan);
  CUdeviceptr scratch = gpu_scratch(rig, plan.scratch_bytes, 0xff);
  CUdeviceptr counters = gpu_scratch(rig, plan.gemm.counter_bytes, 0);
  tdm_moe_fc2_fold_params fold;
  tdm_gemm_fp8_params params;
  if (tdm_moe_fc2_sm90_params(&args, &plan, (void*)(uintptr_t)scratch, (void*)(uintptr_t)counters, gpu_encode, rig,
                              &fold, &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  if (plan.folds) gpu_launch(rig, &plan.fold, &fold, sizeof fold);
  gpu_launch(rig, &plan.gemm.launch, &params, sizeof params);
}

static void run_fc2(gpu_rig* rig, int64_t max_rows, int64_t experts, int64_t intermediate, int64_t hidden,
                    tdm_dtype dtype, tdm_dtype addend_dtype, bool routed, bool quick) {
  gpu_begin(rig, "moe_fc2 up to %lld, %lld x %lld x %lld dtype %d addend %d routed %d", (long long)max_rows,
            (long long)experts, (long long)intermediate, (long long)hidden, dtype, addend_dtype, routed);
  int64_t depth = experts * intermediate;
  gpu_tensor* x = gpu_make(rig, "x", TDM_E4M3, 2, (int64_t[]){max_rows, depth});
  gpu_tensor* x_scale = gpu_make_scales(rig, "x_scale", max_rows, depth);
  gpu_tensor* w = gpu_make(rig, "w2", TDM_E4M3, 2, (int64_t[]){hidden, depth});
  gpu_tensor* w_scale = gpu_make(rig, "w2_scale", TDM_F32, 2, (int64_t[]){(hidden + 127) / 128, depth / 128});
  gpu_tensor* out = gpu_make(rig, "out", dtype, 2, (int64_t[]){max_rows, hidden});
  fill(rig, x);
  fill(rig, w);
  gpu_fill_uniform(rig, x_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
  tdm_moe_fc2_args args = {.size = sizeof args,
                           .x = x->view,
                           .x_scale = x_scale->view,
                           .w2 = w->view,
                           .w2_scale = w_scale->view,
                           .out = out->view,
                           .n_experts = (int32_t)experts};
  if (routed) {
    gpu_tensor* alpha = gpu_make(rig, "alpha", TDM_F32, 2, (int64_t[]){max_rows, experts});
    gpu_fill_uniform(rig, alpha, 0.1f, 1.0f);
    /* Half of the experts unchosen; in row 2 the activations of one of those and their scales are NaN. */
    float* values = (float*)(void*)(alpha->host + GPU_GUARD_BYTES);
    for (int64_t i = 0; i < max_rows * experts; i++)
      if (gpu_random(rig) & 1) values[i] = 0;
    if (max_rows > 2) {
      values[2 * experts + experts / 2] = 0;
      memset(x->host + GPU_GUARD_BYTES + 2 * depth + experts / 2 * intermediate, 0x7f, (size_t)intermediate);
      float* scales = (float*)(void*)(x_scale->host + GPU_GUARD_BYTES);
      for (int64_t b = 0; b < intermediate / 128; b++)
        scales[(experts / 2 * intermediate / 128 + b) * x_scale->view.stride[0] + 2] = NAN;
    }
    args.alpha = alpha->view;
  }
  if (addend_dtype) {
    gpu_tensor* addend = gpu_make(rig, "addend", addend_dtype, 2, (int64_t[]){max_rows, hidden});
    gpu_fill_normal(rig, addend, 1.0f);
    args.addend = addend->view;
  }
  gpu_upload(rig);
  tdm_moe_fc2_args device = args;
  /* Where the reference takes too long, the forms are compared with one another. */
  bool compares = max_rows * hidden * depth < INT64_C(1) << 32;
  if (compares && !gpu_reference(rig, &tdm_op_moe_fc2, &args)) {
    gpu_end(rig);
    gpu_free(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_moe_fc2, &device);
  launch_fc2(rig, device, max_rows, rig->sms);
  gpu_download(rig);
  if (compares) gpu_expect_close(rig, out, dtype == TDM_F32 ? 1e-7 : 1e-6);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_poison(out);
  gpu_end(rig);
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    int64_t rows = row_counts[i];
    if (rows > max_rows || (quick && rows > 37)) continue;
    gpu_begin(rig, "moe_fc2 %lld, %lld x %lld x %lld", (long long)rows, (long long)experts, (long long)intermediate,
              (long long)hidden);
    gpu_upload_one(rig, out);
    launch_fc2(rig, device, rows, i % 2 ? 5 : rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, 0, rows);
    gpu_end(rig);
  }
  gpu_begin(rig, "moe_fc2 1 live, %lld x %lld x %lld", (long long)experts, (long long)intermediate, (long long)hidden);
  gpu_tensor* count = gpu_make_count(rig, "n_tokens", 1);
  gpu_upload_one(rig, count);
  gpu_upload_one(rig, out);
  device.n_tokens = count->view;
  gpu_to_device(rig, &tdm_op_moe_fc2, &device);
  launch_fc2(rig, device, max_rows, rig->sms);
  gpu_download(rig);
  gpu_expect_rows(rig, out, bits, 0, 1);
  gpu_end(rig);
  free(bits);
  gpu_free(rig);
}

void test_moe_fc2(gpu_rig* rig, bool quick) {
  if (quick) {
    run_fc2(rig, 65, 3, 128, 320, TDM_BF16, TDM_BF16, true, true);
    return;
  }
  run_fc2(rig, 1500, 3, 128, 320, TDM_BF16, TDM_BF16, true, false);
  run_fc2(rig, 257, 5, 384, 384, TDM_F32, TDM_F32, true, false);
  run_fc2(rig, 130, 1, 1152, 576, TDM_F32, 0, false, false);
  run_fc2(rig, 65, 32, 256, 512, TDM_BF16, 0, true, false);
  run_fc2(rig, 130, 99, 128, 6144, TDM_BF16, TDM_BF16, true, false); /* K cut in two: gemm_fp8_sm90.c */
}
