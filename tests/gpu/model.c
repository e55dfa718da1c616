/* The whole golden model on the CUDA device against the host device, through the public API; and its graphs. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"
#include "tests/models/variant.h"

enum { SEQUENCES = 3, VOCAB = 256, HIDDEN = 384, LAYERS = 2, MOST_TOKENS = 96 };

static const int64_t lengths[SEQUENCES] = {29, 5, 43};

typedef struct side {
  tdm_runtime* runtime;
  tdm_model* model;
  tdm_sequence* sequences[SEQUENCES];
} side;

static bool ok(gpu_rig* rig, tdm_status status, const char* what) {
  if (status != TDM_OK) gpu_fail(rig, "%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
  return status == TDM_OK;
}

static bool open_side(gpu_rig* rig, side* s, const char* folder, tdm_device_kind kind, bool graphs, tdm_order order,
                      tdm_strategy strategy, tdm_wait_form wait_form, tdm_moe_path moe_path) {
  *s = (side){0};
  tdm_runtime_config config;
  tdm_model_config model;
  tdm_runtime_config_init(&config, sizeof config);
  tdm_model_config_init(&model, sizeof model);
  config.device_kind = kind;
  model.max_tokens = MOST_TOKENS;
  model.max_seqs = 4;
  model.max_context = 256;
  model.cache_pages = 16;
  model.taps = true;
  model.use_graphs = graphs;
  model.order = order;
  model.strategy = strategy;
  model.wait_form = wait_form;
  model.moe_path = moe_path;
  model.strict = true;
  if (!ok(rig, tdm_runtime_create(&config, &s->runtime), "runtime")) return false;
  return ok(rig, tdm_model_load(s->runtime, folder, &model, &s->model), "model");
}

static void end_sequences(side* s) {
  for (int i = 0; i < SEQUENCES; i++) tdm_sequence_destroy(s->sequences[i]);
  memset(s->sequences, 0, sizeof s->sequences);
}

static void close_side(gpu_rig* rig, side* s) {
  end_sequences(s);
  (void)ok(rig, tdm_model_destroy(s->model), "destroying the model");
  (void)ok(rig, tdm_runtime_destroy(s->runtime), "destroying the runtime");
}

static bool begin_sequences(gpu_rig* rig, side* s) {
  end_sequences(s);
  for (int i = 0; i < SEQUENCES; i++)
    if (!ok(rig, tdm_sequence_create(s->model, &s->sequences[i]), "sequence")) return false;
  return true;
}

/* Token `i` of sequence `s`: any will do, the two devices get the same. */
static int32_t token_of(int s, int64_t i) {
  return (int32_t)((i * 37 + s * 101 + i * i) % VOCAB);
}

/* Step 0: prefill of all but four tokens; then one token of each sequence that has one left. Answers rows, 0 at the
 * end. */
static int64_t forward(gpu_rig* rig, side* s, int64_t step, float* logits, int32_t* drawn) {
  static int32_t tokens[SEQUENCES][64];
  tdm_batch_item items[SEQUENCES];
  int64_t n = 0;
  for (int i = 0; i < SEQUENCES; i++) {
    const int64_t prefill = lengths[i] > 4 ? lengths[i] - 4 : 1;
    const int64_t first = step ? prefill + step - 1 : 0, count = step ? 1 : prefill;
    if (first >= lengths[i]) continue;
    for (int64_t k = 0; k < count; k++) tokens[i][k] = token_of(i, first + k);
    items[n++] = (tdm_batch_item){.sequence = s->sequences[i],
                                  .tokens = tokens[i],
                                  .n_tokens = count,
                                  .logits = TDM_LOGITS_ALL,
                                  .temperature = i == 1 ? 0.8f : 0,
                                  .top_p = 0.9f,
                                  .seed = 5};
  }
  if (n == 0) return 0;
  tdm_forward_result result = {.size = sizeof result};
  if (!ok(rig, tdm_model_forward(s->model, items, n, &result), "forward")) return 0;
  memcpy(drawn, result.tokens, (size_t)result.n_logits * sizeof *drawn);
  return ok(rig,
            tdm_buffer_read(result.logits.buffer, (size_t)result.logits.offset_bytes, logits,
                            (size_t)(result.n_logits * VOCAB) * sizeof *logits),
            "logits")
             ? result.n_logits
             : 0;
}

/* 1 - 2 sum(xy) / sum(x^2 + y^2), about half the square of the relative error. The tensor cores add FP8 products with
 * some 14 bits, which turns roundings to bf16, and these turn roundings to FP8 further on: so two right devices differ
 * by 1e-4 to 1e-3. */
static double difference(const float* a, const float* b, int64_t n) {
  double products = 0, squares = 0;
  for (int64_t i = 0; i < n; i++) {
    products += (double)a[i] * (double)b[i];
    squares += (double)a[i] * (double)a[i] + (double)b[i] * (double)b[i];
  }
  return 1 - 2 * products / squares;
}

/* A tapped value of the last call as f32. */
static bool read_tap(gpu_rig* rig, const side* s, const char* name, int64_t rows, float* out) {
  tdm_view view;
  if (!ok(rig, tdm_model_tap(s->model, name, &view), name)) return false;
  static uint16_t raw[MOST_TOKENS * HIDDEN];
  if (!ok(rig, tdm_buffer_read(view.buffer, (size_t)view.offset_bytes, raw, (size_t)(rows * HIDDEN) * 2), name))
    return false;
  for (int64_t i = 0; i < rows * HIDDEN; i++) {
    const uint32_t bits = (uint32_t)raw[i] << 16;
    memcpy(&out[i], &bits, sizeof bits);
  }
  return true;
}

/* One decoder layer at a time, both devices fed with the same input, so that differences do not add up. */
static void compare_layers(gpu_rig* rig, side* cuda, side* host, const char* weights, double bound) {
  static float in[MOST_TOKENS * HIDDEN], ours[MOST_TOKENS * HIDDEN], theirs[MOST_TOKENS * HIDDEN];
  for (int64_t layer = 0; layer < LAYERS; layer++) {
    gpu_begin(rig, "model: layer %d of %s on both devices", (int)layer, weights);
    if (!begin_sequences(rig, cuda) || !begin_sequences(rig, host)) return;
    const int64_t rows = lengths[0] + lengths[1] + lengths[2];
    for (int64_t i = 0; i < rows * HIDDEN; i++) in[i] = (float)((i * 7919 + layer) % 2001) / 1000.0f - 1.0f;
    tdm_batch_item cuda_items[SEQUENCES], host_items[SEQUENCES];
    for (int i = 0; i < SEQUENCES; i++) {
      cuda_items[i] = (tdm_batch_item){.sequence = cuda->sequences[i], .n_tokens = lengths[i]};
      host_items[i] = (tdm_batch_item){.sequence = host->sequences[i], .n_tokens = lengths[i]};
    }
    const bool ran =
        ok(rig, tdm_model_forward_layers(cuda->model, cuda_items, SEQUENCES, layer, 1, in, ours), "layer on the GPU") &&
        ok(rig, tdm_model_forward_layers(host->model, host_items, SEQUENCES, layer, 1, in, theirs),
           "layer on the host");
    /* A row whose experts differ after a near tie is far off; there may be one in ten, and they are left out. */
    int64_t far = 0;
    for (int64_t row = 0; ran && row < rows; row++) {
      if (difference(ours + row * HIDDEN, theirs + row * HIDDEN, HIDDEN) <= 1e-2) continue;
      far++;
      memcpy(ours + row * HIDDEN, theirs + row * HIDDEN, HIDDEN * sizeof *ours);
    }
    const double error = difference(ours, theirs, rows * HIDDEN);
    (void)printf("  layer %d of %s: host and GPU differ by %.1e; %d of %d rows left out\n", (int)layer, weights, error,
                 (int)far, (int)rows);
    if (!(error <= bound)) gpu_fail(rig, "the difference is %g", error);
    if (far * 10 > rows * layer) gpu_fail(rig, "%d of %d rows are further than 1e-2 apart", (int)far, (int)rows);
    gpu_end(rig);
  }
}

/* Bits of a whole run: prefill, four decode steps, drawn tokens. */
static bool run_all(gpu_rig* rig, side* s, float* logits, int32_t* drawn) {
  if (!begin_sequences(rig, s)) return false;
  for (int64_t step = 0;; step++) {
    const int64_t rows = forward(rig, s, step, logits, drawn);
    if (rows == 0) return step > 0;
    logits += rows * VOCAB;
    drawn += rows;
  }
}

static void compare_bits(gpu_rig* rig) {
  static const struct {
    const char* name;
    bool graphs;
    tdm_order order;
    tdm_strategy strategy;
    tdm_wait_form wait_form;
    tdm_moe_path moe_path;
  } ways[] = {
      {"soft lanes, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"soft lanes, eager", false, TDM_ORDER_LANES, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"steps in serial order", false, TDM_ORDER_SERIAL, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"green lanes, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"green lanes, eager", false, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"green lanes with signals, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL,
       TDM_MOE_PATH_DENSE},
      {"green lanes with signals, eager", false, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL,
       TDM_MOE_PATH_DENSE},
      {"signals in serial order", false, TDM_ORDER_SERIAL, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, TDM_MOE_PATH_DENSE},
      {"one lane, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, TDM_MOE_PATH_DENSE},
      {"hit experts alone, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_HITS},
      {"hit experts alone, signals", true, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, TDM_MOE_PATH_HITS},
      {"hit experts alone, serial", false, TDM_ORDER_SERIAL, TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, TDM_MOE_PATH_HITS},
      {"each expert's tokens, replayed", true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_GROUPED},
      {"each expert's tokens, signals", true, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL,
       TDM_MOE_PATH_GROUPED},
      {"experts as the bucket has them", true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, TDM_MOE_PATH_AUTO}};
  enum { WAYS = sizeof ways / sizeof *ways };
  static float logits[WAYS][128 * VOCAB];
  static int32_t drawn[WAYS][128];
  for (int way = 0; way < WAYS; way++) {
    gpu_begin(rig, "model: %s, the same bits", ways[way].name);
    side s;
    if (open_side(rig, &s, GOLDEN_V3, TDM_DEVICE_CUDA, ways[way].graphs, ways[way].order, ways[way].strategy,
                  ways[way].wait_form, ways[way].moe_path)) {
      if (run_all(rig, &s, logits[way], drawn[way]) &&
          (memcmp(logits[way], logits[0], sizeof logits[0]) != 0 || memcmp(drawn[way], drawn[0], sizeof drawn[0]) != 0))
        gpu_fail(rig, "other bits than on soft lanes, replayed");
    }
    close_side(rig, &s);
    gpu_end(rig);
  }
}

/* Decode steps with growing lengths, over and over: the same bits each time. */
static void replay_often(gpu_rig* rig, side* cuda, const char* name, int64_t rounds) {
  static float first[128 * VOCAB], again[128 * VOCAB];
  static int32_t first_drawn[128], drawn[128];
  gpu_begin(rig, "model: %d rounds of prefill and decode, %s", (int)rounds, name);
  bool fine = run_all(rig, cuda, first, first_drawn);
  for (int64_t i = 0; fine && i < rounds; i++) {
    fine = run_all(rig, cuda, again, drawn);
    if (fine && memcmp(first, again, sizeof first) != 0) gpu_fail(rig, "round %d gave other bits", (int)i);
  }
  gpu_end(rig);
}

/* The model with bf16 weights everywhere, experts included: nothing is quantised. Replayed and eager. */
static void run_bf16(gpu_rig* rig) {
  static float logits[2][128 * VOCAB];
  static int32_t drawn[2][128];
  const variant_config config = {.edit = variant_to_bf16};
  const char* folder = variant_make(&config);
  side cuda, host;
  gpu_begin(rig, "model: bf16 weights load on both devices");
  const bool opened = open_side(rig, &cuda, folder, TDM_DEVICE_CUDA, true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT,
                                TDM_WAIT_EDGE, TDM_MOE_PATH_HITS) &&
                      open_side(rig, &host, folder, TDM_DEVICE_HOST, true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT,
                                TDM_WAIT_EDGE, TDM_MOE_PATH_AUTO);
  gpu_end(rig);
  if (opened) {
    compare_layers(rig, &cuda, &host, "bf16", 1e-4);
    gpu_begin(rig, "model: bf16 weights, dense and eager, the same bits as hit experts, replayed");
    side eager;
    if (open_side(rig, &eager, folder, TDM_DEVICE_CUDA, false, TDM_ORDER_SERIAL, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE,
                  TDM_MOE_PATH_DENSE) &&
        run_all(rig, &cuda, logits[0], drawn[0]) && run_all(rig, &eager, logits[1], drawn[1]) &&
        (memcmp(logits[0], logits[1], sizeof logits[0]) != 0 || memcmp(drawn[0], drawn[1], sizeof drawn[0]) != 0))
      gpu_fail(rig, "other bits");
    close_side(rig, &eager);
    gpu_end(rig);
    close_side(rig, &cuda);
    close_side(rig, &host);
  }
  variant_remove();
}

void test_model(gpu_rig* rig, bool quick) {
  side cuda, host;
  gpu_begin(rig, "model: loads on both devices");
  const bool opened = open_side(rig, &cuda, GOLDEN_V3, TDM_DEVICE_CUDA, true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT,
                                TDM_WAIT_EDGE, TDM_MOE_PATH_AUTO) &&
                      open_side(rig, &host, GOLDEN_V3, TDM_DEVICE_HOST, true, TDM_ORDER_LANES, TDM_STRATEGY_SOFT,
                                TDM_WAIT_EDGE, TDM_MOE_PATH_AUTO);
  gpu_end(rig);
  if (!opened) return;
  compare_layers(rig, &cuda, &host, "FP8", 1e-3);

  static float ours[128 * VOCAB], theirs[128 * VOCAB];
  static float our_tap[MOST_TOKENS * HIDDEN], their_tap[MOST_TOKENS * HIDDEN];
  static int32_t our_drawn[128], their_drawn[128];
  gpu_begin(rig, "model: first layer's values in the whole model");
  if (begin_sequences(rig, &cuda) && begin_sequences(rig, &host)) {
    const int64_t rows = forward(rig, &cuda, 0, ours, our_drawn);
    (void)forward(rig, &host, 0, theirs, their_drawn);
    static const char* const taps[] = {"layer0.in", "layer0.attn", "layer0.mlp", "layer0.out"};
    for (int i = 0; i < 4 && rows; i++) {
      if (!read_tap(rig, &cuda, taps[i], rows, our_tap) || !read_tap(rig, &host, taps[i], rows, their_tap)) break;
      const double error = difference(our_tap, their_tap, rows * HIDDEN);
      (void)printf("  %s: host and GPU differ by %.1e\n", taps[i], error);
      if (!(error <= 1e-3)) gpu_fail(rig, "%s differs by %g", taps[i], error);
    }
  }
  gpu_end(rig);
  replay_often(rig, &cuda, "soft lanes", quick ? 2 : 60);
  close_side(rig, &cuda);
  if (open_side(rig, &cuda, GOLDEN_V3, TDM_DEVICE_CUDA, true, TDM_ORDER_LANES, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL,
                TDM_MOE_PATH_AUTO))
    replay_often(rig, &cuda, "green lanes with signals", quick ? 2 : 60);
  close_side(rig, &cuda);
  close_side(rig, &host);
  compare_bits(rig);
  if (!quick) run_bf16(rig);
}
