/* sample, where it could go wrong: ties, NaN, infinities, extreme temperatures and cuts. The same tokens as the
 * reference. */

#include <math.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/sample/sample_sm90.h"
#include "tests/gpu/gpu.h"

enum { KINDS = 12 };

static float* floats(gpu_tensor* tensor) {
  return (float*)(void*)(tensor->host + GPU_GUARD_BYTES);
}

/* A row that is special in one way. */
static void make_row(gpu_rig* rig, int64_t kind, float* logits, int64_t cols, float* temperature, float* top_p) {
  int64_t some = (int64_t)(gpu_random(rig) % (uint64_t)cols);
  switch (kind) {
  case 1: /* all equal */
    for (int64_t i = 0; i < cols; i++) logits[i] = -3.25f;
    *top_p = 0.3f;
    break;
  case 2: /* all weights equal, logits not */
    *temperature = 1e30f;
    *top_p = 0.6f;
    break;
  case 3:
    for (int64_t i = 0; i < cols; i += 3) logits[i] = NAN;
    break;
  case 4:
    for (int64_t i = 0; i < cols; i++) logits[i] = NAN;
    break;
  case 5:
    logits[some] = INFINITY;
    logits[cols - 1 - some] = INFINITY;
    logits[cols / 2] = -INFINITY;
    *top_p = 0.9f;
    break;
  case 6:
    for (int64_t i = 0; i < cols; i++) logits[i] = -INFINITY;
    *top_p = 0.5f;
    break;
  case 7:
    *temperature = 1e-3f;
    break;
  case 8:
    *top_p = 1e-7f;
    break;
  case 9:
    *top_p = 1.0f;
    *temperature = 5.0f;
    break;
  case 10: /* few different values */
    for (int64_t i = 0; i < cols; i++) logits[i] = (float)(gpu_random(rig) % 6);
    *top_p = 0.7f;
    break;
  case 11: /* weights over many octaves */
    for (int64_t i = 0; i < cols; i++) logits[i] = -0.37f * (float)((i * 7919) % cols);
    *top_p = 0.9999999f;
    break;
  default:
    break;
  }
}

static void run(gpu_rig* rig, int64_t rows, int64_t cols, int64_t live, int64_t gap) {
  gpu_begin(rig, "sample_edges %lld x %lld live %lld gap %lld", (long long)rows, (long long)cols, (long long)live,
            (long long)gap);
  gpu_tensor* logits = gpu_make_strided(rig, "logits", TDM_F32, 2, (int64_t[]){rows, cols}, (int64_t[]){cols + gap, 1});
  gpu_tensor* temperature = gpu_make(rig, "temperature", TDM_F32, 1, &rows);
  gpu_tensor* top_p = gpu_make(rig, "top_p", TDM_F32, 1, &rows);
  gpu_tensor* seeds = gpu_make(rig, "seeds", TDM_I64, 1, &rows);
  gpu_tensor* positions = gpu_make(rig, "positions", TDM_I32, 1, &rows);
  gpu_tensor* out = gpu_make(rig, "out", TDM_I32, 1, &rows);
  gpu_fill_normal(rig, logits, 3.0f);
  gpu_fill_uniform(rig, temperature, 0.3f, 1.5f);
  gpu_fill_uniform(rig, top_p, 0.05f, 0.99f);
  for (int64_t m = 0; m < rows; m++) {
    uint64_t seed = gpu_random(rig);
    int32_t position = (int32_t)(gpu_random(rig) >> 33);
    memcpy(seeds->host + GPU_GUARD_BYTES + (size_t)m * 8, &seed, 8);
    memcpy(positions->host + GPU_GUARD_BYTES + (size_t)m * 4, &position, 4);
    make_row(rig, m % KINDS, floats(logits) + m * (cols + gap), cols, floats(temperature) + m, floats(top_p) + m);
  }
  tdm_sample_args args = {.size = sizeof args,
                          .logits = logits->view,
                          .temperature = temperature->view,
                          .top_p = top_p->view,
                          .seeds = seeds->view,
                          .positions = positions->view,
                          .out = out->view};
  if (live >= 0) args.n_rows = gpu_make_count(rig, "n_rows", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_sample_args device = args;
  if (gpu_reference(rig, &tdm_op_sample, &args)) {
    gpu_to_device(rig, &tdm_op_sample, &device);
    for (int32_t sms = rig->sms; sms > 0; sms = sms > 2 ? 2 : 0) {
      tdm_sample_params params;
      tdm_kernel_launch launch;
      tdm_sample_sm90_params(&device, &params);
      tdm_sample_sm90_plan(&params, sms, &launch);
      GPU_TRY(gpu.cuMemsetD8(out->device, 0xff, out->bytes));
      gpu_launch(rig, &launch, &params, sizeof params);
      gpu_download(rig);
      gpu_expect_same_bits(rig, out);
    }
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_sample_edges(gpu_rig* rig, bool quick) {
  run(rig, KINDS, 33, -1, 0);
  run(rig, 17, 1000, 13, 7);
  if (quick) return;
  for (int i = 0; i < GPU_ROW_COUNTS; i++) run(rig, gpu_row_counts[i], i % 2 ? 1 : 2049, -1, i);
  run(rig, 1025, 300, 1000, 0);
  run(rig, 2 * KINDS, 129280, -1, 0);
  run(rig, KINDS, 262144, -1, 0);
}
