/* moe_fc1 and moe_fc2, FP8 and bf16. Bounds: FP8 sums differ in the 14th bit, so some of fc1's values are rounded the
 * other way: e4m3 1e-4, scales 1e-7; everything else bf16 1e-6; fc2 in f32 1e-7 from FP8 and 1e-10 from bf16. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

typedef struct moe_case {
  int64_t max_rows, experts, intermediate, hidden;
  tdm_dtype dtype;  /* of activations and weights */
  float limit;      /* fc1 */
  bool pow2;        /* fc1 */
  bool broken;      /* fc1: NaN in row 1; fc2, where routed: in unchosen experts always */
  tdm_dtype out;    /* fc2 */
  tdm_dtype addend; /* fc2; 0: none */
  bool routed;      /* fc2 */
  bool listed;      /* every other expert, from the second on */
  bool sampled;
} moe_case;

#define Q TDM_E4M3
#define B TDM_BF16
#define F TDM_F32

static void fill(gpu_rig* rig, gpu_tensor* tensor, float deviation) {
  if (tensor->view.dtype == Q) {
    gpu_random_e4m3(rig, tensor->host + GPU_GUARD_BYTES, tensor->bytes - 2 * GPU_GUARD_BYTES);
  } else {
    gpu_fill_normal(rig, tensor, deviation);
  }
}

/* The list of the experts that are_listed. */
static gpu_tensor* make_hits(gpu_rig* rig, int64_t experts) {
  gpu_tensor* hits = gpu_make(rig, "hits", TDM_I32, 1, (int64_t[]){1 + experts});
  int32_t* values = (int32_t*)(void*)(hits->host + GPU_GUARD_BYTES);
  values[0] = 0;
  for (int64_t e = 1; e < experts; e += 2) values[1 + values[0]++] = (int32_t)e;
  return hits;
}

/* ---- fc1 -------------------------------------------------------------------------------------------------------- */

/* Slices are blocks of 128 columns of the output; none goes through an expert. */
static void slice_fc1(void* void_args, int64_t first, int64_t count) {
  tdm_moe_fc1_args* args = void_args;
  int64_t blocks = args->w13.shape[1] / 256; /* of an expert */
  args->out = tdm_view_slice(args->out, 1, first * 128, count * 128);
  if (args->out_scale.buffer) args->out_scale = tdm_view_slice(args->out_scale, 0, first, count);
  int64_t experts = count < blocks ? 1 : count / blocks;
  args->w13 = tdm_view_slice(args->w13, 0, first / blocks, experts);
  if (args->w13_scale.buffer) args->w13_scale = tdm_view_slice(args->w13_scale, 0, first / blocks, experts);
  if (count >= blocks) return;
  args->w13 = tdm_view_slice(args->w13, 1, first % blocks * 256, count * 256);
  if (args->w13_scale.buffer) args->w13_scale = tdm_view_slice(args->w13_scale, 1, first % blocks * 2, count * 2);
}

static void slice_nothing(void* args, int64_t first, int64_t count) {
  (void)args;
  (void)first;
  (void)count;
}

static void run_fc1(gpu_rig* rig, const moe_case* c, bool quick) {
  gpu_begin(rig, "moe_fc1 %s %s%d x %d x %d limit %g pow2 %d broken %d", tdm_dtype_name(c->dtype),
            c->listed ? "some of " : "", (int)c->experts, (int)c->intermediate, (int)c->hidden, (double)c->limit,
            c->pow2, c->broken);
  int64_t rows = c->max_rows, columns = c->experts * c->intermediate, two = 2 * c->intermediate;
  gpu_tensor* x = gpu_make(rig, "x", c->dtype, 2, (int64_t[]){rows, c->hidden});
  gpu_tensor* w = gpu_make(rig, "w13", c->dtype, 3, (int64_t[]){c->experts, two, c->hidden});
  gpu_tensor* out = gpu_make_strided(rig, "out", c->dtype, 2, (int64_t[]){rows, columns}, (int64_t[]){columns + 16, 1});
  fill(rig, x, 1.0f);
  fill(rig, w, 2.0f / sqrtf((float)c->hidden)); /* gate and up around 2 */
  tdm_moe_fc1_args args = {.size = sizeof args,
                           .x = x->view,
                           .w13 = w->view,
                           .out = out->view,
                           .swiglu_limit = c->limit,
                           .pow2_scale = c->pow2};
  if (c->dtype == Q) {
    gpu_tensor* x_scale = gpu_make_scales(rig, "x_scale", rows, c->hidden);
    gpu_tensor* w_scale = gpu_make(rig, "w13_scale", F, 3, (int64_t[]){c->experts, two / 128, c->hidden / 128});
    gpu_fill_uniform(rig, x_scale, 0.01f, 0.03f);
    gpu_fill_uniform(rig, w_scale, 0.0003f, 0.001f);
    args.x_scale = x_scale->view;
    args.w13_scale = w_scale->view;
    args.out_scale = gpu_make_scales(rig, "out_scale", rows, columns)->view;
  }
  if (c->broken) tdm_store_f32(x->host + GPU_GUARD_BYTES, c->dtype, c->hidden, NAN); /* in row 1 */
  if (c->listed) args.hits = make_hits(rig, c->experts)->view;
  gpu_upload(rig);
  int64_t blocks = c->intermediate / 128;
  gpu_product product = {.op = &tdm_op_moe_fc1,
                         .args = &args,
                         .n_tokens = offsetof(tdm_moe_fc1_args, n_tokens),
                         .rows = {{offsetof(tdm_moe_fc1_args, x), 0, 0},
                                  {offsetof(tdm_moe_fc1_args, x_scale), 1, 0},
                                  {offsetof(tdm_moe_fc1_args, out), 0, c->dtype == Q ? 1e-4 : 1e-6},
                                  {offsetof(tdm_moe_fc1_args, out_scale), 1, 1e-7}},
                         .slice = c->listed ? slice_nothing : slice_fc1,
                         .slices = c->listed ? 1 : c->experts * blocks,
                         .granule = c->experts > 1 ? blocks : 1,
                         .hits = c->listed ? offsetof(tdm_moe_fc1_args, hits) : 0,
                         .sampled = c->sampled,
                         .quick = quick};
  gpu_test_product(rig, &product);
}

void test_moe_fc1(gpu_rig* rig, bool quick) {
  static const moe_case small[] = {
      {.max_rows = 65, .experts = 4, .intermediate = 128, .hidden = 256, .dtype = Q, .listed = true},
      {.max_rows = 65, .experts = 4, .intermediate = 128, .hidden = 256, .dtype = B, .listed = true},
      {.max_rows = 65, .experts = 2, .intermediate = 128, .hidden = 256, .dtype = Q},
      {.max_rows = 65, .experts = 2, .intermediate = 128, .hidden = 256, .dtype = B},
  };
  static const moe_case cases[] = {
      {.max_rows = 1500, .experts = 5, .intermediate = 128, .hidden = 384, .dtype = Q, .listed = true},
      {.max_rows = 1500, .experts = 5, .intermediate = 256, .hidden = 384, .dtype = B, .listed = true},
      {.max_rows = 65, .experts = 7, .intermediate = 128, .hidden = 7168, .dtype = B, .listed = true},
      {.max_rows = 1500, .experts = 3, .intermediate = 128, .hidden = 256, .dtype = Q, .broken = true},
      {.max_rows = 257,
       .experts = 2,
       .intermediate = 256,
       .hidden = 384,
       .dtype = Q,
       .limit = 2,
       .pow2 = true,
       .broken = true},
      {.max_rows = 130, .experts = 1, .intermediate = 1152, .hidden = 1280, .dtype = Q},
      {.max_rows = 65, .experts = 2, .intermediate = 256, .hidden = 7168, .dtype = Q, .limit = 7},
      {.max_rows = 1500, .experts = 3, .intermediate = 128, .hidden = 256, .dtype = B, .broken = true},
      {.max_rows = 257, .experts = 2, .intermediate = 256, .hidden = 384, .dtype = B, .limit = 2, .broken = true},
      {.max_rows = 130, .experts = 1, .intermediate = 1152, .hidden = 1280, .dtype = B},
      {.max_rows = 65, .experts = 2, .intermediate = 256, .hidden = 7168, .dtype = B, .limit = 1},
  };
  /* DeepSeek-V3: the dense MLP, the shared expert and experts, of one rank and of one of eight. All 257 experts of one
   * of eight; of one rank, and in bf16, fewer. */
  static const moe_case real[] = {
      {.max_rows = 1500, .experts = 1, .intermediate = 18432, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2304, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2048, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 256, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 9, .intermediate = 2048, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 257, .intermediate = 256, .hidden = 7168, .dtype = Q, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2304, .hidden = 7168, .dtype = B, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 256, .hidden = 7168, .dtype = B, .sampled = true},
      {.max_rows = 1500, .experts = 5, .intermediate = 2048, .hidden = 7168, .dtype = B, .sampled = true},
      {.max_rows = 1500, .experts = 65, .intermediate = 256, .hidden = 7168, .dtype = B, .sampled = true},
  };
  for (size_t i = 0; i < sizeof small / sizeof *small && quick; i++) run_fc1(rig, &small[i], true);
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !quick; i++) run_fc1(rig, &cases[i], false);
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) run_fc1(rig, &real[i], false);
}

/* ---- fc2 -------------------------------------------------------------------------------------------------------- */

/* Slices are 128 columns of the output; the last may be less. */
static void slice_fc2(void* void_args, int64_t first, int64_t count) {
  tdm_moe_fc2_args* args = void_args;
  int64_t begin = first * 128,
          columns = args->w2.shape[0] - begin < count * 128 ? args->w2.shape[0] - begin : count * 128;
  args->w2 = tdm_view_slice(args->w2, 0, begin, columns);
  if (args->w2_scale.buffer) args->w2_scale = tdm_view_slice(args->w2_scale, 0, first, count);
  if (args->addend.buffer) args->addend = tdm_view_slice(args->addend, 1, begin, columns);
  args->out = tdm_view_slice(args->out, 1, begin, columns);
}

/* Routing weights; half of the experts unchosen, all of them in row 1, the last one in every row, and its weights are
 * NaN and infinity. So are the activations that some rows have for the middle one, which they did not choose. */
static tdm_view make_alpha(gpu_rig* rig, const moe_case* c, gpu_tensor* x, gpu_tensor* x_scale, gpu_tensor* w) {
  int64_t depth = c->experts * c->intermediate, middle = c->experts / 2;
  gpu_tensor* alpha = gpu_make(rig, "alpha", F, 2, (int64_t[]){c->max_rows, c->experts});
  gpu_fill_uniform(rig, alpha, 0.1f, 1.0f);
  float* values = (float*)(void*)(alpha->host + GPU_GUARD_BYTES);
  for (int64_t i = 0; i < c->max_rows * c->experts; i++)
    if (gpu_random(rig) & 1 || i / c->experts == 1 || i % c->experts == c->experts - 1 ||
        (c->listed && i % c->experts % 2 == 0))
      values[i] = 0;
  for (int64_t n = 0; n < c->hidden; n += 7)
    tdm_store_f32(w->host + GPU_GUARD_BYTES, c->dtype, n * depth + depth - 1 - n % c->intermediate,
                  n % 2 || c->dtype == Q ? NAN : INFINITY);
  for (int64_t m = 2; m < c->max_rows; m += 61) {
    values[m * c->experts + middle] = m % 2 ? -0.0f : 0;
    for (int64_t k = 0; k < c->intermediate; k++)
      tdm_store_f32(x->host + GPU_GUARD_BYTES, c->dtype, m * depth + middle * c->intermediate + k,
                    k % 3 || c->dtype == Q ? NAN : INFINITY);
    float* scales = x_scale ? (float*)(void*)(x_scale->host + GPU_GUARD_BYTES) : NULL;
    for (int64_t b = 0; scales && b < c->intermediate / 128; b++)
      scales[(middle * c->intermediate / 128 + b) * x_scale->view.stride[0] + m] = NAN;
  }
  return alpha->view;
}

static void run_fc2(gpu_rig* rig, const moe_case* c, bool quick) {
  gpu_begin(rig, "moe_fc2 %s %s%d x %d x %d out %s addend %d routed %d", tdm_dtype_name(c->dtype),
            c->listed ? "some of " : "", (int)c->experts, (int)c->intermediate, (int)c->hidden, tdm_dtype_name(c->out),
            c->addend, c->routed);
  int64_t rows = c->max_rows, depth = c->experts * c->intermediate;
  gpu_tensor* x = gpu_make(rig, "x", c->dtype, 2, (int64_t[]){rows, depth});
  gpu_tensor* w = gpu_make(rig, "w2", c->dtype, 2, (int64_t[]){c->hidden, depth});
  gpu_tensor* out = gpu_make(rig, "out", c->out, 2, (int64_t[]){rows, c->hidden});
  gpu_tensor* x_scale = NULL;
  fill(rig, x, 1.0f);
  fill(rig, w, 2.0f / sqrtf((float)depth));
  tdm_moe_fc2_args args = {
      .size = sizeof args, .x = x->view, .w2 = w->view, .out = out->view, .n_experts = (int32_t)c->experts};
  if (c->dtype == Q) {
    x_scale = gpu_make_scales(rig, "x_scale", rows, depth);
    gpu_tensor* w_scale = gpu_make(rig, "w2_scale", F, 2, (int64_t[]){(c->hidden + 127) / 128, depth / 128});
    gpu_fill_uniform(rig, x_scale, 0.01f, 0.03f);
    gpu_fill_uniform(rig, w_scale, 0.001f, 0.003f);
    args.x_scale = x_scale->view;
    args.w2_scale = w_scale->view;
  }
  if (c->listed) args.hits = make_hits(rig, c->experts)->view;
  if (c->routed) args.alpha = make_alpha(rig, c, x, x_scale, w);
  if (c->addend) {
    gpu_tensor* addend = gpu_make(rig, "addend", c->addend, 2, (int64_t[]){rows, c->hidden});
    gpu_fill_normal(rig, addend, 1.0f);
    args.addend = addend->view;
  }
  gpu_upload(rig);
  gpu_product product = {.op = &tdm_op_moe_fc2,
                         .args = &args,
                         .n_tokens = offsetof(tdm_moe_fc2_args, n_tokens),
                         .rows = {{offsetof(tdm_moe_fc2_args, x), 0, 0},
                                  {offsetof(tdm_moe_fc2_args, x_scale), 1, 0},
                                  {offsetof(tdm_moe_fc2_args, alpha), 0, 0},
                                  {offsetof(tdm_moe_fc2_args, addend), 0, 0},
                                  {offsetof(tdm_moe_fc2_args, out), 0,
                                   c->out != F     ? 1e-6
                                   : c->dtype == Q ? 1e-7
                                                   : 1e-10}},
                         .slice = slice_fc2,
                         .hits = c->listed ? offsetof(tdm_moe_fc2_args, hits) : 0,
                         .slices = (c->hidden + 127) / 128,
                         .granule = 1,
                         .sampled = c->sampled,
                         .quick = quick};
  gpu_test_product(rig, &product);
}

void test_moe_fc2(gpu_rig* rig, bool quick) {
  static const moe_case small[] = {
      {.max_rows = 65,
       .experts = 5,
       .intermediate = 128,
       .hidden = 320,
       .dtype = Q,
       .out = B,
       .routed = true,
       .listed = true},
      {.max_rows = 65,
       .experts = 5,
       .intermediate = 128,
       .hidden = 320,
       .dtype = B,
       .out = B,
       .routed = true,
       .listed = true},
      {.max_rows = 65,
       .experts = 3,
       .intermediate = 128,
       .hidden = 320,
       .dtype = Q,
       .out = B,
       .addend = B,
       .routed = true},
      {.max_rows = 65,
       .experts = 3,
       .intermediate = 128,
       .hidden = 320,
       .dtype = B,
       .out = B,
       .addend = B,
       .routed = true},
  };
  static const moe_case cases[] = {
      {.max_rows = 1500,
       .experts = 24,
       .intermediate = 128,
       .hidden = 320,
       .dtype = Q,
       .out = B,
       .addend = B,
       .routed = true,
       .listed = true},
      {.max_rows = 129,
       .experts = 9,
       .intermediate = 384,
       .hidden = 200,
       .dtype = Q,
       .out = F,
       .routed = true,
       .listed = true},
      {.max_rows = 1500,
       .experts = 24,
       .intermediate = 128,
       .hidden = 320,
       .dtype = B,
       .out = B,
       .addend = B,
       .routed = true,
       .listed = true},
      {.max_rows = 129,
       .experts = 9,
       .intermediate = 384,
       .hidden = 200,
       .dtype = B,
       .out = F,
       .routed = true,
       .listed = true},
      {.max_rows = 1500,
       .experts = 3,
       .intermediate = 128,
       .hidden = 320,
       .dtype = Q,
       .out = B,
       .addend = B,
       .routed = true},
      {.max_rows = 257,
       .experts = 5,
       .intermediate = 384,
       .hidden = 384,
       .dtype = Q,
       .out = F,
       .addend = F,
       .routed = true},
      {.max_rows = 130, .experts = 1, .intermediate = 1152, .hidden = 576, .dtype = Q, .out = F},
      {.max_rows = 65, .experts = 32, .intermediate = 256, .hidden = 512, .dtype = Q, .out = B, .routed = true},
      {.max_rows = 1500,
       .experts = 3,
       .intermediate = 128,
       .hidden = 320,
       .dtype = B,
       .out = B,
       .addend = B,
       .routed = true},
      {.max_rows = 257,
       .experts = 5,
       .intermediate = 384,
       .hidden = 384,
       .dtype = B,
       .out = F,
       .addend = F,
       .routed = true},
      {.max_rows = 300, .experts = 7, .intermediate = 128, .hidden = 100, .dtype = B, .out = B, .addend = F},
      {.max_rows = 130, .experts = 1, .intermediate = 1152, .hidden = 576, .dtype = B, .out = F},
      {.max_rows = 65, .experts = 32, .intermediate = 256, .hidden = 512, .dtype = B, .out = B, .routed = true},
  };
  static const moe_case real[] = {
      {.max_rows = 1500, .experts = 1, .intermediate = 18432, .hidden = 7168, .dtype = Q, .out = B, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2304, .hidden = 7168, .dtype = Q, .out = B, .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2048, .hidden = 7168, .dtype = Q, .out = B, .sampled = true},
      {.max_rows = 1500,
       .experts = 9,
       .intermediate = 2048,
       .hidden = 7168,
       .dtype = Q,
       .out = B,
       .routed = true,
       .sampled = true},
      {.max_rows = 1500,
       .experts = 257,
       .intermediate = 256,
       .hidden = 7168,
       .dtype = Q,
       .out = B,
       .addend = B,
       .routed = true,
       .sampled = true},
      {.max_rows = 1500, .experts = 1, .intermediate = 2304, .hidden = 7168, .dtype = B, .out = B, .sampled = true},
      {.max_rows = 1500,
       .experts = 5,
       .intermediate = 2048,
       .hidden = 7168,
       .dtype = B,
       .out = B,
       .routed = true,
       .sampled = true},
      {.max_rows = 1500,
       .experts = 65,
       .intermediate = 256,
       .hidden = 7168,
       .dtype = B,
       .out = B,
       .addend = B,
       .routed = true,
       .sampled = true},
  };
  for (size_t i = 0; i < sizeof small / sizeof *small && quick; i++) run_fc2(rig, &small[i], true);
  for (size_t i = 0; i < sizeof cases / sizeof *cases && !quick; i++) run_fc2(rig, &cases[i], false);
  for (size_t i = 0; i < sizeof real / sizeof *real && !quick; i++) run_fc2(rig, &real[i], false);
}
