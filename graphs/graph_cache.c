#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "runtime/runtime.h"
#include "tandem/graph.h"

/* A bucket's graph, NULL until it is captured. */
typedef struct bucket {
  int64_t n_tokens;
  tdm_graph* graph;
} bucket;

struct tdm_graph_cache {
  tdm_runtime* runtime;
  char name[32];
  tdm_graph_build_fn build;
  void* ctx;
  bucket* buckets;
  int32_t n_buckets;
  tdm_buffer* workspace; /* borrowed from the largest bucket's program; NULL when that needs none */
};

static const int64_t default_buckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};

tdm_status tdm_graph_cache_config_init(tdm_graph_cache_config* config, size_t size) {
  const tdm_graph_cache_config defaults = {.size = size,
                                           .name = "graph",
                                           .buckets = default_buckets,
                                           .n_buckets = (int32_t)(sizeof default_buckets / sizeof *default_buckets)};
  return tdm_config_init("tdm_graph_cache_config", &defaults, sizeof defaults, config, size);
}

static tdm_status check_config(const tdm_graph_cache_config* config) {
  if (!config->build) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_config.build must be set");
  if (!config->name || strlen(config->name) >= sizeof((tdm_graph_cache*)0)->name)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_config.name '%.80s' must have at most 31 characters",
                    config->name ? config->name : "(NULL)");
  if (!config->buckets || config->n_buckets < 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_config has %d buckets, at least 1 is needed",
                    config->n_buckets);
  for (int32_t i = 0; i < config->n_buckets; i++)
    if (config->buckets[i] < 1 || (i && config->buckets[i] <= config->buckets[i - 1]))
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "tdm_graph_cache_config.buckets[%d] is %" PRId64
                      "; buckets must be positive and strictly ascending",
                      i, config->buckets[i]);
  return TDM_OK;
}

static tdm_status build_and_capture(tdm_graph_cache* cache, tdm_program* program, bucket* entry) {
  tdm_seal_config config;
  TDM_TRY(tdm_seal_config_init(&config, sizeof config));
  TDM_TRY(cache->build(cache->ctx, entry->n_tokens, program, &config));
  config.workspace = cache->workspace;
  config.may_take_own = true; /* packing is not monotone: a smaller bucket may just not fit */
  TDM_TRY(tdm_program_seal(program, &config));
  return tdm_graph_capture(program, &entry->graph);
}

static tdm_status capture_bucket(tdm_graph_cache* cache, bucket* entry) {
  char name[64];
  snprintf(name, sizeof name, "%s.%" PRId64, cache->name, entry->n_tokens);
  tdm_program* program;
  TDM_TRY(tdm_program_create(cache->runtime, name, &program));
  const tdm_status status = build_and_capture(cache, program, entry);
  tdm_program_destroy(program); /* the graph keeps it */
  return status;
}

tdm_status tdm_graph_cache_create(tdm_runtime* runtime, const tdm_graph_cache_config* config,
                                  tdm_graph_cache** out_cache) {
  if (out_cache) *out_cache = NULL;
  if (!runtime || !config || !out_cache)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_create: runtime, config and out_cache must not be NULL");
  tdm_graph_cache_config wanted;
  TDM_TRY(tdm_graph_cache_config_init(&wanted, sizeof wanted));
  TDM_TRY(tdm_config_copy("tdm_graph_cache_config", config, sizeof wanted, &wanted));
  TDM_TRY(check_config(&wanted));
  tdm_graph_cache* cache = tdm_host_alloc(runtime, sizeof *cache);
  if (!cache) return TDM_OUT_OF_MEMORY;
  cache->runtime = runtime;
  tdm_runtime_retain(runtime, TDM_OBJECT_GRAPH_CACHE);
  memcpy(cache->name, wanted.name, strlen(wanted.name) + 1);
  cache->build = wanted.build;
  cache->ctx = wanted.ctx;
  cache->buckets = tdm_host_alloc_array(runtime, wanted.n_buckets, sizeof *cache->buckets);
  tdm_status status = cache->buckets ? TDM_OK : TDM_OUT_OF_MEMORY;
  if (status == TDM_OK) {
    cache->n_buckets = wanted.n_buckets;
    for (int32_t i = 0; i < cache->n_buckets; i++) cache->buckets[i].n_tokens = wanted.buckets[i];
    bucket* largest = &cache->buckets[cache->n_buckets - 1];
    status = capture_bucket(cache, largest);
    if (status == TDM_OK) cache->workspace = tdm_program_workspace(tdm_graph_program(largest->graph));
  }
  if (status != TDM_OK) {
    tdm_graph_cache_destroy(cache);
    return status;
  }
  *out_cache = cache;
  return TDM_OK;
}

void tdm_graph_cache_destroy(tdm_graph_cache* cache) {
  if (!cache) return;
  tdm_runtime* runtime = cache->runtime;
  for (int32_t i = 0; i < cache->n_buckets; i++) tdm_graph_destroy(cache->buckets[i].graph);
  tdm_host_free(runtime, cache->buckets, (size_t)cache->n_buckets * sizeof *cache->buckets);
  tdm_host_free(runtime, cache, sizeof *cache);
  tdm_runtime_release(runtime, TDM_OBJECT_GRAPH_CACHE);
}

tdm_status tdm_graph_cache_get(tdm_graph_cache* cache, int64_t n_tokens, tdm_graph** out_graph) {
  if (out_graph) *out_graph = NULL;
  if (!cache || !out_graph)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_get: cache and out_graph must not be NULL");
  const int64_t largest = cache->buckets[cache->n_buckets - 1].n_tokens;
  if (n_tokens < 1 || n_tokens > largest)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "graph cache '%s': %" PRId64 " tokens, the buckets hold 1 to %" PRId64,
                    cache->name, n_tokens, largest);
  bucket* entry = cache->buckets;
  while (entry->n_tokens < n_tokens) entry++;
  if (!entry->graph) TDM_TRY(capture_bucket(cache, entry));
  *out_graph = entry->graph;
  return TDM_OK;
}

tdm_status tdm_graph_cache_warm_up(tdm_graph_cache* cache) {
  if (!cache) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_warm_up: cache must not be NULL");
  for (int32_t i = 0; i < cache->n_buckets; i++)
    if (!cache->buckets[i].graph) TDM_TRY(capture_bucket(cache, &cache->buckets[i]));
  return TDM_OK;
}

tdm_status tdm_graph_cache_evict(tdm_graph_cache* cache, int64_t bucket_tokens) {
  if (!cache) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_evict: cache must not be NULL");
  for (int32_t i = 0; i + 1 < cache->n_buckets; i++) {
    if (cache->buckets[i].n_tokens != bucket_tokens) continue;
    tdm_graph_destroy(cache->buckets[i].graph);
    cache->buckets[i].graph = NULL;
    return TDM_OK;
  }
  return TDM_FAIL(TDM_INVALID_ARGUMENT, "graph cache '%s' has no bucket of %" PRId64 " tokens that could be evicted",
                  cache->name, bucket_tokens);
}

tdm_status tdm_graph_cache_get_info(const tdm_graph_cache* cache, tdm_graph_cache_info* out_info) {
  if (!cache || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_get_info: cache and out_info must not be NULL");
  tdm_graph_cache_info info = {
      .size = sizeof info, .buckets = cache->n_buckets, .workspace_bytes = tdm_buffer_bytes(cache->workspace)};
  for (int32_t i = 0; i < cache->n_buckets; i++) info.captured += cache->buckets[i].graph != NULL;
  return tdm_info_copy("tdm_graph_cache_info", &info, sizeof info, out_info, out_info->size);
}

tdm_status tdm_graph_cache_get_bucket(const tdm_graph_cache* cache, int32_t index, tdm_graph_bucket_info* out_info) {
  if (!cache || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_cache_get_bucket: cache and out_info must not be NULL");
  if (index < 0 || index >= cache->n_buckets)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "graph cache '%s' has buckets 0 to %d, not %d", cache->name,
                    cache->n_buckets - 1, index);
  const bucket* entry = &cache->buckets[index];
  tdm_graph_bucket_info info = {.size = sizeof info, .n_tokens = entry->n_tokens, .captured = entry->graph != NULL};
  if (entry->graph) {
    const tdm_program* program = tdm_graph_program(entry->graph);
    tdm_program_info program_info = {.size = sizeof program_info};
    TDM_TRY(tdm_program_get_info(program, &program_info));
    info.shares_workspace = tdm_program_workspace(program) == cache->workspace;
    info.steps = program_info.steps;
    info.workspace_bytes = program_info.workspace_bytes;
  }
  return tdm_info_copy("tdm_graph_bucket_info", &info, sizeof info, out_info, out_info->size);
}
