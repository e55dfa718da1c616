#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "models/model.h"
#include "models/tune_search.h"
#include "runtime/lane.h"

/* How long a way is replayed: GROUPS times at least `group_ns`, whose median counts. One that is a third slower than
 * the best after its first group is left at that. */
enum { GROUPS = 5 };
static const int64_t group_ns = 4000000;
static const double hopeless = 1.33;

tdm_status tdm_tune_config_init(tdm_tune_config* config, size_t size) {
  const tdm_tune_config defaults = {
      .size = size, .layers = 4, .context = 4096, .prefill = true, .gain = 0.02, .limit_s = 60};
  return tdm_config_init("tdm_tune_config", &defaults, sizeof defaults, config, size);
}

/* ---- one bucket's batch ----------------------------------------------------------------------------------------- */

typedef struct tuner {
  tdm_model* model;
  tdm_tune_config config;
  tdm_model_range range;
  int64_t bucket;
  bool prefill;
  tdm_batch_item* items; /* [max_seqs] */
  int64_t n_items;
  int32_t programs;
} tuner;

static void release_items(tuner* t) {
  for (int64_t i = 0; i < t->n_items; i++) tdm_sequence_destroy(t->items[i].sequence);
  t->n_items = 0;
}

static int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Tokens that each of n sequences can have in the cache before it gets `n_new` more; below 0 when there is not even
 * room for those. */
static int64_t context_of(const tuner* t, int64_t n_seqs, int64_t n_new) {
  const int64_t pages = t->model->cache.n_free / n_seqs;
  return least(least(t->config.context, t->model->config.max_context), pages * TDM_PAGE_TOKENS) - n_new;
}

/* As many sequences as there may be for decoding, as few as there can be for prefill, tokens spread evenly. */
static tdm_status make_items(tuner* t) {
  const tdm_model_config* config = &t->model->config;
  const int64_t rows = t->bucket, fewest = (rows + config->max_context - 1) / config->max_context;
  const int64_t n = t->prefill ? fewest : least(rows, config->max_seqs);
  if (n > config->max_seqs)
    return TDM_FAIL(TDM_UNSUPPORTED, "%" PRId64 " tokens of max_context %" PRId64 " each take %" PRId64 " sequences",
                    rows, config->max_context, n);
  const int64_t most_new = (rows + n - 1) / n, context = context_of(t, n, most_new);
  if (context < (t->prefill ? 0 : 1))
    return TDM_FAIL(TDM_OUT_OF_MEMORY,
                    "%" PRId64 " sequences of %" PRId64 " new tokens and a context do not fit into %" PRId64
                    " free pages of the cache",
                    n, most_new, t->model->cache.n_free);
  for (int64_t i = 0; i < n; i++) {
    tdm_batch_item* item = &t->items[i];
    *item = (tdm_batch_item){.n_tokens = rows / n + (i < rows % n)};
    TDM_TRY(tdm_sequence_create(t->model, &item->sequence));
    t->n_items++;
    if (!t->prefill) TDM_TRY(tdm_sequence_pretend(item->sequence, context));
  }
  return tdm_model_stage(t->model, t->items, t->n_items);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static int64_t now_ns(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int compare_ns(const void* a, const void* b) {
  const int64_t x = *(const int64_t*)a, y = *(const int64_t*)b;
  return (x > y) - (x < y);
}

static tdm_status time_group(const tuner* t, tdm_graph* graph, int64_t replays, int64_t* out_ns) {
  const int64_t begin = now_ns();
  for (int64_t i = 0; i < replays; i++) TDM_TRY(tdm_graph_replay(graph, NULL));
  TDM_TRY(tdm_runtime_synchronize(t->model->runtime));
  const int64_t ns = (now_ns() - begin) / replays;
  *out_ns = ns > 0 ? ns : 1;
  return TDM_OK;
}

static tdm_status time_graph(const tuner* t, tdm_graph* graph, int64_t best_ns, int64_t* out_ns) {
  int64_t groups[GROUPS], warm = 0;
  TDM_TRY(time_group(t, graph, 1, &warm));
  TDM_TRY(time_group(t, graph, 1, &warm));
  const int64_t replays = group_ns / warm + 1;
  for (int i = 0; i < GROUPS; i++) {
    TDM_TRY(time_group(t, graph, replays, &groups[i]));
    if (i == 0 && best_ns > 0 && (double)groups[0] > hopeless * (double)best_ns) {
      *out_ns = groups[0];
      return TDM_OK;
    }
  }
  qsort(groups, GROUPS, sizeof *groups, compare_ns);
  *out_ns = groups[GROUPS / 2];
  return TDM_OK;
}

/* A way that cannot be had, with what the last call answered instead. */
static void log_refusal(const tuner* t, const tdm_choice* choice) {
  tdm_log(t->model->runtime, TDM_LOG_INFO, "not tried: %s lanes with %d SMs beside, %s experts: %s",
          tdm_strategy_name(choice->strategy), choice->side_sms, tdm_moe_path_name(choice->moe_path),
          tdm_last_error()->message);
}

/* Whether the device gives the lanes. */
static tdm_status have_lanes(const tuner* t, const tdm_choice* choice, bool* out_have) {
  tdm_model_lanes lanes;
  const tdm_status status = tdm_model_get_lanes(t->model, choice, true, &lanes);
  *out_have = status == TDM_OK;
  if (status == TDM_OK || status == TDM_OUT_OF_MEMORY) return status;
  log_refusal(t, choice);
  return TDM_OK;
}

static tdm_status time_choice(void* ctx, const tdm_choice* choice, int64_t best_ns, int64_t* out_ns) {
  tuner* t = ctx;
  tdm_graph* graph;
  bool have;
  *out_ns = TDM_TUNE_NONE;
  TDM_TRY(have_lanes(t, choice, &have));
  if (!have) return TDM_OK;
  tdm_status status =
      tdm_model_capture_layers(t->model, t->range.first, t->range.count, t->bucket, t->prefill, choice, &graph);
  if (status == TDM_UNSUPPORTED && best_ns > 0) { /* without a first way there is nothing to choose from */
    log_refusal(t, choice);
    return TDM_OK;
  }
  TDM_TRY(status);
  status = time_graph(t, graph, best_ns, out_ns);
  tdm_graph_destroy(graph);
  t->programs++;
  return status;
}

/* ---- buckets ---------------------------------------------------------------------------------------------------- */

/* A step whose sequences are attended to in expanded form has at least so many tokens. */
static bool is_used(const tuner* t) {
  return !t->prefill || t->bucket >= t->model->config.prefill_threshold;
}

static tdm_status search_bucket(tuner* t, tdm_tuning_entry* out_entry) {
  tdm_model* model = t->model;
  const tdm_moe* moe = &model->weights.layers[model->config.layers - 1].moe;
  char reason[TDM_MOE_REASON_BYTES];
  tdm_runtime_info device = {.size = sizeof device};
  TDM_TRY(tdm_runtime_get_info(model->runtime, &device));
  tdm_tune_space space = {.usual = tdm_model_rule(model),
                          .routes = tdm_moe_routes(moe),
                          .green = device.sms > 0,
                          .sms = device.sms,
                          .gain = t->config.gain};
  space.usual.moe_path = tdm_moe_choose(moe, TDM_MOE_PATH_AUTO, t->bucket, reason);
  *out_entry = (tdm_tuning_entry){.size = sizeof *out_entry, .prefill = t->prefill, .n_tokens = t->bucket};
  return tdm_tune_search(&space, time_choice, t, out_entry);
}

static void log_entry(const tuner* t, const tdm_tuning_entry* entry) {
  const tdm_choice* choice = &entry->choice;
  tdm_log(t->model->runtime, TDM_LOG_INFO,
          "tuned %s of %" PRId64
          " tokens: %s lanes, waits by %s, %d SMs beside, %s experts: %.1f us against %.1f of an "
          "untuned model (%d ways)",
          entry->prefill ? "prefill" : "decoding", entry->n_tokens, tdm_strategy_name(choice->strategy),
          tdm_wait_form_name(choice->wait_form), choice->side_sms, tdm_moe_path_name(choice->moe_path),
          1e-3 * (double)entry->time_ns, 1e-3 * (double)entry->default_ns, entry->tried);
}

static tdm_status tune_bucket(tuner* t, tdm_tuning* own, tdm_tuning* tuning, tdm_tune_result* result) {
  tdm_tuning_entry entry;
  tdm_status status = make_items(t);
  if (status == TDM_OK) status = search_bucket(t, &entry);
  release_items(t);
  TDM_TRY(status);
  TDM_TRY(tdm_tuning_add(own, &t->model->identity, &entry));
  TDM_TRY(tdm_tuning_add(tuning, &t->model->identity, &entry));
  log_entry(t, &entry);
  result->buckets++;
  result->changed += entry.time_ns < entry.default_ns;
  return TDM_OK;
}

static tdm_status tune_buckets(tuner* t, tdm_tuning* own, tdm_tuning* tuning, tdm_tune_result* result) {
  const int64_t begin = now_ns();
  tdm_status status = TDM_OK;
  for (int prefill = 0; prefill < 1 + t->config.prefill && status == TDM_OK; prefill++)
    for (int32_t i = 0; i < t->model->config.n_buckets && status == TDM_OK; i++) {
      t->prefill = prefill;
      t->bucket = t->model->buckets[i];
      if (!is_used(t)) continue;
      if (result->buckets > 0 && 1e-9 * (double)(now_ns() - begin) > t->config.limit_s)
        result->left++;
      else
        status = tune_bucket(t, own, tuning, result);
    }
  result->programs = t->programs;
  result->seconds = 1e-9 * (double)(now_ns() - begin);
  return status;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

static tdm_status complete_config(const tdm_model* model, const tdm_tune_config* config, tdm_tune_config* out_config) {
  TDM_TRY(tdm_tune_config_init(out_config, sizeof *out_config));
  if (config) TDM_TRY(tdm_config_copy("tdm_tune_config", config, sizeof *out_config, out_config));
  if (out_config->layers < 1 || out_config->context < 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_tune_config: %" PRId64 " layers and context %" PRId64 "; both are at least 1",
                    out_config->layers, out_config->context);
  if (!(out_config->gain >= 0 && out_config->gain < 1))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tune_config.gain is %g, must be at least 0 and below 1",
                    out_config->gain);
  if (!(out_config->limit_s >= 0) || !isfinite(out_config->limit_s))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tune_config.limit_s is %g, must be finite and at least 0",
                    out_config->limit_s);
  out_config->layers = least(out_config->layers, model->config.layers);
  return TDM_OK;
}

static tdm_status fill_hidden(const tuner* t) {
  tdm_model* model = t->model;
  TDM_TRY(tdm_model_make_hidden(model));
  if (t->config.hidden) return tdm_model_write_hidden(model, model->config.max_tokens, t->config.hidden);
  return tdm_fill_random(model->runtime, &model->hidden, 1, 1, 0);
}

/* The model's own copy of what holds for it, to add to. */
static tdm_status copy_tuning(const tdm_model* model, tdm_tuning** out_own) {
  int32_t taken;
  TDM_TRY(tdm_tuning_create(model->runtime, out_own));
  return tdm_tuning_take(*out_own, model->tuning, &model->identity, &taken);
}

/* Goes by `own` from now on: graphs first, so that a failure leaves the model as it was. Answers in `own` what is to be
 * destroyed. */
static tdm_status go_by(tdm_model* model, tdm_tuning** own) {
  tdm_tuning* before = model->tuning;
  tdm_model_graphs* graphs;
  model->tuning = *own;
  const tdm_status status = tdm_model_graphs_create(model, &graphs);
  if (status != TDM_OK) {
    model->tuning = before;
    return status;
  }
  model->last = NULL;
  tdm_model_graphs_destroy(model->whole);
  tdm_model_graphs_fini(&model->layers);
  model->whole = graphs;
  *model->tuning_reason = '\0';
  *own = before;
  return TDM_OK;
}

static tdm_status tune(tuner* t, tdm_tuning* tuning, tdm_tune_result* result) {
  tdm_tuning* own = NULL;
  tdm_status status = fill_hidden(t);
  if (status == TDM_OK) status = copy_tuning(t->model, &own);
  if (status == TDM_OK) status = tune_buckets(t, own, tuning, result);
  if (status == TDM_OK && result->buckets > 0) status = go_by(t->model, &own);
  t->model->staged_tokens = 0; /* its sequences are gone */
  tdm_tuning_destroy(own);
  return status;
}

tdm_status tdm_model_tune(tdm_model* model, const tdm_tune_config* config, tdm_tuning* tuning,
                          tdm_tune_result* out_result) {
  if (!model || !tuning || !out_result)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_tune: model, tuning and out_result must not be NULL");
  tdm_tune_result result = {.size = sizeof result};
  const size_t size = out_result->size;
  TDM_TRY(tdm_info_copy("tdm_tune_result", &result, sizeof result, out_result, size));
  tuner t = {.model = model};
  TDM_TRY(complete_config(model, config, &t.config));
  t.range = (tdm_model_range){.first = model->config.layers - t.config.layers, .count = t.config.layers};
  if (!(t.items = tdm_host_alloc_array(model->runtime, model->config.max_seqs, sizeof *t.items)))
    return TDM_OUT_OF_MEMORY;
  const tdm_status status = tune(&t, tuning, &result);
  tdm_host_free(model->runtime, t.items, (size_t)model->config.max_seqs * sizeof *t.items);
  (void)tdm_info_copy("tdm_tune_result", &result, sizeof result, out_result, size);
  return status;
}
