/* moe_fc1 and moe_fc2 in FP8 over the rows alone that chose an expert: the bits of the dense form on the same GPU
 * (which moe.c holds against the reference), and nothing else written. What nobody chose is NaN. moe_experts, where it
 * takes the shape: the same bits once more. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/moe_experts/moe_experts.h"
#include "kernels/ops.h"
#include "tests/gpu/gpu.h"

typedef struct chosen_case {
  int64_t rows, live; /* live -1: no count */
  int64_t experts, intermediate, hidden;
  int32_t top_k;  /* about so many of a row's experts, besides those below */
  int32_t shared; /* the last ones, chosen by all */
  int32_t sms;    /* 0: all */
  tdm_dtype out;  /* of fc2 */
  tdm_dtype addend;
} chosen_case;

typedef struct chosen_rig {
  const chosen_case* c;
  gpu_tensor *x, *x_scale, *w13, *w13_scale, *w2, *w2_scale, *alpha, *chosen, *addend, *count;
} chosen_rig;

static int64_t live_rows(const chosen_case* c) {
  return c->live < 0 ? c->rows : c->live;
}

static bool chose(const chosen_rig* r, int64_t row, int64_t expert) {
  const uint32_t* words = (const uint32_t*)(const void*)(r->chosen->host + GPU_GUARD_BYTES);
  return words[row * r->chosen->view.stride[0] + expert / 32] >> expert % 32 & 1;
}

/* Expert 0 is nobody's, expert 1 that of every third row, expert 2 the last live row's alone. */
static bool wants(gpu_rig* rig, const chosen_case* c, int64_t row, int64_t expert) {
  if (expert >= c->experts - c->shared) return true;
  if (expert == 0) return false;
  if (expert == 1) return row % 3 == 0;
  if (expert == 2) return row == live_rows(c) - 1;
  return (int64_t)(gpu_random(rig) % (uint64_t)c->experts) < c->top_k;
}

static void choose(gpu_rig* rig, chosen_rig* r) {
  const chosen_case* c = r->c;
  const int64_t words = (c->experts + 31) / 32;
  r->chosen = gpu_make_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){c->rows, words}, (int64_t[]){words + 2, 1});
  r->alpha = gpu_make(rig, "alpha", TDM_F32, 2, (int64_t[]){c->rows, c->experts});
  gpu_fill_uniform(rig, r->alpha, 0.1f, 1.0f);
  uint32_t* bits = (uint32_t*)(void*)(r->chosen->host + GPU_GUARD_BYTES);
  float* alpha = (float*)(void*)(r->alpha->host + GPU_GUARD_BYTES);
  for (int64_t m = 0; m < c->rows; m++) {
    for (int64_t w = 0; w < words; w++) bits[m * (words + 2) + w] = 0;
    for (int64_t e = 0; e < c->experts; e++) {
      if (wants(rig, c, m, e))
        bits[m * (words + 2) + e / 32] |= 1u << e % 32;
      else
        alpha[m * c->experts + e] = 0.0f;
    }
  }
}

static void make(gpu_rig* rig, chosen_rig* r) {
  const chosen_case* c = r->c;
  const int64_t depth = c->experts * c->intermediate, two = 2 * c->intermediate;
  r->x = gpu_make(rig, "x", TDM_E4M3, 2, (int64_t[]){c->rows, c->hidden});
  r->x_scale = gpu_make_scales(rig, "x_scale", c->rows, c->hidden);
  r->w13 = gpu_make(rig, "w13", TDM_E4M3, 3, (int64_t[]){c->experts, two, c->hidden});
  r->w13_scale = gpu_make(rig, "w13_scale", TDM_F32, 3, (int64_t[]){c->experts, two / 128, c->hidden / 128});
  r->w2 = gpu_make(rig, "w2", TDM_E4M3, 2, (int64_t[]){c->hidden, depth});
  r->w2_scale = gpu_make(rig, "w2_scale", TDM_F32, 2, (int64_t[]){(c->hidden + 127) / 128, depth / 128});
  r->count = c->live >= 0 ? gpu_make_count(rig, "n_tokens", (int32_t)c->live) : NULL;
  r->addend = c->addend ? gpu_make(rig, "addend", c->addend, 2, (int64_t[]){c->rows, c->hidden}) : NULL;
  gpu_tensor* const bytes[] = {r->x, r->w13, r->w2};
  for (int i = 0; i < 3; i++)
    gpu_random_e4m3(rig, bytes[i]->host + GPU_GUARD_BYTES, bytes[i]->bytes - 2 * GPU_GUARD_BYTES);
  gpu_fill_uniform(rig, r->x_scale, 0.01f, 0.03f);
  gpu_fill_uniform(rig, r->w13_scale, 0.0003f, 0.001f);
  gpu_fill_uniform(rig, r->w2_scale, 0.001f, 0.003f);
  if (r->addend) gpu_fill_normal(rig, r->addend, 1.0f);
  choose(rig, r);
  for (int64_t n = 0; n < c->hidden; n++) /* nobody's expert */
    memset(r->w2->host + GPU_GUARD_BYTES + n * depth, 0x7f, (size_t)c->intermediate);
}

/* Runs an op on the device with the host args; its outputs come to `got`. */
static bool launch(gpu_rig* rig, const tdm_op* op, void* args, int32_t sms) {
  if (op->check(args) != TDM_OK) {
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
    return false;
  }
  gpu_to_device(rig, op, args);
  return gpu_run(rig, op, args, sms);
}

/* ---- fc1 -------------------------------------------------------------------------------------------------------- */

static tdm_moe_fc1_args fc1_args(const chosen_rig* r, const gpu_tensor* out, const gpu_tensor* scale, bool grouped) {
  return (tdm_moe_fc1_args){.size = sizeof(tdm_moe_fc1_args),
                            .n_tokens = r->count ? r->count->view : (tdm_view){0},
                            .x = r->x->view,
                            .x_scale = r->x_scale->view,
                            .w13 = r->w13->view,
                            .w13_scale = r->w13_scale->view,
                            .chosen = grouped ? r->chosen->view : (tdm_view){0},
                            .out = out->view,
                            .out_scale = scale->view};
}

/* What the dense form gives where a row chose an expert, 0xff elsewhere. */
static void mask(const chosen_rig* r, gpu_tensor* out, gpu_tensor* scale) {
  const chosen_case* c = r->c;
  const int64_t columns = c->experts * c->intermediate, blocks = c->intermediate / 128;
  uint8_t* values = out->got + GPU_GUARD_BYTES;
  float* scales = (float*)(void*)(scale->got + GPU_GUARD_BYTES);
  for (int64_t e = 0; e < c->experts; e++) {
    for (int64_t m = 0; m < c->rows; m++) {
      if (m < live_rows(c) && chose(r, m, e)) continue;
      memset(values + m * columns + e * c->intermediate, 0xff, (size_t)c->intermediate);
    }
    for (int64_t b = e * blocks; b < (e + 1) * blocks; b++)
      for (int64_t m = 0; m < scale->view.stride[0]; m++)
        if (m >= live_rows(c) || !chose(r, m, e)) memset(&scales[b * scale->view.stride[0] + m], 0xff, sizeof *scales);
  }
}

static void expect_bytes(gpu_rig* rig, const gpu_tensor* got, const gpu_tensor* want) {
  for (size_t i = 0; i < got->bytes; i++) {
    if (got->got[i] == want->got[i]) continue;
    gpu_fail(rig, "%s: byte %lld is 0x%02x, in the dense form 0x%02x", got->name, (long long)i - GPU_GUARD_BYTES,
             got->got[i], want->got[i]);
    return;
  }
}

/* ---- fc2 -------------------------------------------------------------------------------------------------------- */

static tdm_moe_fc2_args fc2_args(const chosen_rig* r, const gpu_tensor* x, const gpu_tensor* scale,
                                 const gpu_tensor* out, bool grouped) {
  return (tdm_moe_fc2_args){.size = sizeof(tdm_moe_fc2_args),
                            .n_tokens = r->count ? r->count->view : (tdm_view){0},
                            .x = x->view,
                            .x_scale = scale->view,
                            .w2 = r->w2->view,
                            .w2_scale = r->w2_scale->view,
                            .alpha = r->alpha->view,
                            .chosen = grouped ? r->chosen->view : (tdm_view){0},
                            .addend = r->addend ? r->addend->view : (tdm_view){0},
                            .out = out->view,
                            .n_experts = (int32_t)r->c->experts};
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

static tdm_moe_experts_args experts_args(const chosen_rig* r, const gpu_tensor* out) {
  return (tdm_moe_experts_args){.size = sizeof(tdm_moe_experts_args),
                                .n_tokens = r->count ? r->count->view : (tdm_view){0},
                                .x = r->x->view,
                                .x_scale = r->x_scale->view,
                                .w13 = r->w13->view,
                                .w13_scale = r->w13_scale->view,
                                .w2 = r->w2->view,
                                .w2_scale = r->w2_scale->view,
                                .alpha = r->alpha->view,
                                .chosen = r->chosen->view,
                                .addend = r->addend ? r->addend->view : (tdm_view){0},
                                .out = out->view};
}

static void run(gpu_rig* rig, const chosen_case* c) {
  gpu_begin(rig, "chosen %lld live %lld of %lld x %lld x %lld top %d shared %d sms %d out %s addend %d",
            (long long)c->rows, (long long)c->live, (long long)c->experts, (long long)c->intermediate,
            (long long)c->hidden, c->top_k, c->shared, c->sms, tdm_dtype_name(c->out), c->addend);
  chosen_rig r = {.c = c};
  const int64_t columns = c->experts * c->intermediate;
  make(rig, &r);
  const bool joined = tdm_moe_experts_supported(c->rows, c->experts, c->intermediate, c->hidden);
  gpu_tensor *c1[2], *scale[2], *y[2]; /* dense, grouped */
  gpu_tensor* both = joined ? gpu_make(rig, "experts", c->out, 2, (int64_t[]){c->rows, c->hidden}) : NULL;
  for (int i = 0; i < 2; i++) {
    c1[i] = gpu_make(rig, "fc1", TDM_E4M3, 2, (int64_t[]){c->rows, columns});
    scale[i] = gpu_make_scales(rig, "fc1_scale", c->rows, columns);
    y[i] = gpu_make(rig, "fc2", c->out, 2, (int64_t[]){c->rows, c->hidden});
  }
  gpu_upload(rig);
  const int32_t sms = c->sms ? c->sms : rig->sms;
  for (int i = 0; i < 2 && rig->ok; i++) {
    tdm_moe_fc1_args fc1 = fc1_args(&r, c1[i], scale[i], i == 1);
    (void)launch(rig, &tdm_op_moe_fc1, &fc1, i == 1 ? sms : rig->sms);
    gpu_download_one(c1[i]);
    gpu_download_one(scale[i]);
  }
  mask(&r, c1[0], scale[0]);
  if (rig->ok) expect_bytes(rig, c1[1], c1[0]);
  if (rig->ok) expect_bytes(rig, scale[1], scale[0]);
  for (int i = 0; i < 2 && rig->ok; i++) {
    tdm_moe_fc2_args fc2 = fc2_args(&r, c1[1], scale[1], y[i], i == 1);
    (void)launch(rig, &tdm_op_moe_fc2, &fc2, i == 1 ? sms : rig->sms);
    gpu_download_one(y[i]);
  }
  if (rig->ok) expect_bytes(rig, y[1], y[0]);
  if (rig->ok && joined) {
    tdm_moe_experts_args args = experts_args(&r, both);
    (void)launch(rig, &tdm_op_moe_experts, &args, sms);
    gpu_download_one(both);
    if (rig->ok) expect_bytes(rig, both, y[0]);
  }
  gpu_end(rig);
  gpu_free(rig);
}

void test_moe_chosen(gpu_rig* rig, bool quick) {
  const tdm_dtype F = TDM_F32, B = TDM_BF16;
  /* Segments of fc1 and fc2 few and many, experts of one block and of more. */
  for (int i = 0; i < GPU_ROW_COUNTS; i++) {
    const int64_t m = gpu_row_counts[i];
    if (quick && m > 65) break;
    for (int few = 0; few < 2; few++) {
      const int32_t sms = few ? 5 : 0;
      run(rig, &(chosen_case){m, -1, 5, 128, 384, 2, 1, sms, B, 0});
      if (quick) continue;
      run(rig, &(chosen_case){m, m - m / 3, 33, 256, 512, 4, 1, sms, F, F});
      run(rig, &(chosen_case){m, -1, 70, 384, 640, 8, 0, sms, B, B});
    }
  }
  /* Fewer groups of tokens than CTAs; experts longer than the rings of FC2. */
  run(rig, &(chosen_case){1, -1, 33, 256, 512, 4, 1, 0, B, 0});
  run(rig, &(chosen_case){40, -1, 7, 1280, 256, 3, 1, 0, F, 0});
  run(rig, &(chosen_case){140, -1, 7, 2048, 256, 3, 1, 5, B, F});
  /* moe_experts in two segments of FC2. */
  run(rig, &(chosen_case){1, -1, 65, 128, 4096, 4, 1, 0, B, 0});
  run(rig, &(chosen_case){6, 5, 65, 128, 4096, 9, 1, 20, F, F});
  if (quick) return;
  static const int64_t lives[] = {0, 1, 31, 32, 33, 128, 129, 255, 256, 257, 300};
  for (size_t i = 0; i < sizeof lives / sizeof *lives; i++)
    run(rig, &(chosen_case){300, lives[i], 40, 128, 256, 6, 1, 0, B, 0});
  /* What moe_experts takes: experts in one round and in several, one segment of FC2 and two. */
  for (int64_t m = 1; m <= 8; m++) {
    run(rig, &(chosen_case){m, -1, 65, 128, 4096, 4, 1, 0, B, 0});
    if (m == 2 || m == 7) run(rig, &(chosen_case){m, m - m / 2, 257, 256, 7168, 8, 1, m % 2 ? 0 : 116, F, B});
    run(rig, &(chosen_case){m, -1, 20, 256, 8192, 18, 1, m % 3 ? 0 : 7, B, F});
  }
  /* DeepSeek-V3 and 384 experts, of one of eight ranks; and experts of a whole rank. */
  static const int64_t rows[] = {1, 16, 64, 96, 128, 192, 256};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    run(rig, &(chosen_case){rows[i], -1, 257, 256, 7168, 8, 1, 0, B, 0});
  run(rig, &(chosen_case){256, 200, 385, 256, 7168, 8, 1, 0, B, 0});
  run(rig, &(chosen_case){256, -1, 17, 2048, 7168, 4, 1, 116, B, B});
}
