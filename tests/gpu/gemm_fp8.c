/* gemm_fp8. Bounds against the reference, which adds a block's FP8 products exactly where the tensor cores keep about
 * 14 bits: f32 output 1e-7, bf16 output 1e-6. Bits: the same row in every batch, in every run. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

static void fill(gpu_rig* rig, gpu_tensor* tensor) {
  gpu_random_e4m3(rig, tensor->host + GPU_GUARD_BYTES, tensor->bytes - 2 * GPU_GUARD_BYTES);
}

/* Launches for `rows` of args' rows with the variant given (tile rows -1: the planner's choice). */
static void launch_rows(gpu_rig* rig, const tdm_gemm_fp8_args* device, int64_t rows, int32_t tile_rows, int32_t tokens,
                        int32_t sms) {
  tdm_gemm_fp8_args args = *device;
  args.a.shape[0] = rows;
  args.a_scale.shape[1] = rows;
  args.out.shape[0] = rows;
  int64_t n = args.w.shape[0], k = args.w.shape[1];
  tdm_gemm_fp8_sm90_plan plan;
  if (tile_rows < 0) {
    tdm_gemm_fp8_sm90_make_plan(rows, n, k, sms, &plan);
  } else {
    tdm_gemm_fp8_sm90_make_plan_for(rows, n, k, sms, tile_rows, tokens, &plan);
  }
  CUdeviceptr partials = gpu_scratch(rig, plan.partial_bytes, 0xff), counters = gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_gemm_fp8_params params;
  if (tdm_gemm_fp8_sm90_params(&args, &plan, (void*)(uintptr_t)partials, (void*)(uintptr_t)counters, gpu_encode, rig,
                               &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

static void run_shape(gpu_rig* rig, int64_t max_rows, int64_t n, int64_t k, tdm_dtype dtype, int64_t gap, bool quick) {
  static const int64_t row_counts[] = {1, 2, 3, 7, 16, 17, 24, 37, 64, 65, 100, 128, 129, 257, 1025, 1500};
  static const int32_t tiles[] = {8, 16, 24, 32, 64, 128};
  gpu_begin(rig, "gemm_fp8 up to %lld x %lld x %lld dtype %d gap %lld", (long long)max_rows, (long long)n, (long long)k,
            dtype, (long long)gap);
  gpu_tensor* a = gpu_make_strided(rig, "a", TDM_E4M3, 2, (int64_t[]){max_rows, k}, (int64_t[]){k + 16 * gap, 1});
  gpu_tensor* a_scale = gpu_make_scales(rig, "a_scale", max_rows, k);
  gpu_tensor* w = gpu_make(rig, "w", TDM_E4M3, 2, (int64_t[]){n, k});
  gpu_tensor* w_scale = gpu_make(rig, "w_scale", TDM_F32, 2, (int64_t[]){(n + 127) / 128, k / 128});
  gpu_tensor* out = gpu_make_strided(rig, "out", dtype, 2, (int64_t[]){max_rows, n}, (int64_t[]){n + gap, 1});
  fill(rig, a);
  fill(rig, w);
  gpu_fill_uniform(rig, a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
  tdm_gemm_fp8_args args = {.size = sizeof args,
                            .a = a->view,
                            .a_scale = a_scale->view,
                            .w = w->view,
                            .w_scale = w_scale->view,
                            .out = out->view};
  gpu_upload(rig);
  tdm_gemm_fp8_args device = args;
  if (!gpu_reference(rig, &tdm_op_gemm_fp8, &args)) {
    gpu_end(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_gemm_fp8, &device);
  launch_rows(rig, &device, max_rows, -1, 0, rig->sms);
  gpu_download(rig);
  gpu_expect_close(rig, out, dtype == TDM_F32 ? 1e-7 : 1e-6);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_poison(out);
  gpu_end(rig);

  /* From here every case is a launch that must give the first one's bits, and touch nothing else. The planner's choice
   * with all counts of rows, on the whole GPU and on a few SMs; then every tile with a few counts. */
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    int64_t rows = row_counts[i];
    if (rows > max_rows || (quick && rows > 40 && rows != 65)) continue;
    bool all_tiles = rows == 3 || rows == 37 || rows == 65 || rows == 100 || rows == 257;
    for (int form = -2; form < 13; form++) {
      int32_t tile_rows = form < 0     ? -1
                          : form == 12 ? 0
                          : form % 2   ? 128
                                       : 64,
              tokens = form < 0 || form == 12 ? 128 : tiles[form / 2];
      if ((form >= 0 && !all_tiles) || rows > 8 * tokens) continue;
      gpu_begin(rig, "gemm_fp8 %lld x %lld x %lld dtype %d gap %lld tile %d x %d%s", (long long)rows, (long long)n,
                (long long)k, dtype, (long long)gap, tile_rows, tokens, form == -2 ? " on 7 SMs" : "");
      gpu_upload_one(rig, out);
      launch_rows(rig, &device, rows, tile_rows, tokens, form == -2 ? 7 : rig->sms);
      gpu_download(rig);
      gpu_expect_rows(rig, out, bits, 0, rows);
      gpu_end(rig);
    }
  }

  /* Live counts from device memory. */
  static const int32_t lives[] = {0, 1, 5, 37, 130};
  for (size_t i = 0; i < 2 * sizeof lives / sizeof *lives; i++) {
    int32_t live = lives[i / 2];
    int64_t rows = i % 2 ? max_rows : 64;
    if (live > rows || rows > max_rows) continue;
    gpu_begin(rig, "gemm_fp8 %lld x %lld x %lld dtype %d live %d", (long long)rows, (long long)n, (long long)k, dtype,
              live);
    gpu_tensor* count = gpu_make_count(rig, "n_tokens", live);
    gpu_upload_one(rig, count);
    gpu_upload_one(rig, out);
    tdm_gemm_fp8_args counted = device;
    counted.n_tokens = count->view;
    gpu_to_device(rig, &tdm_op_gemm_fp8, &counted);
    launch_rows(rig, &counted, rows, -1, 0, rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, 0, live);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

/* One element by the formula, blocks ascending: for shapes at which the reference takes too long. */
static float element(const uint8_t* a, const float* a_scale, const uint8_t* w, const float* w_scale, int64_t k) {
  float c = 0;
  for (int64_t block = 0; block < k / 128; block++) {
    double sum = 0;
    for (int64_t i = block * 128; i < block * 128 + 128; i++)
      sum += (double)tdm_e4m3_to_f32(a[i]) * (double)tdm_e4m3_to_f32(w[i]);
    c += a_scale[block] * w_scale[block] * (float)sum;
  }
  return c;
}

/* Real shapes: 4096 sampled elements, and two runs with the same bits. */
static void run_sampled(gpu_rig* rig, int64_t rows, int64_t n, int64_t k) {
  enum { SAMPLES = 4096 };
  gpu_begin(rig, "gemm_fp8 sampled %lld x %lld x %lld", (long long)rows, (long long)n, (long long)k);
  gpu_tensor* a = gpu_make(rig, "a", TDM_E4M3, 2, (int64_t[]){rows, k});
  gpu_tensor* a_scale = gpu_make_scales(rig, "a_scale", rows, k);
  gpu_tensor* w = gpu_make(rig, "w", TDM_E4M3, 2, (int64_t[]){n, k});
  gpu_tensor* w_scale = gpu_make(rig, "w_scale", TDM_F32, 2, (int64_t[]){(n + 127) / 128, k / 128});
  gpu_tensor* out = gpu_make(rig, "out", TDM_BF16, 2, (int64_t[]){rows, n});
  fill(rig, a);
  fill(rig, w);
  gpu_fill_uniform(rig, a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
  tdm_gemm_fp8_args args = {.size = sizeof args,
                            .a = a->view,
                            .a_scale = a_scale->view,
                            .w = w->view,
                            .w_scale = w_scale->view,
                            .out = out->view};
  gpu_to_device(rig, &tdm_op_gemm_fp8, &args);
  gpu_upload(rig);
  launch_rows(rig, &args, rows, -1, 0, rig->sms);
  gpu_download(rig);
  uint8_t* bits = malloc(out->bytes);
  float *got = malloc(SAMPLES * sizeof *got), *want = malloc(SAMPLES * sizeof *want),
        *scales = malloc((size_t)k / 128 * sizeof *scales);
  if (!bits || !got || !want || !scales) abort();
  memcpy(bits, out->got, out->bytes);
  const uint8_t *x = a->host + GPU_GUARD_BYTES, *y = w->host + GPU_GUARD_BYTES;
  const float *sx = (const float*)(void*)(a_scale->host + GPU_GUARD_BYTES),
              *sy = (const float*)(void*)(w_scale->host + GPU_GUARD_BYTES);
  for (int i = 0; i < SAMPLES; i++) {
    int64_t row = (int64_t)(gpu_random(rig) % (uint64_t)rows), col = (int64_t)(gpu_random(rig) % (uint64_t)n);
    for (int64_t block = 0; block < k / 128; block++) scales[block] = sx[block * a_scale->view.stride[0] + row];
    want[i] =
        tdm_bf16_to_f32(tdm_f32_to_bf16(element(x + row * k, scales, y + col * k, sy + col / 128 * (k / 128), k)));
    got[i] = tdm_load_f32(out->got + GPU_GUARD_BYTES, TDM_BF16, row * n + col);
  }
  gpu_expect_values(rig, "samples", got, want, 1, SAMPLES, 1e-6);
  gpu_upload_one(rig, out);
  launch_rows(rig, &args, rows, -1, 0, rig->sms);
  gpu_download(rig);
  gpu_expect_rows(rig, out, bits, 0, rows);
  static const int64_t fewer[] = {3, 30, 50, 100};
  for (int i = 0; i < 8; i++) {
    if (fewer[i / 2] >= rows) continue;
    gpu_poison(out);
    gpu_upload_one(rig, out);
    launch_rows(rig, &args, fewer[i / 2], -1, 0, i % 2 ? 7 : rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, 0, fewer[i / 2]);
  }
  free(bits);
  free(got);
  free(want);
  free(scales);
  gpu_end(rig);
  gpu_free(rig);
}

void test_gemm_fp8(gpu_rig* rig, bool quick) {
  if (quick) {
    run_shape(rig, 65, 576, 384, TDM_BF16, 0, true);
    run_shape(rig, 65, 100, 1024, TDM_F32, 4, true);
    return;
  }
  run_shape(rig, 1500, 576, 384, TDM_BF16, 0, false);
  run_shape(rig, 1500, 2112, 512, TDM_F32, 0, false);
  run_shape(rig, 1500, 100, 1152, TDM_BF16, 1, false);
  run_shape(rig, 300, 320, 7168, TDM_F32, 4, false);
  static const int64_t shapes[][2] = {{2112, 7168}, {24576, 1536}, {7168, 16384}, {4096, 7168},
                                      {7168, 2048}, {3072, 1536},  {576, 7168}};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    run_sampled(rig, 1, shapes[i][0], shapes[i][1]);
    run_sampled(rig, 64, shapes[i][0], shapes[i][1]);
    run_sampled(rig, 1025, shapes[i][0], shapes[i][1]);
  }
}
