/* rope, mla_kv_write, moe_route. Bounds: rope has the reference's bits; the latent 1e-6 in bf16, 1e-12 in f32; routing
 * chooses the same experts in the same order, weights 1e-12. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mla_kv_write/mla_kv_write_sm90.h"
#include "kernels/moe_route/moe_route_sm90.h"
#include "kernels/ops.h"
#include "kernels/rope/rope_sm90.h"
#include "tests/gpu/gpu.h"

enum { POSITIONS = 4096 };

static gpu_tensor* make_table(gpu_rig* rig) {
  gpu_tensor* table = gpu_make(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  float* values = (float*)(void*)(table->host + GPU_GUARD_BYTES);
  for (int p = 0; p < POSITIONS; p++) {
    for (int i = 0; i < 32; i++) {
      double angle = p * pow(10000.0, -i / 32.0);
      values[64 * p + i] = (float)cos(angle);
      values[64 * p + 32 + i] = (float)sin(angle);
    }
  }
  return table;
}

static gpu_tensor* make_ints(gpu_rig* rig, const char* name, int64_t count, uint64_t below) {
  gpu_tensor* tensor = gpu_make(rig, name, TDM_I32, 1, &count);
  int32_t* values = (int32_t*)(void*)(tensor->host + GPU_GUARD_BYTES);
  for (int64_t i = 0; i < count; i++) values[i] = (int32_t)(gpu_random(rig) % below);
  return tensor;
}

static void run_rope(gpu_rig* rig, int64_t rows, int64_t heads, int64_t live, tdm_dtype dtype, tdm_rope_style style,
                     bool inverse, bool in_place) {
  gpu_begin(rig, "rope %lld x %lld live %lld dtype %d style %d inverse %d in place %d", (long long)rows,
            (long long)heads, (long long)live, dtype, (int)style, inverse, in_place);
  int64_t shape[] = {rows, heads, 64}, stride[] = {heads * 192 + 8, 192, 1};
  gpu_tensor* x = gpu_make_strided(rig, "x", dtype, 3, shape, stride);
  gpu_tensor* out = in_place ? x : gpu_make(rig, "out", dtype, 3, shape);
  gpu_fill_normal(rig, x, 1.0f);
  tdm_rope_args args = {.size = sizeof args,
                        .x = x->view,
                        .positions = make_ints(rig, "positions", rows, POSITIONS)->view,
                        .cos_sin = make_table(rig)->view,
                        .out = out->view,
                        .style = style,
                        .inverse = inverse};
  if (live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_rope_args device = args;
  if (gpu_reference(rig, &tdm_op_rope, &args)) {
    gpu_to_device(rig, &tdm_op_rope, &device);
    tdm_rope_params params;
    tdm_kernel_launch launch;
    tdm_rope_sm90_params(&device, &params);
    tdm_rope_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, out);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_rope(gpu_rig* rig, bool quick) {
  static const tdm_rope_style styles[] = {TDM_ROPE_DEINTERLEAVE, TDM_ROPE_INTERLEAVED, TDM_ROPE_HALVES};
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    if (quick && gpu_row_counts[i] > 17) break;
    run_rope(rig, gpu_row_counts[i], 4, -1, i % 2 ? TDM_F32 : TDM_BF16, styles[i % 3], i % 4 == 3, i % 2);
    /* DeepSeek-V3: the query heads of one rank and of one of eight, the key. */
    run_rope(rig, gpu_row_counts[i], 128, -1, TDM_BF16, TDM_ROPE_DEINTERLEAVE, false, true);
    run_rope(rig, gpu_row_counts[i], 16, -1, TDM_BF16, TDM_ROPE_DEINTERLEAVE, false, true);
    run_rope(rig, gpu_row_counts[i], 1, -1, TDM_BF16, TDM_ROPE_DEINTERLEAVE, false, true);
  }
  for (int i = 0; i < 3; i++) {
    run_rope(rig, 17, 128, 5, TDM_BF16, styles[i], false, true);
    run_rope(rig, 17, 1, 17, TDM_BF16, styles[i], true, false);
  }
}

static void run_kv_write(gpu_rig* rig, int64_t rows, int64_t live, tdm_dtype dtype, tdm_rope_style style,
                         bool with_out) {
  gpu_begin(rig, "mla_kv_write %lld live %lld dtype %d style %d out %d", (long long)rows, (long long)live, dtype,
            (int)style, with_out);
  int64_t pages = (rows + 63) / 64 + 2;
  gpu_tensor* kv = gpu_make_strided(rig, "kv", dtype, 2, (int64_t[]){rows, 576}, (int64_t[]){2112, 1});
  gpu_tensor* weight = gpu_make(rig, "norm_weight", dtype, 1, (int64_t[]){512});
  gpu_tensor* slots = make_ints(rig, "slots", rows, 1);
  gpu_tensor* cache =
      gpu_make_strided(rig, "cache", dtype, 3, (int64_t[]){pages, 64, 576}, (int64_t[]){64 * 576 + 64, 576, 1});
  gpu_fill_normal(rig, kv, 1.0f);
  gpu_fill_uniform(rig, weight, 0.5f, 1.5f);
  int32_t* slot = (int32_t*)(void*)(slots->host + GPU_GUARD_BYTES);
  for (int64_t m = 0; m < rows; m++) slot[m] = m % 7 == 3 ? -1 : (int32_t)((m * 37 + 11) % (pages * 64));
  for (int64_t m = 0; m < rows; m++) /* no slot twice */
    for (int64_t j = 0; j < m && slot[m] >= 0; j++)
      if (slot[j] == slot[m]) slot[m] = -1;
  tdm_mla_kv_write_args args = {.size = sizeof args,
                                .kv = kv->view,
                                .norm_weight = weight->view,
                                .positions = make_ints(rig, "positions", rows, POSITIONS)->view,
                                .cos_sin = make_table(rig)->view,
                                .slots = slots->view,
                                .cache = cache->view,
                                .style = style};
  gpu_tensor* out = with_out ? gpu_make(rig, "out", dtype, 2, (int64_t[]){rows, 576}) : NULL;
  if (out) args.out = out->view;
  if (live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)live)->view;
  gpu_upload(rig);
  tdm_mla_kv_write_args device = args;
  if (gpu_reference(rig, &tdm_op_mla_kv_write, &args)) {
    device.eps = args.eps;
    gpu_to_device(rig, &tdm_op_mla_kv_write, &device);
    tdm_mla_kv_write_params params;
    tdm_kernel_launch launch;
    tdm_mla_kv_write_sm90_params(&device, &params);
    tdm_mla_kv_write_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_close(rig, cache, dtype == TDM_F32 ? 1e-12 : 1e-6);
    if (out) gpu_expect_close(rig, out, dtype == TDM_F32 ? 1e-12 : 1e-6);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_mla_kv_write(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    if (quick && gpu_row_counts[i] > 17) break;
    run_kv_write(rig, gpu_row_counts[i], i % 3 ? -1 : gpu_row_counts[i] / 2, TDM_BF16,
                 i % 2 ? TDM_ROPE_DEINTERLEAVE : TDM_ROPE_INTERLEAVED, i % 2 == 0);
  }
  run_kv_write(rig, 37, -1, TDM_F32, TDM_ROPE_HALVES, true);
}

typedef struct route_case {
  int64_t rows, experts, live;
  int32_t top_k, n_group, topk_group, n_shared;
  bool bias, norm, broken;
} route_case;

static void run_route(gpu_rig* rig, const route_case* c) {
  gpu_begin(rig, "moe_route %lld x %lld live %lld top %d of %d/%d groups shared %d bias %d norm %d broken %d",
            (long long)c->rows, (long long)c->experts, (long long)c->live, c->top_k, c->topk_group, c->n_group,
            c->n_shared, c->bias, c->norm, c->broken);
  gpu_tensor* logits = gpu_make(rig, "logits", TDM_F32, 2, (int64_t[]){c->rows, c->experts});
  gpu_tensor* ids = gpu_make(rig, "ids", TDM_I32, 2, (int64_t[]){c->rows, c->top_k});
  gpu_tensor* weights = gpu_make(rig, "weights", TDM_F32, 2, (int64_t[]){c->rows, c->top_k});
  gpu_tensor* alpha = gpu_make(rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, c->experts + c->n_shared});
  const int64_t all = c->experts + c->n_shared;
  gpu_tensor* chosen = all > 1024 ? NULL /* the limit */
                                  : gpu_make_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){c->rows, (all + 31) / 32},
                                                     (int64_t[]){(all + 31) / 32 + 1, 1});
  gpu_fill_normal(rig, logits, 2.0f);
  float* values = (float*)(void*)(logits->host + GPU_GUARD_BYTES);
  if (c->broken) { /* ties all over row 0; NaN in row 1, infinities in row 2 */
    for (int64_t e = 0; e < c->experts; e++) values[e] = (float)(e % 3);
    if (c->rows > 1) values[c->experts + c->experts / 2] = NAN;
    if (c->rows > 2) {
      values[2 * c->experts] = INFINITY;
      values[2 * c->experts + 1] = -INFINITY;
    }
  }
  tdm_moe_route_args args = {.size = sizeof args,
                             .logits = logits->view,
                             .ids = ids->view,
                             .weights = weights->view,
                             .alpha = alpha->view,
                             .top_k = c->top_k,
                             .n_group = c->n_group,
                             .topk_group = c->topk_group,
                             .n_shared = c->n_shared,
                             .norm_topk_prob = c->norm,
                             .routed_scaling_factor = 2.5f};
  if (c->bias) {
    gpu_tensor* bias = gpu_make(rig, "bias", TDM_F32, 1, &c->experts);
    gpu_fill_normal(rig, bias, 0.3f);
    args.bias = bias->view;
  }
  if (c->live >= 0) args.n_tokens = gpu_make_count(rig, "n_tokens", (int32_t)c->live)->view;
  if (chosen) args.chosen = chosen->view;
  gpu_upload(rig);
  tdm_moe_route_args device = args;
  if (gpu_reference(rig, &tdm_op_moe_route, &args)) {
    gpu_to_device(rig, &tdm_op_moe_route, &device);
    tdm_moe_route_params params;
    tdm_kernel_launch launch;
    tdm_moe_route_sm90_params(&device, &params);
    tdm_moe_route_sm90_plan(&params, rig->sms, &launch);
    gpu_launch(rig, &launch, &params, sizeof params);
    gpu_download(rig);
    gpu_expect_same_bits(rig, ids);
    gpu_expect_close(rig, weights, 1e-12);
    gpu_expect_close(rig, alpha, 1e-12);
    if (chosen) gpu_expect_same_bits(rig, chosen);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_moe_route(gpu_rig* rig, bool quick) {
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    if (quick && gpu_row_counts[i] > 17) break;
    run_route(rig,
              &(route_case){gpu_row_counts[i], 256, i % 3 ? -1 : gpu_row_counts[i] / 2, 8, 8, 4, 1, true, true, i % 2});
  }
  run_route(rig, &(route_case){37, 8, -1, 3, 4, 2, 0, true, true, true});
  run_route(rig, &(route_case){37, 384, -1, 6, 1, 1, 1, false, true, true});
  run_route(rig, &(route_case){65, 384, 41, 8, 1, 1, 0, true, true, true});
  run_route(rig, &(route_case){37, 256, -1, 8, 1, 1, 1, true, true, false});
  run_route(rig, &(route_case){37, 256, -1, 32, 8, 1, 1, true, true, true});
  run_route(rig, &(route_case){37, 256, -1, 8, 16, 4, 1, true, true, true});
  run_route(rig, &(route_case){37, 1024, -1, 32, 16, 7, 2, true, false, true});
  run_route(rig, &(route_case){37, 64, 3, 6, 64, 20, 0, true, true, false});
}
