#include "models/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "models/rope_table.h"

enum { DEFAULT_CONTEXT = 4096, DEFAULT_PAGES = 256 };

tdm_status tdm_model_config_init(tdm_model_config* config, size_t size) {
  const tdm_model_config defaults = {.size = size,
                                     .activations = TDM_ACTIVATIONS_NATIVE,
                                     .max_tokens = 512,
                                     .max_seqs = 64,
                                     .prefill_threshold = 16,
                                     .strategy = TDM_STRATEGY_AUTO,
                                     .side_sms = 16,
                                     .moe_path = TDM_MOE_PATH_AUTO,
                                     .wait_form = TDM_WAIT_EDGE,
                                     .signal_limit_ms = 10000,
                                     .order = TDM_ORDER_LANES,
                                     .use_graphs = true};
  return tdm_config_init("tdm_model_config", &defaults, sizeof defaults, config, size);
}

/* ---- checking and completing the config ------------------------------------------------------------------------- */

/* A limit of the caller's, for the sentence. */
typedef struct limit {
  const char* name;
  int64_t value, least, most;
} limit;

static tdm_status check_limits(const limit* limits, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.%s is %" PRId64 ", must be %" PRId64 " to %" PRId64,
                      limits[i].name, limits[i].value, limits[i].least, limits[i].most);
  return TDM_OK;
}

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Small steps where decoding lives, then doubling, and the limit itself. */
static int32_t fill_buckets(int64_t max_tokens, int64_t buckets[TDM_MODEL_MAX_BUCKETS]) {
  static const int64_t small[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
  int32_t n = 0;
  for (size_t i = 0; i < sizeof small / sizeof *small && small[i] < max_tokens; i++) buckets[n++] = small[i];
  for (int64_t bucket = 512; bucket < max_tokens; bucket *= 2) buckets[n++] = bucket;
  buckets[n++] = max_tokens;
  return n;
}

/* The caller's buckets or the default ones, in the model. That they ascend is for the graph cache to check. */
static tdm_status take_buckets(tdm_model* model) {
  tdm_model_config* config = &model->config;
  if (!config->buckets) {
    config->n_buckets = fill_buckets(config->max_tokens, model->buckets);
  } else {
    if (config->n_buckets < 1 || config->n_buckets > TDM_MODEL_MAX_BUCKETS)
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.n_buckets is %d, must be 1 to %d", config->n_buckets,
                      TDM_MODEL_MAX_BUCKETS);
    const int64_t last = config->buckets[config->n_buckets - 1];
    if (last != config->max_tokens)
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "the last of tdm_model_config.buckets is %" PRId64 ", must be max_tokens, %" PRId64, last,
                      config->max_tokens);
    memcpy(model->buckets, config->buckets, (size_t)config->n_buckets * sizeof *model->buckets);
  }
  config->buckets = model->buckets;
  return TDM_OK;
}

static tdm_status complete_config(const tdm_deepseek_v3_config* shape, tdm_model_config* config) {
  if (config->activations != TDM_ACTIVATIONS_NATIVE && config->activations != TDM_ACTIVATIONS_FLOAT32)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.activations is %d, no tdm_activations",
                    (int)config->activations);
  if (config->order < TDM_ORDER_LANES || config->order > TDM_ORDER_SHUFFLED)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.order is %d, no tdm_order", (int)config->order);
  if (config->strategy < TDM_STRATEGY_AUTO || config->strategy > TDM_STRATEGY_SPLIT)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.strategy is %d, no tdm_strategy", (int)config->strategy);
  if (config->moe_path < TDM_MOE_PATH_AUTO || config->moe_path > TDM_MOE_PATH_GROUPED)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.moe_path is %d, no tdm_moe_path", (int)config->moe_path);
  if (config->wait_form != TDM_WAIT_EDGE && config->wait_form != TDM_WAIT_SIGNAL)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_config.wait_form is %d, no tdm_wait_form", (int)config->wait_form);
  if (config->wait_form == TDM_WAIT_SIGNAL && config->strategy == TDM_STRATEGY_AUTO)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_model_config.wait_form is TDM_WAIT_SIGNAL with TDM_STRATEGY_AUTO, which decides for itself; "
                    "set the strategy as well");
  if (config->max_context == 0) config->max_context = smaller(shape->max_position_embeddings, DEFAULT_CONTEXT);
  if (config->cache_pages == 0) config->cache_pages = DEFAULT_PAGES;
  if (config->layers == 0) config->layers = shape->num_hidden_layers;
  const limit limits[] = {
      {"max_tokens", config->max_tokens, 1, 1 << 20},
      {"max_seqs", config->max_seqs, 1, 1 << 16},
      {"max_context", config->max_context, 1, shape->max_position_embeddings},
      {"cache_pages", config->cache_pages, 1, INT32_MAX / TDM_PAGE_TOKENS},
      {"prefill_threshold", config->prefill_threshold, 1, INT64_MAX},
      {"layers", config->layers, 1, shape->num_hidden_layers},
      {"side_sms", config->side_sms, 1, 1024},
  };
  return check_limits(limits, sizeof limits / sizeof *limits);
}

/* ---- making and destroying -------------------------------------------------------------------------------------- */

/* Where a model comes from: a folder, or a shape and a seed. */
typedef struct model_source {
  const char* directory; /* NULL: random weights */
  tdm_deepseek_v3_config shape;
  uint64_t seed;
} model_source;

static tdm_status load_weights(tdm_model* model, const model_source* source) {
  const tdm_dtype activation = model->config.activations == TDM_ACTIVATIONS_FLOAT32 ? TDM_F32 : TDM_BF16;
  tdm_checkpoint* checkpoint = NULL;
  if (source->directory) TDM_TRY(tdm_checkpoint_open(model->runtime, source->directory, &checkpoint));
  const tdm_status status =
      tdm_v3_weights_load(model->runtime, checkpoint, source->directory ? source->directory : "random weights",
                          &source->shape, activation, model->config.layers, source->seed, &model->weights);
  tdm_checkpoint_close(checkpoint);
  return status;
}

static tdm_status make_rope_table(tdm_model* model) {
  const int64_t shape[] = {model->config.max_context, TDM_MLA_ROPE};
  tdm_buffer* buffer;
  TDM_TRY(tdm_buffer_create(model->runtime, (size_t)(shape[0] * shape[1]) * sizeof(float), &buffer));
  model->cos_sin = tdm_view_make(buffer, TDM_F32, 2, shape);
  float* table = tdm_host_alloc(model->runtime, tdm_buffer_bytes(buffer));
  if (!table) return TDM_OUT_OF_MEMORY;
  tdm_rope_table_fill(&model->weights.config.rope, shape[0], table);
  const tdm_status status = tdm_buffer_write(buffer, 0, table, tdm_buffer_bytes(buffer));
  tdm_host_free(model->runtime, table, tdm_buffer_bytes(buffer));
  return status;
}

/* Makes the lanes of all buckets before anything is captured, and logs where they are not what was chosen. */
static tdm_status get_bucket_lanes(const tdm_model* model) {
  for (int32_t i = 0; i < model->config.n_buckets; i++)
    for (int prefill = 0; prefill < 2; prefill++) {
      tdm_choice_info info;
      tdm_model_lanes lanes;
      tdm_model_choose(model, model->buckets[i], prefill, &info);
      TDM_TRY(tdm_model_get_lanes(model, &info.choice, model->config.strict, &lanes));
      if (*lanes.reason && strcmp(lanes.reason, model->lanes.reason) != 0)
        tdm_log(model->runtime, TDM_LOG_WARNING, "%s of %" PRId64 " tokens: soft lanes instead of green ones: %s",
                prefill ? "prefill" : "decoding", model->buckets[i], lanes.reason);
    }
  return TDM_OK;
}

/* The lanes where nothing is measured. */
static tdm_status get_lanes(tdm_model* model) {
  tdm_choice_info info;
  tdm_model_choose(model, model->buckets[0], false, &info);
  TDM_TRY(tdm_model_get_lanes(model, &info.choice, model->config.strict, &model->lanes));
  if (*model->lanes.reason)
    tdm_log(model->runtime, TDM_LOG_WARNING, "soft lanes instead of green ones: %s", model->lanes.reason);
  return TDM_OK;
}

static int32_t tuned_buckets(const tdm_model* model) {
  int32_t n = 0;
  for (int32_t i = 0; i < model->config.n_buckets; i++)
    for (int prefill = 0; prefill < 2; prefill++)
      n += tdm_tuning_find(model->tuning, &model->identity, prefill, model->buckets[i]) != NULL;
  return n;
}

/* Copies what the config's tuning says of such a model. */
static tdm_status take_tuning(tdm_model* model) {
  const tdm_tuning* given = model->config.tuning;
  int32_t taken = 0;
  model->config.tuning = NULL; /* borrowed until now */
  TDM_TRY(tdm_model_identify(model, &model->identity));
  if (!given) return TDM_OK;
  TDM_TRY(tdm_tuning_create(model->runtime, &model->tuning));
  TDM_TRY(tdm_tuning_take(model->tuning, given, &model->identity, &taken));
  if (taken == 0)
    tdm_tuning_difference(given, &model->identity, model->tuning_reason, sizeof model->tuning_reason);
  else if (tuned_buckets(model) == 0)
    (void)snprintf(model->tuning_reason, sizeof model->tuning_reason,
                   "it speaks of %d buckets, and none is one of this model", taken);
  if (*model->tuning_reason)
    tdm_log(model->runtime, TDM_LOG_WARNING, "the tuning is of no use here: %s", model->tuning_reason);
  return get_bucket_lanes(model);
}

static tdm_status build_model(tdm_model* model, model_source* source) {
  if (source->directory) TDM_TRY(tdm_deepseek_v3_config_read(model->runtime, source->directory, &source->shape));
  TDM_TRY(complete_config(&source->shape, &model->config));
  TDM_TRY(take_buckets(model));
  if (model->runtime->config.device_kind == TDM_DEVICE_CUDA && model->config.activations == TDM_ACTIVATIONS_FLOAT32)
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "float32 activations are for the host device: the kernels compute in bf16 and FP8");
  const tdm_model_config* config = &model->config;
  TDM_TRY(get_lanes(model));
  TDM_TRY(load_weights(model, source));
  TDM_TRY(take_tuning(model));
  TDM_TRY(make_rope_table(model));
  TDM_TRY(
      tdm_kv_cache_init(model->runtime, config->layers, config->cache_pages, model->weights.activation, &model->cache));
  if (!source->directory) /* what sequences then pretend to have cached */
    for (int64_t layer = 0; layer < config->layers; layer++)
      TDM_TRY(tdm_fill_random(model->runtime, &model->cache.layers[layer], source->seed ^ (uint64_t)(layer + 1) << 20,
                              1, 0));
  const tdm_batch_limits limits = {
      .tokens = config->max_tokens, .seqs = config->max_seqs, .pages_per_seq = tdm_kv_cache_pages(config->max_context)};
  TDM_TRY(tdm_batch_init(model->runtime, &limits, &model->batch));
  model->next_tokens = tdm_host_alloc_array(model->runtime, config->max_tokens, sizeof *model->next_tokens);
  if (!model->next_tokens) return TDM_OUT_OF_MEMORY;
  return tdm_model_graphs_create(model, &model->whole);
}

static void destroy(tdm_model* model) {
  tdm_runtime* runtime = model->runtime;
  tdm_model_graphs_destroy(model->whole);
  tdm_model_graphs_fini(&model->layers);
  tdm_tuning_destroy(model->tuning);
  tdm_host_free(runtime, model->next_tokens, (size_t)model->config.max_tokens * sizeof *model->next_tokens);
  tdm_buffer_destroy(model->hidden.buffer);
  tdm_batch_fini(&model->batch);
  tdm_kv_cache_fini(&model->cache);
  tdm_buffer_destroy(model->cos_sin.buffer);
  tdm_v3_weights_release(&model->weights);
  tdm_host_free(runtime, model, sizeof *model);
  tdm_runtime_release(runtime, TDM_OBJECT_MODEL);
}

static tdm_status make_model(tdm_runtime* runtime, model_source* source, const tdm_model_config* config,
                             tdm_model** out_model) {
  tdm_model_config wanted;
  TDM_TRY(tdm_model_config_init(&wanted, sizeof wanted));
  if (config) TDM_TRY(tdm_config_copy("tdm_model_config", config, sizeof wanted, &wanted));
  tdm_model* model = tdm_host_alloc(runtime, sizeof *model);
  if (!model) return TDM_OUT_OF_MEMORY;
  model->runtime = runtime;
  model->config = wanted;
  tdm_runtime_retain(runtime, TDM_OBJECT_MODEL);
  const tdm_status status = build_model(model, source);
  if (status != TDM_OK) {
    destroy(model);
    return status;
  }
  *out_model = model;
  return TDM_OK;
}

tdm_status tdm_model_load(tdm_runtime* runtime, const char* directory, const tdm_model_config* config,
                          tdm_model** out_model) {
  if (out_model) *out_model = NULL;
  if (!runtime || !directory || !out_model)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_load: runtime, directory and out_model must not be NULL");
  model_source source = {.directory = directory};
  return make_model(runtime, &source, config, out_model);
}

tdm_status tdm_model_create_random(tdm_runtime* runtime, const tdm_deepseek_v3_config* shape, uint64_t seed,
                                   const tdm_model_config* config, tdm_model** out_model) {
  if (out_model) *out_model = NULL;
  if (!runtime || !shape || !out_model)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_create_random: runtime, shape and out_model must not be NULL");
  model_source source = {.shape = *shape, .seed = seed};
  return make_model(runtime, &source, config, out_model);
}

tdm_status tdm_model_destroy(tdm_model* model) {
  if (!model) return TDM_OK;
  if (model->n_sequences)
    return TDM_FAIL(TDM_INVALID_STATE, "the model cannot be destroyed while %" PRId64 " of its sequences are alive",
                    model->n_sequences);
  destroy(model);
  return TDM_OK;
}

tdm_status tdm_model_warm_up(tdm_model* model) {
  if (!model) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_warm_up: model must not be NULL");
  TDM_TRY(tdm_graph_cache_warm_up(model->whole->decode));
  return tdm_graph_cache_warm_up(model->whole->mixed);
}

/* ---- looking at it ---------------------------------------------------------------------------------------------- */

const tdm_deepseek_v3_config* tdm_model_get_config(const tdm_model* model) {
  return model ? &model->weights.config : NULL;
}

static size_t workspace_bytes(const tdm_model_graphs* graphs) {
  size_t bytes = 0;
  const tdm_graph_cache* const caches[] = {graphs->decode, graphs->mixed};
  for (size_t i = 0; i < 2; i++) {
    tdm_graph_cache_info info = {.size = sizeof info};
    if (caches[i] && tdm_graph_cache_get_info(caches[i], &info) == TDM_OK) bytes += info.workspace_bytes;
  }
  return bytes;
}

tdm_status tdm_model_get_info(const tdm_model* model, tdm_model_info* out_info) {
  if (!model || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_get_info: model and out_info must not be NULL");
  tdm_model_info info = {
      .size = sizeof info,
      .strategy = model->lanes.strategy,
      .wait_form = model->lanes.wait_form,
      .tuned_buckets = tuned_buckets(model),
      .layers = model->config.layers,
      .max_context = model->config.max_context,
      .cache_pages = model->cache.n_pages,
      .cache_pages_free = model->cache.n_free,
      .weight_bytes = model->weights.bytes,
      .cache_bytes = (size_t)model->cache.n_layers * tdm_buffer_bytes(model->cache.layers[0].buffer),
      .workspace_bytes = workspace_bytes(model->whole) + workspace_bytes(&model->layers),
  };
  memcpy(info.strategy_reason, model->lanes.reason, sizeof info.strategy_reason);
  memcpy(info.tuning_reason, model->tuning_reason, sizeof info.tuning_reason);
  return tdm_info_copy("tdm_model_info", &info, sizeof info, out_info, out_info->size);
}

const tdm_graph_cache* tdm_model_graph_cache(const tdm_model* model, bool prefill) {
  return !model ? NULL : prefill ? model->whole->mixed : model->whole->decode;
}

tdm_status tdm_model_program(const tdm_model* model, tdm_program** out_program) {
  if (out_program) *out_program = NULL;
  if (!model || !out_program)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_program: model and out_program must not be NULL");
  if (!model->last) return TDM_FAIL(TDM_INVALID_STATE, "tdm_model_program: no forward call has been made");
  *out_program = model->last;
  return TDM_OK;
}

tdm_status tdm_model_tap(const tdm_model* model, const char* name, tdm_view* out_view) {
  if (out_view) *out_view = (tdm_view){0};
  if (!model || !name || !out_view)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_tap: model, name and out_view must not be NULL");
  if (!model->config.taps || !model->last)
    return TDM_FAIL(TDM_INVALID_STATE, "tdm_model_tap: '%s' %s", name,
                    model->config.taps ? "before the first forward call" : "of a model that was loaded without taps");
  static const char* const values[] = {"in",       "attn",         "mlp_in", "mlp",   "out",
                                       "topk_ids", "topk_weights", "hits",   "chosen"};
  int layer = 0, length = 0;
  bool known = false;
  if (sscanf(name, "layer%d.%n", &layer, &length) == 1 && length > 0)
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) known = known || strcmp(name + length, values[i]) == 0;
  if (!known) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_tap: '%s' is not a value that is kept", name);
  /* A layer's output is added up by whatever comes next: it is the next layer's input, or the end of the range. */
  char next[32];
  snprintf(next, sizeof next, "layer%d.in", layer < INT32_MAX ? layer + 1 : layer);
  if (strcmp(name + length, "out") == 0 && tdm_program_find(model->last, next, out_view) == TDM_OK) return TDM_OK;
  return tdm_program_find(model->last, name, out_view);
}
