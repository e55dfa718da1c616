/* rmsnorm and quant. Bounds: values in bf16 or f32 1e-6; scales 1e-9 (rmsnorm: its f32 sum against the reference's
 * double one); e4m3 values: quant has the reference's bits; after rmsnorm a value may round the other way, 1e-5. */

#include <string.h>

#include "kernels/ops.h"
#include "kernels/quant/quant_sm90.h"
#include "kernels/rmsnorm/rmsnorm_sm90.h"
#include "tests/gpu/gpu.h"

typedef struct norm_case {
  int64_t rows, cols, live; /* live -1: no count */
  int64_t gap;              /* elements between rows */
  tdm_dtype x, delta, residual, weight, out;
  bool quant, pow2, in_place;
} norm_case;

static void run_rmsnorm(gpu_rig* rig, const norm_case* c) {
  gpu_begin(rig, "rmsnorm %lld x %lld live %lld gap %lld dtypes %d %d %d %d %d quant %d pow2 %d", (long long)c->rows,
            (long long)c->cols, (long long)c->live, (long long)c->gap, c->x, c->delta, c->residual, c->weight, c->out,
            c->quant, c->pow2);
  const int64_t shape[] = {c->rows, c->cols}, stride[] = {c->cols + c->gap, 1};
  tdm_rmsnorm_args args = {.size = sizeof args, .pow2_scale = c->pow2};
  gpu_tensor* x = gpu_make_strided(rig, "x", c->x, 2, shape, stride);
  gpu_fill_normal(rig, x, 2.0f);
  args.x = x->view;
  gpu_tensor *residual = NULL, *out = NULL, *out_q = NULL, *out_scale = NULL;
  if (c->delta) {
    gpu_tensor* delta = gpu_make_strided(rig, "delta", c->delta, 2, shape, stride);
    gpu_fill_normal(rig, delta, 1.0f);
    args.delta = delta->view;
  }
  if (c->in_place) {
    residual = x;
  } else if (c->residual) {
    residual = gpu_make_strided(rig, "residual", c->residual, 2, shape, stride);
  }
  if (residual) args.residual_out = residual->view;
  if (c->weight) {
    gpu_tensor* weight = gpu_make(rig, "weight", c->weight, 1, &c->cols);
    gpu_fill_uniform(rig, weight, 0.5f, 1.5f);
    args.weight = weight->view;
  }
  if (c->out) {
    out = gpu_make_strided(rig, "out", c->out, 2, shape, stride);
    args.out = out->view;
  }
  if (c->quant) {
    out_q = gpu_make_strided(rig, "out_q", TDM_E4M3, 2, shape, stride);
    out_scale = gpu_make_scales(rig, "out_scale", c->rows, c->cols);
    args.out_q = out_q->view;
    args.out_scale = out_scale->view;
  }
  if (c->live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)c->live)->view;
  gpu_upload(rig);
  tdm_rmsnorm_args device = args;
  if (gpu_reference(rig, &tdm_op_rmsnorm, &args)) {
    device.eps = args.eps;
    device.quant_eps = args.quant_eps;
    gpu_to_device(rig, &tdm_op_rmsnorm, &device);
    tdm_rmsnorm_params params;
    tdm_kernel_launch launch;
    tdm_rmsnorm_sm90_params(&device, &params);
    tdm_rmsnorm_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    if (residual) gpu_expect_close(rig, residual, 0);
    if (out) gpu_expect_close(rig, out, 1e-6);
    if (out_q) gpu_expect_close(rig, out_q, 1e-5);
    if (out_scale) gpu_expect_close(rig, out_scale, 1e-9);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_rmsnorm(gpu_rig* rig, bool quick) {
  static const int64_t widths[] = {7168, 1536, 512, 384, 128};
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 65); i++) {
    for (size_t j = 0; j < sizeof widths / sizeof *widths; j++) {
      norm_case c = {gpu_row_counts[i], widths[j], -1, 0,    TDM_BF16, TDM_BF16,
                     TDM_BF16,          TDM_BF16,  0,  true, false,    false};
      run_rmsnorm(rig, &c);
    }
  }
  static const norm_case cases[] = {
      {37, 512, -1, 64, TDM_BF16, 0, 0, TDM_BF16, TDM_BF16, false, false, false},
      {37, 513, -1, 0, TDM_BF16, TDM_F32, TDM_F32, TDM_F32, TDM_F32, false, false, false},
      {5, 7, -1, 3, TDM_F32, 0, 0, 0, TDM_BF16, false, false, false},
      {17, 1536, 5, 16, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, true, true, false},
      {17, 1536, 0, 0, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, true, true, false},
      {17, 1536, 17, 4, TDM_F32, 0, 0, TDM_F32, TDM_F32, true, false, false},
      {9, 7168, 3, 0, TDM_BF16, TDM_BF16, 0, 0, 0, false, false, true},
      {9, 7168, 3, 0, TDM_BF16, TDM_BF16, 0, TDM_BF16, 0, true, false, true},
      {3, 16384, -1, 0, TDM_BF16, 0, 0, TDM_BF16, 0, true, false, false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_rmsnorm(rig, &cases[i]);
}

static void run_quant(gpu_rig* rig, int64_t rows, int64_t cols, int64_t live, int64_t gap, tdm_dtype dtype, bool pow2,
                      bool broken) {
  gpu_begin(rig, "quant %lld x %lld live %lld gap %lld dtype %d pow2 %d broken %d", (long long)rows, (long long)cols,
            (long long)live, (long long)gap, dtype, pow2, broken);
  const int64_t shape[] = {rows, cols}, stride[] = {cols + gap, 1};
  gpu_tensor* x = gpu_make_strided(rig, "x", dtype, 2, shape, stride);
  gpu_tensor* out_q = gpu_make_strided(rig, "out_q", TDM_E4M3, 2, shape, stride);
  gpu_tensor* out_scale = gpu_make_scales(rig, "out_scale", rows, cols);
  gpu_fill_normal(rig, x, 3.0f);
  if (broken) { /* infinity in the first block, NaN in the last, zeros in one between where there is one */
    size_t element = tdm_dtype_bytes(dtype);
    uint32_t infinity = dtype == TDM_F32 ? 0x7f800000 : 0x7f80, nan = dtype == TDM_F32 ? 0x7fc00000 : 0x7fc0;
    memcpy(x->host + GPU_GUARD_BYTES, &infinity, element);
    memcpy(x->host + GPU_GUARD_BYTES + (size_t)((rows - 1) * (cols + gap) + cols - 1) * element, &nan, element);
    if (cols > 256) memset(x->host + GPU_GUARD_BYTES + 128 * element, 0, 128 * element);
  }
  tdm_quant_args args = {
      .size = sizeof args, .x = x->view, .out_q = out_q->view, .out_scale = out_scale->view, .pow2_scale = pow2};
  if (live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_quant_args device = args;
  if (gpu_reference(rig, &tdm_op_quant, &args)) {
    device.quant_eps = args.quant_eps;
    gpu_to_device(rig, &tdm_op_quant, &device);
    tdm_quant_params params;
    tdm_kernel_launch launch;
    tdm_quant_sm90_params(&device, &params);
    tdm_quant_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out_q);
    gpu_expect_close(rig, out_scale, 0);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_quant(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS && !(quick && gpu_row_counts[i] > 65); i++) {
    run_quant(rig, gpu_row_counts[i], 512, -1, 0, TDM_BF16, false, true);
    run_quant(rig, gpu_row_counts[i], 384, gpu_row_counts[i] / 2, 16, TDM_F32, true, false);
    /* DeepSeek-V3: the output projection's input of one rank and of one of eight. */
    run_quant(rig, gpu_row_counts[i], 16384, -1, 0, TDM_BF16, false, false);
    run_quant(rig, gpu_row_counts[i], 2048, -1, 0, TDM_BF16, true, false);
  }
  run_quant(rig, 5, 128, -1, 3, TDM_BF16, false, false);
}
