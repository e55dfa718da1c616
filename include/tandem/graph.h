#ifndef TANDEM_GRAPH_H
#define TANDEM_GRAPH_H

/* Graphs: a sealed program captured once and replayed; and a cache of graphs by token bucket. */

#include "tandem/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A captured program. It keeps what it needs alive, so the program and its buffers may be destroyed by their makers.
 * What changes from replay to replay lives in device memory and is read by the steps; nothing is updated or recaptured.
 * Threads: replays of one graph must not overlap. */
typedef struct tdm_graph tdm_graph;

/* INVALID_STATE when the program is not sealed. Allocates; not to be called while the caller captures a stream. */
TDM_API tdm_status tdm_graph_capture(tdm_program* program, tdm_graph** out_graph);
TDM_API void tdm_graph_destroy(tdm_graph* graph);

/* Runs the captured steps once more. `config` as for tdm_program_launch. Allocates nothing; on the host device it
 * blocks until done. The result has the same bits as an eager launch of the program. */
TDM_API tdm_status tdm_graph_replay(tdm_graph* graph, const tdm_launch_config* config);

/* The program the graph was captured from. Borrowed. */
TDM_API tdm_program* tdm_graph_program(const tdm_graph* graph);

/* Graphs by token bucket, built when first asked for, over one shared workspace that is sized by the largest bucket.
 * Threads: one thread at a time. */
typedef struct tdm_graph_cache tdm_graph_cache;

/* Appends to `program`, not yet sealed, what a step of up to `n_tokens` tokens consists of. `seal` holds what the
 * program will be sealed with: wait_form, signal_limit_ms and trace, which come as the defaults, may be changed. */
typedef tdm_status (*tdm_graph_build_fn)(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal);

typedef struct tdm_graph_cache_config {
  size_t size;
  const char* name;       /* prefix of the programs' names; default "graph" */
  const int64_t* buckets; /* strictly ascending, > 0; default 1 2 4 8 16 24 32 48 64 96 128 192 256; copied */
  int32_t n_buckets;
  tdm_graph_build_fn build;
  void* ctx;
} tdm_graph_cache_config;

TDM_API tdm_status tdm_graph_cache_config_init(tdm_graph_cache_config* config, size_t size);

/* Builds the program of the largest bucket, to size the workspace. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY and whatever
 * `build` answers. */
TDM_API tdm_status tdm_graph_cache_create(tdm_runtime* runtime, const tdm_graph_cache_config* config,
                                          tdm_graph_cache** out_cache);
TDM_API void tdm_graph_cache_destroy(tdm_graph_cache* cache);

/* The graph of the smallest bucket that holds `n_tokens`, captured on first use. INVALID_ARGUMENT when n_tokens < 1 or
 * above the largest bucket. A failure leaves the other buckets usable. Borrowed. */
TDM_API tdm_status tdm_graph_cache_get(tdm_graph_cache* cache, int64_t n_tokens, tdm_graph** out_graph);
/* Captures every bucket that is not captured yet. Stops at the first failure; the earlier buckets stay usable. */
TDM_API tdm_status tdm_graph_cache_warm_up(tdm_graph_cache* cache);
/* Forgets the graph of that bucket; it is built again when asked for. The largest bucket keeps the shared workspace and
 * cannot be evicted (INVALID_ARGUMENT, as for a bucket that does not exist). */
TDM_API tdm_status tdm_graph_cache_evict(tdm_graph_cache* cache, int64_t bucket);

typedef struct tdm_graph_cache_info {
  size_t size; /* set by the caller: sizeof(tdm_graph_cache_info) */
  int32_t buckets;
  int32_t captured;
  size_t workspace_bytes; /* the shared one and those of buckets that did not fit into it */
} tdm_graph_cache_info;

TDM_API tdm_status tdm_graph_cache_get_info(const tdm_graph_cache* cache, tdm_graph_cache_info* out_info);

typedef struct tdm_graph_bucket_info {
  size_t size; /* set by the caller: sizeof(tdm_graph_bucket_info) */
  int64_t n_tokens;
  bool captured;
  bool shares_workspace;  /* false: it did not fit into the shared one and has its own */
  int32_t steps;          /* 0 unless captured, and so is what follows */
  size_t workspace_bytes; /* what this bucket needs of its workspace */
} tdm_graph_bucket_info;

/* Bucket number `index`, ascending by tokens; INVALID_ARGUMENT when there is none. */
TDM_API tdm_status tdm_graph_cache_get_bucket(const tdm_graph_cache* cache, int32_t index,
                                              tdm_graph_bucket_info* out_info);

#ifdef __cplusplus
}
#endif
#endif
