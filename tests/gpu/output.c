/* The DeepSeek-V4 output projection: inverse_rope_quant, which has the reference's bits, and bmm_fp8, whose bounds are
 * those of gemm_fp8. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bmm_fp8/bmm_fp8_sm90.h"
#include "kernels/common/convert.h"
#include "kernels/fill/fill_hash.h"
#include "kernels/fill/fill_params.h"
#include "kernels/inverse_rope_quant/inverse_rope_quant_sm90.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

static const int64_t row_counts[] = {1, 2, 3, 7, 16, 17, 37, 64, 65, 100, 128, 129, 257, 1025, 1500};
enum { ROW_COUNTS = sizeof row_counts / sizeof *row_counts, POSITIONS = 97 };

static gpu_tensor* make_table(gpu_rig* rig) {
  gpu_tensor* table = gpu_make(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  float* values = (float*)(void*)(table->host + GPU_GUARD_BYTES);
  for (int p = 0; p < POSITIONS; p++) {
    for (int i = 0; i < 32; i++) {
      double angle = p * pow(10000.0, -i / 32.0);
      values[p * 64 + i] = (float)cos(angle);
      values[p * 64 + 32 + i] = (float)sin(angle);
    }
  }
  return table;
}

static gpu_tensor* make_positions(gpu_rig* rig, int64_t rows) {
  gpu_tensor* positions = gpu_make(rig, "positions", TDM_I32, 1, &rows);
  int32_t* values = (int32_t*)(void*)(positions->host + GPU_GUARD_BYTES);
  for (int64_t i = 0; i < rows; i++) values[i] = (int32_t)(gpu_random(rig) % POSITIONS);
  return positions;
}

/* Scales of [groups, rows, cols] data. */
static gpu_tensor* make_group_scales(gpu_rig* rig, const char* name, int64_t groups, int64_t rows, int64_t cols) {
  int64_t stride = tdm_scale_stride(rows), blocks = cols / 128;
  gpu_tensor* scales = gpu_make_strided(rig, name, TDM_F32, 3, (int64_t[]){groups, blocks, rows},
                                        (int64_t[]){blocks * stride, stride, 1});
  return scales;
}

typedef struct rope_case {
  int64_t rows, heads, dim, groups, live; /* live -1: no count */
  int64_t head_gap, row_gap;              /* elements of x between heads and between rows */
  tdm_dtype dtype;
  tdm_rope_style style;
  bool pow2;
  float eps;
  bool odd_values; /* NaN, infinity, zeros of both signs, tiny blocks */
} rope_case;

static void set_element(gpu_tensor* t, int64_t offset, float value) {
  tdm_store_f32(t->host + GPU_GUARD_BYTES, t->view.dtype, offset, value);
}

static void run_inverse_rope_quant(gpu_rig* rig, const rope_case* c) {
  gpu_begin(
      rig,
      "inverse_rope_quant %lld x %lld x %lld groups %lld live %lld gaps %lld %lld dtype %d style %d pow2 %d eps %g%s",
      (long long)c->rows, (long long)c->heads, (long long)c->dim, (long long)c->groups, (long long)c->live,
      (long long)c->head_gap, (long long)c->row_gap, c->dtype, (int)c->style, c->pow2, (double)c->eps,
      c->odd_values ? " odd" : "");
  int64_t k = c->heads / c->groups * c->dim, head = c->dim + c->head_gap, row = c->heads * head + c->row_gap;
  gpu_tensor* x =
      gpu_make_strided(rig, "x", c->dtype, 3, (int64_t[]){c->rows, c->heads, c->dim}, (int64_t[]){row, head, 1});
  gpu_tensor* q = gpu_make(rig, "out_q", TDM_E4M3, 3, (int64_t[]){c->groups, c->rows, k});
  gpu_tensor* scale = make_group_scales(rig, "out_scale", c->groups, c->rows, k);
  gpu_fill_normal(rig, x, 1.0f);
  if (c->odd_values) {
    for (int64_t i = 0; i < c->dim; i++) {
      set_element(x, i, i % 2 ? 0.0f : -0.0f);                    /* a head of zeros */
      set_element(x, row + i, (float)(i % 3 - 1) * 1e-25f);       /* below the floor */
      set_element(x, row + head + i, (float)(i % 7 - 3) * 3e37f); /* near the top */
      if (i % 128 == 5) set_element(x, 2 * row + i, i < 256 ? NAN : -INFINITY);
    }
    set_element(x, 3 * row + c->dim - 1, INFINITY); /* in the rotated part */
    set_element(x, 3 * row + head + c->dim - 64, NAN);
    set_element(x, 3 * row + 2 * head + 3, NAN);
  }
  tdm_inverse_rope_quant_args args = {.size = sizeof args,
                                      .x = x->view,
                                      .positions = make_positions(rig, c->rows)->view,
                                      .cos_sin = make_table(rig)->view,
                                      .out_q = q->view,
                                      .out_scale = scale->view,
                                      .style = c->style,
                                      .quant_eps = c->eps,
                                      .pow2_scale = c->pow2};
  if (c->live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)c->live)->view;
  gpu_upload(rig);
  tdm_inverse_rope_quant_args device = args;
  if (gpu_reference(rig, &tdm_op_inverse_rope_quant, &args)) {
    device.quant_eps = args.quant_eps;
    gpu_to_device(rig, &tdm_op_inverse_rope_quant, &device);
    tdm_inverse_rope_quant_params params;
    tdm_kernel_launch launch;
    tdm_inverse_rope_quant_sm90_params(&device, &params);
    tdm_inverse_rope_quant_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, q);
    gpu_expect_same_bits(rig, scale);
    /* On a few SMs: the same bits. */
    gpu_poison(q);
    gpu_poison(scale);
    gpu_upload_one(rig, q);
    gpu_upload_one(rig, scale);
    memcpy(q->host, q->got, q->bytes);
    memcpy(scale->host, scale->got, scale->bytes);
    tdm_inverse_rope_quant_sm90_plan(&params, 3, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, q);
    gpu_expect_same_bits(rig, scale);
  }
  gpu_end(rig);
  gpu_free(rig);
}

/* More than 2^31 elements: x and the outputs on the device only, sampled rows against the reference. */
static void run_many_tokens(gpu_rig* rig, int64_t rows, tdm_rope_style style) {
  enum { HEADS = 128, DIM = 512, GROUPS = 8, K = HEADS / GROUPS * DIM, SAMPLES = 24 };
  gpu_begin(rig, "inverse_rope_quant %lld tokens style %d, sampled", (long long)rows, (int)style);
  int64_t token = (int64_t)HEADS * DIM, stride = tdm_scale_stride(rows);
  CUdeviceptr x_data = gpu_scratch(rig, (size_t)(rows * token * 2), 0xff);
  CUdeviceptr q_data = gpu_scratch(rig, (size_t)(rows * token), 0xff);
  CUdeviceptr scale_data = gpu_scratch(rig, (size_t)(token / 128 * stride * 4), 0xff);
  tdm_fill_params fill = {(void*)(uintptr_t)x_data, rows * token, 5, 3.0f, 0.0f, TDM_BF16, 0};
  tdm_kernel_launch fill_launch = {.kernel = "tdm_fill_sm90", .grid = (uint32_t)rig->sms * 8, .block = 256};
  gpu_launch(rig, &fill_launch, &fill, sizeof fill);

  int64_t chosen[SAMPLES] = {0, 1, 32766, 32767, 32768, 32769, rows - 2, rows - 1};
  for (int i = 8; i < SAMPLES; i++) chosen[i] = (int64_t)(gpu_random(rig) % (uint64_t)rows);
  gpu_tensor* x = gpu_make(rig, "x", TDM_BF16, 3, (int64_t[]){SAMPLES, HEADS, DIM});
  gpu_tensor* q = gpu_make(rig, "out_q", TDM_E4M3, 3, (int64_t[]){GROUPS, SAMPLES, K});
  gpu_tensor* scale = make_group_scales(rig, "out_scale", GROUPS, SAMPLES, K);
  gpu_tensor* positions = make_positions(rig, SAMPLES);
  gpu_tensor* all_positions = make_positions(rig, rows);
  gpu_tensor* table = make_table(rig);
  int32_t *few = (int32_t*)(void*)(positions->host + GPU_GUARD_BYTES),
          *all = (int32_t*)(void*)(all_positions->host + GPU_GUARD_BYTES);
  for (int i = 0; i < SAMPLES; i++) {
    few[i] = all[chosen[i]];
    for (int64_t j = 0; j < token; j++)
      set_element(x, i * token + j,
                  3.0f * (float)tdm_fill_hash(5, (uint64_t)(chosen[i] * token + j)) * (1.0f / 32768.0f));
  }
  tdm_inverse_rope_quant_args args = {.size = sizeof args,
                                      .x = x->view,
                                      .positions = positions->view,
                                      .cos_sin = table->view,
                                      .out_q = q->view,
                                      .out_scale = scale->view,
                                      .style = style};
  gpu_upload(rig);
  if (gpu_reference(rig, &tdm_op_inverse_rope_quant, &args)) {
    tdm_inverse_rope_quant_args device = args;
    device.positions = all_positions->view;
    device.x.shape[0] = device.positions.shape[0] = device.out_q.shape[1] = device.out_scale.shape[2] = rows;
    device.out_q.stride[0] = rows * K;
    device.out_scale.stride[1] = stride;
    device.out_scale.stride[0] = K / 128 * stride;
    gpu_to_device(rig, &tdm_op_inverse_rope_quant, &device);
    tdm_inverse_rope_quant_params params;
    tdm_kernel_launch launch;
    tdm_inverse_rope_quant_sm90_params(&device, &params);
    params.x = (void*)(uintptr_t)x_data;
    params.out_q = (void*)(uintptr_t)q_data;
    params.out_scale = (void*)(uintptr_t)scale_data;
    tdm_inverse_rope_quant_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    memcpy(q->got, q->host, q->bytes);
    memcpy(scale->got, scale->host, scale->bytes);
    float* row = malloc((size_t)stride * 4);
    if (!row) abort();
    for (int i = 0; i < SAMPLES; i++)
      for (int64_t g = 0; g < GROUPS; g++)
        GPU_TRY(gpu.cuMemcpyDtoH(q->got + GPU_GUARD_BYTES + (g * SAMPLES + i) * K,
                                 q_data + (size_t)((g * rows + chosen[i]) * K), K));
    for (int64_t block = 0; block < token / 128; block++) {
      GPU_TRY(gpu.cuMemcpyDtoH(row, scale_data + (size_t)(block * stride * 4), (size_t)stride * 4));
      for (int i = 0; i < SAMPLES; i++)
        memcpy(scale->got + GPU_GUARD_BYTES + (block * tdm_scale_stride(SAMPLES) + i) * 4, &row[chosen[i]], 4);
      for (int64_t m = rows; m < stride; m++)
        if (row[m] != 0.0f) gpu_fail(rig, "pad column %lld of block %lld is not zero", (long long)m, (long long)block);
    }
    free(row);
    gpu_expect_same_bits(rig, q);
    gpu_expect_same_bits(rig, scale);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_inverse_rope_quant(gpu_rig* rig, bool quick) {
  for (int i = 0; i < ROW_COUNTS && !(quick && row_counts[i] > 17); i++) {
    for (int halves = 0; halves < 2; halves++) {
      rope_case c = {row_counts[i],    8, 512,  2, -1, 0, 0, TDM_BF16, halves ? TDM_ROPE_HALVES : TDM_ROPE_INTERLEAVED,
                     (i + halves) % 2, 0, false};
      if (i % 3 == halves) c.live = row_counts[i] - row_counts[i] / 3;
      run_inverse_rope_quant(rig, &c);
      c.dim = 384, c.dtype = i % 2 ? TDM_F32 : TDM_BF16, c.live = -1;
      run_inverse_rope_quant(rig, &c);
    }
  }
  static const rope_case cases[] = {
      {17, 128, 512, 8, -1, 0, 0, TDM_BF16, TDM_ROPE_INTERLEAVED, false, 0, false},
      {17, 128, 512, 16, 0, 0, 0, TDM_BF16, TDM_ROPE_INTERLEAVED, false, 0, false},
      {37, 64, 512, 8, 1, 0, 0, TDM_BF16, TDM_ROPE_HALVES, true, 0, false},
      {6, 16, 512, 8, -1, 64, 8, TDM_BF16, TDM_ROPE_INTERLEAVED, false, 0, false},
      {6, 6, 512, 2, -1, 3, 1, TDM_BF16, TDM_ROPE_INTERLEAVED, false, 0, false},
      {6, 6, 512, 2, -1, 0, 0, TDM_F32, TDM_ROPE_HALVES, false, 0, false},
      {5, 3, 128, 1, -1, 0, 0, TDM_BF16, TDM_ROPE_HALVES, true, 0, false},
      {5, 3, 256, 3, 4, 0, 0, TDM_F32, TDM_ROPE_INTERLEAVED, false, 0, false},
      {5, 8, 512, 2, -1, 0, 0, TDM_BF16, TDM_ROPE_INTERLEAVED, false, 0, true},
      {5, 8, 512, 2, -1, 0, 0, TDM_BF16, TDM_ROPE_HALVES, true, 1e-30f, true},
      {5, 8, 512, 2, -1, 0, 0, TDM_F32, TDM_ROPE_INTERLEAVED, false, 1e-30f, true},
      {5, 8, 512, 2, -1, 0, 0, TDM_F32, TDM_ROPE_HALVES, true, 1e-4f, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_inverse_rope_quant(rig, &cases[i]);
  if (quick) return;
  run_many_tokens(rig, 39998, TDM_ROPE_INTERLEAVED);
}

/* ---- bmm_fp8 ---------------------------------------------------------------------------------------------------- */

static void fill_e4m3(gpu_rig* rig, gpu_tensor* tensor) {
  gpu_random_e4m3(rig, tensor->host + GPU_GUARD_BYTES, tensor->bytes - 2 * GPU_GUARD_BYTES);
}

typedef struct bmm {
  gpu_tensor *a, *a_scale, *w, *w_scale, *out;
  tdm_bmm_fp8_args args;
} bmm;

static void make_bmm(gpu_rig* rig, bmm* b, int64_t groups, int64_t rows, int64_t n, int64_t k, tdm_dtype dtype,
                     int64_t gap) {
  b->a = gpu_make_strided(rig, "a", TDM_E4M3, 3, (int64_t[]){groups, rows, k},
                          (int64_t[]){(rows + (gap != 0)) * (k + 16 * gap), k + 16 * gap, 1});
  b->a_scale = make_group_scales(rig, "a_scale", groups, rows, k);
  b->w = gpu_make(rig, "w", TDM_E4M3, 3, (int64_t[]){groups, n, k});
  b->w_scale = gpu_make(rig, "w_scale", TDM_F32, 3, (int64_t[]){groups, (n + 127) / 128, k / 128});
  b->out = gpu_make_strided(rig, "out", dtype, 2, (int64_t[]){rows, groups * n}, (int64_t[]){groups * n + gap, 1});
  fill_e4m3(rig, b->a);
  fill_e4m3(rig, b->w);
  gpu_fill_uniform(rig, b->a_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, b->w_scale, 0.001f, 0.003f);
  b->args = (tdm_bmm_fp8_args){.size = sizeof b->args,
                               .a = b->a->view,
                               .a_scale = b->a_scale->view,
                               .w = b->w->view,
                               .w_scale = b->w_scale->view,
                               .out = b->out->view};
}

/* Launches for `rows` of args' rows; tile_rows 0: the planner's choice. */
static void launch_bmm(gpu_rig* rig, const tdm_bmm_fp8_args* device, int64_t rows, int32_t tile_rows, int32_t tokens,
                       int32_t sms) {
  tdm_bmm_fp8_args args = *device;
  args.a.shape[1] = rows;
  args.a_scale.shape[2] = rows;
  args.out.shape[0] = rows;
  const int64_t* w = args.w.shape;
  tdm_gemm_fp8_sm90_plan plan, chosen;
  tdm_bmm_fp8_sm90_make_plan(w[0], rows, w[1], w[2], sms, &chosen);
  plan = chosen;
  if (tile_rows != 0) {
    tdm_gemm_fp8_sm90_make_plan_for(rows, w[0] * w[1], w[2], sms, tile_rows, tokens, &plan);
    if (plan.segments != chosen.segments) gpu_fail(rig, "%d segments, not %d", plan.segments, chosen.segments);
  }
  CUdeviceptr partials = gpu_scratch(rig, plan.partial_bytes, 0xff), counters = gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_gemm_fp8_params params;
  if (tdm_bmm_fp8_sm90_params(&args, &plan, (void*)(uintptr_t)partials, (void*)(uintptr_t)counters, gpu_encode, rig,
                              &params) != TDM_OK) {
    gpu_fail(rig, "params: %s", tdm_last_error()->message);
    return;
  }
  gpu_launch(rig, &plan.launch, &params, sizeof params);
}

static void run_bmm(gpu_rig* rig, int64_t groups, int64_t max_rows, int64_t n, int64_t k, tdm_dtype dtype,
                    int64_t gap) {
  gpu_begin(rig, "bmm_fp8 %lld x up to %lld x %lld x %lld dtype %d gap %lld", (long long)groups, (long long)max_rows,
            (long long)n, (long long)k, dtype, (long long)gap);
  bmm b;
  make_bmm(rig, &b, groups, max_rows, n, k, dtype, gap);
  gpu_upload(rig);
  tdm_bmm_fp8_args device = b.args;
  if (!gpu_reference(rig, &tdm_op_bmm_fp8, &b.args)) {
    gpu_end(rig);
    return;
  }
  gpu_to_device(rig, &tdm_op_bmm_fp8, &device);
  launch_bmm(rig, &device, max_rows, 0, 0, rig->sms);
  gpu_download(rig);
  gpu_expect_close(rig, b.out, dtype == TDM_F32 ? 1e-7 : 1e-6);
  uint8_t* bits = malloc(b.out->bytes);
  if (!bits) abort();
  memcpy(bits, b.out->got, b.out->bytes);
  gpu_poison(b.out);
  gpu_end(rig);

  /* A row's bits are the same whatever the batch, the tile and the SMs, and nothing else is touched. */
  for (int i = 0; i < ROW_COUNTS; i++) {
    int64_t rows = row_counts[i];
    if (rows > max_rows) continue;
    for (int form = 0; form < 6; form++) {
      static const int32_t tile_rows[] = {0, 0, 64, 128, 64, 128}, tokens[] = {0, 0, 128, 128, 32, 8};
      if (form > 1 && rows != 7 && rows != 65 && rows != 129) continue;
      gpu_begin(rig, "bmm_fp8 %lld x %lld x %lld x %lld dtype %d gap %lld tile %d x %d%s", (long long)groups,
                (long long)rows, (long long)n, (long long)k, dtype, (long long)gap, tile_rows[form], tokens[form],
                form == 1 ? " on 7 SMs" : "");
      gpu_upload_one(rig, b.out);
      launch_bmm(rig, &device, rows, tile_rows[form], tokens[form], form == 1 ? 7 : rig->sms);
      gpu_download(rig);
      gpu_expect_rows(rig, b.out, bits, 0, rows);
      gpu_end(rig);
    }
  }

  static const int32_t lives[] = {0, 1, 5, 37, 130};
  for (size_t i = 0; i < 2 * sizeof lives / sizeof *lives; i++) {
    int32_t live = lives[i / 2];
    int64_t rows = i % 2 ? max_rows : 64;
    if (live > rows || rows > max_rows) continue;
    gpu_begin(rig, "bmm_fp8 %lld x %lld x %lld x %lld live %d", (long long)groups, (long long)rows, (long long)n,
              (long long)k, live);
    gpu_tensor* count = gpu_make_count(rig, "n_tokens", live);
    gpu_upload_one(rig, count);
    gpu_upload_one(rig, b.out);
    tdm_bmm_fp8_args counted = device;
    counted.n_tokens = count->view;
    gpu_to_device(rig, &tdm_op_bmm_fp8, &counted);
    launch_bmm(rig, &counted, rows, 0, 0, rig->sms);
    gpu_download(rig);
    gpu_expect_rows(rig, b.out, bits, 0, live);
    gpu_end(rig);
  }
  free(bits);
  gpu_free(rig);
}

/* Real shapes: 4096 sampled elements by the formula, and two runs with the same bits. */
static void run_bmm_sampled(gpu_rig* rig, int64_t groups, int64_t rows, int64_t n, int64_t k) {
  enum { SAMPLES = 4096 };
  gpu_begin(rig, "bmm_fp8 sampled %lld x %lld x %lld x %lld", (long long)groups, (long long)rows, (long long)n,
            (long long)k);
  bmm b;
  make_bmm(rig, &b, groups, rows, n, k, TDM_BF16, 0);
  gpu_to_device(rig, &tdm_op_bmm_fp8, &b.args);
  gpu_upload(rig);
  launch_bmm(rig, &b.args, rows, 0, 0, rig->sms);
  gpu_download(rig);
  uint8_t* bits = malloc(b.out->bytes);
  float *got = malloc(SAMPLES * sizeof *got), *want = malloc(SAMPLES * sizeof *want);
  if (!bits || !got || !want) abort();
  memcpy(bits, b.out->got, b.out->bytes);
  const uint8_t *a = b.a->host + GPU_GUARD_BYTES, *w = b.w->host + GPU_GUARD_BYTES;
  const float *sa = (const float*)(void*)(b.a_scale->host + GPU_GUARD_BYTES),
              *sw = (const float*)(void*)(b.w_scale->host + GPU_GUARD_BYTES);
  for (int i = 0; i < SAMPLES; i++) {
    int64_t g = (int64_t)(gpu_random(rig) % (uint64_t)groups), m = (int64_t)(gpu_random(rig) % (uint64_t)rows),
            r = (int64_t)(gpu_random(rig) % (uint64_t)n);
    const uint8_t *x = a + (g * rows + m) * k, *y = w + (g * n + r) * k;
    float c = 0;
    for (int64_t block = 0; block < k / 128; block++) {
      double sum = 0;
      for (int64_t j = block * 128; j < block * 128 + 128; j++)
        sum += (double)tdm_e4m3_to_f32(x[j]) * (double)tdm_e4m3_to_f32(y[j]);
      c += sa[(g * (k / 128) + block) * tdm_scale_stride(rows) + m] *
           sw[(g * (n / 128) + r / 128) * (k / 128) + block] * (float)sum;
    }
    want[i] = tdm_bf16_to_f32(tdm_f32_to_bf16(c));
    got[i] = tdm_load_f32(b.out->got + GPU_GUARD_BYTES, TDM_BF16, m * groups * n + g * n + r);
  }
  gpu_expect_values(rig, "samples", got, want, 1, SAMPLES, 1e-6);
  gpu_upload_one(rig, b.out);
  launch_bmm(rig, &b.args, rows, 0, 0, rig->sms);
  gpu_download(rig);
  gpu_expect_rows(rig, b.out, bits, 0, rows);
  free(bits);
  free(got);
  free(want);
  gpu_end(rig);
  gpu_free(rig);
}

/* NaN in one group's row stays there: other rows of the tile and the next group's, whose memory follows, keep their
 * bits. */
static void run_bmm_nan(gpu_rig* rig) {
  gpu_begin(rig, "bmm_fp8 NaN in a row");
  bmm b;
  make_bmm(rig, &b, 3, 5, 128, 512, TDM_F32, 0);
  b.a->host[GPU_GUARD_BYTES + (5 + 4) * 512 + 130] = 0x7f;                         /* group 1, token 4 */
  ((float*)(void*)(b.a_scale->host + GPU_GUARD_BYTES))[(2 * 4 + 1) * 8 + 0] = NAN; /* group 2, token 0 */
  gpu_upload(rig);
  tdm_bmm_fp8_args device = b.args;
  if (gpu_reference(rig, &tdm_op_bmm_fp8, &b.args)) {
    gpu_to_device(rig, &tdm_op_bmm_fp8, &device);
    launch_bmm(rig, &device, 5, 0, 0, rig->sms);
    gpu_download(rig);
    gpu_expect_close(rig, b.out, 1e-7);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_bmm_fp8(gpu_rig* rig, bool quick) {
  run_bmm_nan(rig);
  if (quick) {
    run_bmm(rig, 2, 65, 128, 512, TDM_BF16, 0);
    run_bmm(rig, 6, 65, 128, 512, TDM_F32, 0); /* on 7 SMs tiles of 128 weight rows */
    return;
  }
  run_bmm(rig, 3, 1500, 128, 512, TDM_BF16, 0);
  run_bmm(rig, 2, 300, 256, 1280, TDM_F32, 4);
  run_bmm(rig, 1, 130, 128, 384, TDM_BF16, 0);
  run_bmm(rig, 5, 130, 128, 7168, TDM_F32, 0);
  run_bmm(rig, 6, 130, 128, 768, TDM_BF16, 4); /* on 7 SMs tiles of 128 weight rows */
  run_bmm_sampled(rig, 8, 1, 1024, 8192);
  run_bmm_sampled(rig, 8, 64, 1024, 8192);
  run_bmm_sampled(rig, 8, 128, 1024, 8192);
  run_bmm_sampled(rig, 8, 1025, 1024, 8192);
  run_bmm_sampled(rig, 16, 37, 1024, 4096);
  run_bmm_sampled(rig, 16, 101, 1024, 4096);
  run_bmm_sampled(rig, 16, 257, 1024, 4096);
}
