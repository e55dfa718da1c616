/* embedding, gather_rows, argmax, sample: the reference's bits. */

#include <math.h>
#include <string.h>

#include "kernels/argmax/argmax_sm90.h"
#include "kernels/embedding/embedding_sm90.h"
#include "kernels/gather_rows/gather_rows_sm90.h"
#include "kernels/ops.h"
#include "kernels/sample/sample_sm90.h"
#include "tests/gpu/gpu.h"

static gpu_tensor* make_indices(gpu_rig* rig, const char* name, int64_t count, int64_t below) {
  gpu_tensor* tensor = gpu_make(rig, name, TDM_I32, 1, &count);
  int32_t* values = (int32_t*)(void*)(tensor->host + GPU_GUARD_BYTES);
  for (int64_t i = 0; i < count; i++) values[i] = (int32_t)(gpu_random(rig) % (uint64_t)below);
  return tensor;
}

static void run_embedding(gpu_rig* rig, int64_t rows, int64_t cols, int64_t gap, int64_t live, tdm_dtype in,
                          tdm_dtype out_dtype) {
  enum { VOCAB = 500 };
  gpu_begin(rig, "embedding %lld x %lld gap %lld live %lld dtypes %d %d", (long long)rows, (long long)cols,
            (long long)gap, (long long)live, in, out_dtype);
  gpu_tensor* table = gpu_make_strided(rig, "table", in, 2, (int64_t[]){VOCAB, cols}, (int64_t[]){cols + gap, 1});
  gpu_tensor* out = gpu_make_strided(rig, "out", out_dtype, 2, (int64_t[]){rows, cols}, (int64_t[]){cols + gap, 1});
  gpu_fill_normal(rig, table, 1.0f);
  tdm_embedding_args args = {
      .size = sizeof args, .ids = make_indices(rig, "ids", rows, VOCAB)->view, .table = table->view, .out = out->view};
  if (live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_embedding_args device = args;
  if (gpu_reference(rig, &tdm_op_embedding, &args)) {
    gpu_to_device(rig, &tdm_op_embedding, &device);
    tdm_embedding_params params;
    tdm_kernel_launch launch;
    tdm_embedding_sm90_params(&device, &params);
    tdm_embedding_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_embedding(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 17); i++) {
    run_embedding(rig, gpu_row_counts[i], 384, 0, i % 3 ? -1 : gpu_row_counts[i] / 2, i % 2 ? TDM_F32 : TDM_BF16,
                  TDM_BF16);
    run_embedding(rig, gpu_row_counts[i], 7168, 0, -1, TDM_BF16, TDM_BF16);
  }
  run_embedding(rig, 5, 101, 3, -1, TDM_BF16, TDM_F32);
}

static void run_gather(gpu_rig* rig, int64_t rows, int64_t cols, int64_t gap, int64_t live, tdm_dtype dtype) {
  enum { ROWS = 77 };
  gpu_begin(rig, "gather_rows %lld x %lld gap %lld live %lld dtype %d", (long long)rows, (long long)cols,
            (long long)gap, (long long)live, dtype);
  gpu_tensor* x = gpu_make_strided(rig, "x", dtype, 2, (int64_t[]){ROWS, cols}, (int64_t[]){cols + gap, 1});
  gpu_tensor* out = gpu_make_strided(rig, "out", dtype, 2, (int64_t[]){rows, cols}, (int64_t[]){cols + gap, 1});
  gpu_fill_normal(rig, x, 1.0f);
  tdm_gather_rows_args args = {
      .size = sizeof args, .x = x->view, .rows = make_indices(rig, "rows", rows, ROWS)->view, .out = out->view};
  if (live >= 0) args.n_rows = gpu_make_count(rig, "n_rows", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_gather_rows_args device = args;
  if (gpu_reference(rig, &tdm_op_gather_rows, &args)) {
    gpu_to_device(rig, &tdm_op_gather_rows, &device);
    tdm_gather_rows_params params;
    tdm_kernel_launch launch;
    tdm_gather_rows_sm90_params(&device, &params);
    tdm_gather_rows_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_gather_rows(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 17); i++) {
    run_gather(rig, gpu_row_counts[i], 384, 0, i % 3 ? -1 : gpu_row_counts[i] / 2, i % 2 ? TDM_F32 : TDM_BF16);
    run_gather(rig, gpu_row_counts[i], 7168, 0, -1, TDM_BF16);
  }
  run_gather(rig, 5, 101, 3, -1, TDM_BF16);
}

static void run_argmax(gpu_rig* rig, int64_t rows, int64_t cols, int64_t live) {
  gpu_begin(rig, "argmax %lld x %lld live %lld", (long long)rows, (long long)cols, (long long)live);
  gpu_tensor* logits = gpu_make(rig, "logits", TDM_F32, 2, (int64_t[]){rows, cols});
  gpu_tensor* out = gpu_make(rig, "out", TDM_I32, 1, &rows);
  float* values = (float*)(void*)(logits->host + GPU_GUARD_BYTES);
  for (int64_t i = 0; i < rows * cols; i++) values[i] = (float)(gpu_random(rig) % 2000) - 1000; /* many ties */
  for (int64_t m = 0; m < rows; m++) {
    if (m % 5 == 1) values[m * cols + (int64_t)(gpu_random(rig) % (uint64_t)cols)] = NAN;
    for (int64_t i = 0; i < cols && m % 5 == 2; i++) values[m * cols + i] = -INFINITY;
    for (int64_t i = 0; i < cols && m % 5 == 3; i++) values[m * cols + i] = NAN;
    if (m % 5 == 4) values[m * cols + cols - 1] = INFINITY;
  }
  tdm_argmax_args args = {.size = sizeof args, .logits = logits->view, .out = out->view};
  if (live >= 0) args.n_rows = gpu_make_count(rig, "n_rows", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_argmax_args device = args;
  if (gpu_reference(rig, &tdm_op_argmax, &args)) {
    gpu_to_device(rig, &tdm_op_argmax, &device);
    tdm_argmax_params params;
    tdm_kernel_launch launch;
    tdm_argmax_sm90_params(&device, &params);
    tdm_argmax_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_argmax(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 17); i++) {
    run_argmax(rig, gpu_row_counts[i], i % 2 ? 1000 : 37, i % 3 ? -1 : gpu_row_counts[i] / 2);
    if (quick) continue;
    /* DeepSeek-V3: the logits of one of eight ranks, and all. */
    run_argmax(rig, gpu_row_counts[i], 16160, -1);
    if (gpu_row_counts[i] <= 129) run_argmax(rig, gpu_row_counts[i], 129280, -1);
  }
  run_argmax(rig, 7, 129280, -1);
  run_argmax(rig, 3, 1, -1);
}

static void slice_sample(void* void_args, int64_t first, int64_t count) {
  tdm_sample_args* args = void_args;
  tdm_view* const views[] = {&args->logits, &args->temperature, &args->top_p,
                             &args->seeds,  &args->positions,   &args->out};
  for (size_t i = 0; i < sizeof views / sizeof *views; i++) *views[i] = tdm_view_slice(*views[i], 0, first, count);
}

static void run_sample(gpu_rig* rig, int64_t rows, int64_t cols, float deviation) {
  gpu_begin(rig, "sample %lld x %lld deviation %g", (long long)rows, (long long)cols, (double)deviation);
  gpu_tensor* logits = gpu_make(rig, "logits", TDM_F32, 2, (int64_t[]){rows, cols});
  gpu_tensor* temperature = gpu_make(rig, "temperature", TDM_F32, 1, &rows);
  gpu_tensor* top_p = gpu_make(rig, "top_p", TDM_F32, 1, &rows);
  gpu_tensor* seeds = gpu_make(rig, "seeds", TDM_I64, 1, &rows);
  gpu_tensor* out = gpu_make(rig, "out", TDM_I32, 1, &rows);
  gpu_fill_normal(rig, logits, deviation);
  gpu_fill_uniform(rig, temperature, 0.3f, 1.5f);
  gpu_fill_uniform(rig, top_p, 0.05f, 1.0f);
  for (int64_t m = 0; m < rows; m++) {
    uint64_t seed = gpu_random(rig);
    memcpy(seeds->host + GPU_GUARD_BYTES + (size_t)m * 8, &seed, 8);
    float zero = 0, one = 1;
    if (m % 4 == 1) memcpy(temperature->host + GPU_GUARD_BYTES + (size_t)m * 4, &zero, 4);
    if (m % 4 == 2) memcpy(top_p->host + GPU_GUARD_BYTES + (size_t)m * 4, &one, 4);
  }
  tdm_sample_args args = {.size = sizeof args,
                          .logits = logits->view,
                          .temperature = temperature->view,
                          .top_p = top_p->view,
                          .seeds = seeds->view,
                          .positions = make_indices(rig, "positions", rows, 4096)->view,
                          .out = out->view};
  gpu_upload(rig);
  tdm_sample_args device = args;
  if (gpu_reference_sliced(rig, &tdm_op_sample, &args, slice_sample, rows, 1)) {
    gpu_to_device(rig, &tdm_op_sample, &device);
    tdm_sample_params params;
    tdm_kernel_launch launch;
    tdm_sample_sm90_params(&device, &params);
    tdm_sample_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_sample(gpu_rig* rig, bool quick) {
  run_sample(rig, 5, 300, 1.0f);
  if (quick) return;
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    run_sample(rig, gpu_row_counts[i], i % 2 ? 1000 : 4099, i % 2 ? 3.0f : 0.1f);
    if (gpu_row_counts[i] <= 129) run_sample(rig, gpu_row_counts[i], 129280, 2.0f); /* DeepSeek-V3 */
  }
}
