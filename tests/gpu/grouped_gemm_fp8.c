/* grouped_gemm_fp8. Against the reference as gemm_fp8; every tile and SM budget gives the same bits; rows of no group
 * stay as they are. */

#include <stdlib.h>
#include <string.h>

#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

enum { MAX_GROUPS = 300 };

/* How rows are dealt out; `rows` is what a group has at most. */
typedef enum layout { CONTIGUOUS, MASKED, ONE_GROUP, DESCENDING } layout;

static int64_t deal(gpu_rig* rig, layout kind, int64_t groups, int64_t rows, int32_t* start, int32_t* count) {
  int64_t total = 0;
  for (int64_t g = 0; g < groups; g++) {
    count[g] = g % 4 == 2 ? 0 : (int32_t)(gpu_random(rig) % (uint64_t)(rows + 1));
    if (g % 4 == 1) count[g] = (int32_t)rows;
    if (kind == ONE_GROUP) count[g] = g == groups / 2 ? (int32_t)rows : 0;
    start[g] = (int32_t)(kind == MASKED ? g * rows : total);
    total += kind == MASKED ? rows : count[g];
  }
  if (total == 0) total = 1;
  if (kind == DESCENDING) {
    total += 3;
    for (int64_t g = 0; g < groups; g++) start[g] = (int32_t)total - start[g] - count[g];
  }
  return total;
}

static void launch(gpu_rig* rig, const tdm_grouped_gemm_fp8_args* args, int32_t tokens, int32_t sms) {
  tdm_grouped_gemm_fp8_sm90_plan plan;
  tdm_grouped_gemm_fp8_params params;
  if (tokens == 0) {
    tdm_grouped_gemm_fp8_sm90_make_plan(args, sms, &plan);
  } else {
    tdm_grouped_gemm_fp8_sm90_make_plan_for(args, sms, tokens, &plan);
  }
  if (tdm_grouped_gemm_fp8_sm90_params(args, &plan, gpu_encode, rig, &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

static void run(gpu_rig* rig, layout kind, int64_t groups, int64_t most, int64_t n, int64_t k, tdm_dtype dtype,
                int64_t gap) {
  int32_t start[MAX_GROUPS], count[MAX_GROUPS];
  int64_t rows = deal(rig, kind, groups, most, start, count);
  gpu_begin(rig, "grouped_gemm_fp8 layout %d, %lld groups of %lld in %lld rows, %lld x %lld dtype %d gap %lld", kind,
            (long long)groups, (long long)most, (long long)rows, (long long)n, (long long)k, dtype, (long long)gap);
  gpu_tensor* row_start = gpu_make(rig, "row_start", TDM_I32, 1, &groups);
  gpu_tensor* row_count = gpu_make(rig, "row_count", TDM_I32, 1, &groups);
  gpu_tensor* a = gpu_make_strided(rig, "a", TDM_E4M3, 2, (int64_t[]){rows, k}, (int64_t[]){k + 16 * gap, 1});
  gpu_tensor* a_scale = gpu_make_scales(rig, "a_scale", rows, k);
  gpu_tensor* w = gpu_make(rig, "w", TDM_E4M3, 3, (int64_t[]){groups, n, k});
  gpu_tensor* w_scale = gpu_make(rig, "w_scale", TDM_F32, 3, (int64_t[]){groups, (n + 127) / 128, k / 128});
  gpu_tensor* out = gpu_make_strided(rig, "out", dtype, 2, (int64_t[]){rows, n}, (int64_t[]){n + gap, 1});
  memcpy(row_start->host + GPU_GUARD_BYTES, start, (size_t)groups * sizeof *start);
  memcpy(row_count->host + GPU_GUARD_BYTES, count, (size_t)groups * sizeof *count);
  gpu_random_e4m3(rig, a->host + GPU_GUARD_BYTES, a->bytes - 2 * GPU_GUARD_BYTES);
  gpu_random_e4m3(rig, w->host + GPU_GUARD_BYTES, w->bytes - 2 * GPU_GUARD_BYTES);
  gpu_fill_uniform(rig, a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
  tdm_grouped_gemm_fp8_args args = {.size = sizeof args,
                                    .row_start = row_start->view,
                                    .row_count = row_count->view,
                                    .a = a->view,
                                    .a_scale = a_scale->view,
                                    .w = w->view,
                                    .w_scale = w_scale->view,
                                    .out = out->view,
                                    .max_rows = most < rows ? most : rows};
  gpu_upload(rig);
  tdm_grouped_gemm_fp8_args device = args;
  if (!gpu_reference(rig, &tdm_op_grouped_gemm_fp8, &args)) {
    gpu_end(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_grouped_gemm_fp8, &device);
  launch(rig, &device, 0, rig->sms);
  gpu_download(rig);
  gpu_expect_close(rig, out, dtype == TDM_F32 ? 1e-7 : 1e-6);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_poison(out);
  gpu_end(rig);

  for (int32_t tokens = 0; tokens <= 192; tokens += 64) {
    gpu_begin(rig, "grouped_gemm_fp8 layout %d, %lld groups, %lld x %lld dtype %d, tile %d%s", kind, (long long)groups,
              (long long)n, (long long)k, dtype, tokens, tokens == 0 ? " on 7 SMs" : "");
    gpu_upload_one(rig, out);
    launch(rig, &device, tokens, tokens == 0 ? 7 : rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, out, bits, 0, rows);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

void test_grouped_gemm_fp8(gpu_rig* rig, bool quick) {
  run(rig, MASKED, 3, 17, 576, 384, TDM_BF16, 0);
  run(rig, CONTIGUOUS, 5, 33, 100, 256, TDM_F32, 4);
  if (quick) return;
  run(rig, CONTIGUOUS, 9, 150, 576, 384, TDM_BF16, 0);
  run(rig, CONTIGUOUS, 256, 12, 128, 256, TDM_BF16, 0);
  run(rig, CONTIGUOUS, 6, 400, 320, 512, TDM_BF16, 0);
  run(rig, MASKED, 8, 1, 256, 2048, TDM_BF16, 0);
  run(rig, MASKED, 6, 40, 132, 1152, TDM_BF16, 1);
  run(rig, MASKED, 4, 300, 200, 384, TDM_F32, 0);
  run(rig, ONE_GROUP, 7, 700, 256, 384, TDM_BF16, 0);
  run(rig, ONE_GROUP, 1, 5, 64, 128, TDM_BF16, 0);
  run(rig, DESCENDING, 5, 90, 576, 256, TDM_BF16, 8);
}
