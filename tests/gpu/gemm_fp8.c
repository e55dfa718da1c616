/* gemm_fp8. Bounds against the reference, which adds a block's FP8 products exactly where the tensor cores keep about
 * 14 bits: f32 output 1e-7, bf16 output 1e-6. Bits: the same row in every batch, in every run, with every tile. */

#include <stdlib.h>
#include <string.h>

#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

typedef struct gemm_case {
  int64_t max_rows, n, k;
  tdm_dtype out;
  int64_t gap; /* elements between rows of out; 16 times that of a */
  bool sampled;
} gemm_case;

/* Slices are 128 columns; the last may be less. */
static void slice(void* void_args, int64_t first, int64_t count) {
  tdm_gemm_fp8_args* args = void_args;
  int64_t begin = first * 128, left = args->w.shape[0] - begin, columns = left < count * 128 ? left : count * 128;
  args->w = tdm_view_slice(args->w, 0, begin, columns);
  args->w_scale = tdm_view_slice(args->w_scale, 0, first, count);
  args->out = tdm_view_slice(args->out, 1, begin, columns);
}

static void fill(gpu_rig* rig, gpu_tensor* tensor) {
  gpu_random_e4m3(rig, tensor->host + GPU_GUARD_BYTES, tensor->bytes - 2 * GPU_GUARD_BYTES);
}

/* Operands in the rig's tensors; `out` is the fifth. */
static tdm_gemm_fp8_args make(gpu_rig* rig, const gemm_case* c) {
  gpu_tensor* a =
      gpu_make_strided(rig, "a", TDM_E4M3, 2, (int64_t[]){c->max_rows, c->k}, (int64_t[]){c->k + 16 * c->gap, 1});
  gpu_tensor* a_scale = gpu_make_scales(rig, "a_scale", c->max_rows, c->k);
  gpu_tensor* w = gpu_make(rig, "w", TDM_E4M3, 2, (int64_t[]){c->n, c->k});
  gpu_tensor* w_scale = gpu_make(rig, "w_scale", TDM_F32, 2, (int64_t[]){(c->n + 127) / 128, c->k / 128});
  gpu_tensor* out =
      gpu_make_strided(rig, "out", c->out, 2, (int64_t[]){c->max_rows, c->n}, (int64_t[]){c->n + c->gap, 1});
  fill(rig, a);
  fill(rig, w);
  gpu_fill_uniform(rig, a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
  gpu_upload(rig);
  return (tdm_gemm_fp8_args){.size = sizeof(tdm_gemm_fp8_args),
                             .a = a->view,
                             .a_scale = a_scale->view,
                             .w = w->view,
                             .w_scale = w_scale->view,
                             .out = out->view};
}

static void run(gpu_rig* rig, const gemm_case* c, bool quick) {
  gpu_begin(rig, "gemm_fp8 %d x %d %s gap %d", (int)c->n, (int)c->k, tdm_dtype_name(c->out), (int)c->gap);
  tdm_gemm_fp8_args args = make(rig, c);
  gpu_product product = {.op = &tdm_op_gemm_fp8,
                         .args = &args,
                         .n_tokens = offsetof(tdm_gemm_fp8_args, n_tokens),
                         .rows = {{offsetof(tdm_gemm_fp8_args, a), 0, 0},
                                  {offsetof(tdm_gemm_fp8_args, a_scale), 1, 0},
                                  {offsetof(tdm_gemm_fp8_args, out), 0, c->out == TDM_F32 ? 1e-7 : 1e-6}},
                         .slice = slice,
                         .slices = (c->n + 127) / 128,
                         .granule = 1,
                         .sampled = c->sampled,
                         .quick = quick};
  gpu_test_product(rig, &product);
}

/* Launches for `rows` of args' rows with the tile given (tile rows -1: the planner's choice). */
static void launch_tile(gpu_rig* rig, const tdm_gemm_fp8_args* device, int64_t rows, int32_t tile_rows,
                        int32_t tokens) {
  tdm_gemm_fp8_args args = *device;
  args.a.shape[0] = rows;
  args.a_scale.shape[1] = rows;
  args.out.shape[0] = rows;
  int64_t n = args.w.shape[0], k = args.w.shape[1];
  tdm_gemm_fp8_sm90_plan plan;
  if (tile_rows < 0) {
    tdm_gemm_fp8_sm90_make_plan(rows, n, k, rig->sms, &plan);
  } else {
    tdm_gemm_fp8_sm90_make_plan_for(rows, n, k, rig->sms, tile_rows, tokens, &plan);
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

/* Every tile gives a row the same bits, also those that the planner does not choose for the shape. */
static void run_tiles(gpu_rig* rig, const gemm_case* c) {
  static const int32_t tiles[] = {8, 16, 24, 32, 64, 128};
  static const int64_t row_counts[] = {3, 37, 65, 100, 257};
  gpu_begin(rig, "gemm_fp8 %d x %d, tiles", (int)c->n, (int)c->k);
  tdm_gemm_fp8_args args = make(rig, c);
  gpu_to_device(rig, &tdm_op_gemm_fp8, &args);
  gpu_tensor* out = &rig->tensors[4];
  launch_tile(rig, &args, c->max_rows, -1, 0);
  gpu_download_one(out);
  uint8_t* bits = malloc(out->bytes);
  if (!bits) abort();
  memcpy(bits, out->got, out->bytes);
  gpu_end(rig);
  for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
    for (int form = 0; form < 15; form++) {
      int64_t rows = row_counts[i];
      int32_t tile_rows = form >= 12 ? 0
                          : form % 2 ? 128
                                     : 64,
              tokens = form >= 12 ? 64 * (form - 10) : tiles[form / 2];
      if (rows > 8 * tokens || rows > c->max_rows) continue;
      gpu_begin(rig, "gemm_fp8 %d x %d x %d tile %d x %d", (int)rows, (int)c->n, (int)c->k, tile_rows, tokens);
      gpu_poison_device(out);
      launch_tile(rig, &args, rows, tile_rows, tokens);
      gpu_download_one(out);
      gpu_expect_rows(rig, out, bits, 0, rows);
      gpu_end(rig);
    }
  }
  free(bits);
  gpu_free(rig);
}

void test_gemm_fp8(gpu_rig* rig, bool quick) {
  static const gemm_case small[] = {{65, 576, 384, TDM_BF16, 0, false}, {65, 100, 1024, TDM_F32, 4, false}};
  static const gemm_case cases[] = {{1500, 576, 384, TDM_BF16, 0, false},
                                    {1500, 2112, 512, TDM_F32, 0, false},
                                    {1500, 100, 1152, TDM_BF16, 1, false},
                                    {300, 320, 7168, TDM_F32, 4, false},
                                    {300, 576, 7168, TDM_BF16, 0, false}};
  /* DeepSeek-V3: q_a|kv_a; q_b, o and the shared expert of one rank and of one of eight. */
  static const gemm_case real[] = {
      {1500, 2112, 7168, TDM_BF16, 0, true}, {1500, 24576, 1536, TDM_BF16, 0, true},
      {1500, 3072, 1536, TDM_BF16, 0, true}, {1500, 7168, 16384, TDM_BF16, 0, true},
      {1500, 7168, 2048, TDM_BF16, 0, true}, {1500, 4096, 7168, TDM_BF16, 0, true},
      {1500, 512, 7168, TDM_BF16, 0, true},
  };
  for (size_t i = 0; i < sizeof small / sizeof *small && quick; i++) run(rig, &small[i], true);
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !quick; i++) {
    run(rig, &cases[i], false);
    run_tiles(rig, &cases[i]);
  }
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) run(rig, &real[i], false);
}
