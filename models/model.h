#ifndef MODELS_MODEL_H
#define MODELS_MODEL_H

/* Inside of a model. model.c makes and destroys, model_program.c builds programs, forward.c runs, sequence.c keeps
 * sequences. */

#include "models/batch.h"
#include "models/deepseek_v3.h"

enum { TDM_MODEL_MAX_BUCKETS = 64 };

/* Which layers a program runs, and whether tokens and logits are at its ends. */
typedef struct tdm_model_range {
  int64_t first, count;
  bool whole; /* from token ids to drawn tokens; else hidden states in and out */
} tdm_model_range;

/* Programs by token bucket for one range: two kinds, since steps of decoding need no steps for prefill. */
typedef struct tdm_model_graphs {
  struct tdm_model* model;
  tdm_model_range range;
  tdm_graph_cache* decode; /* every sequence is attended to in absorbed form */
  tdm_graph_cache* mixed;
} tdm_model_graphs;

struct tdm_model {
  tdm_runtime* runtime;
  tdm_model_config config; /* defaults resolved; buckets points to the array below */
  int64_t buckets[TDM_MODEL_MAX_BUCKETS];
  tdm_v3_weights weights;
  tdm_kv_cache cache;
  tdm_view cos_sin; /* [max_context, 64] */
  tdm_batch batch;
  tdm_view hidden; /* [max_tokens, hidden], input of tdm_model_forward_layers; made on first use */
  tdm_lane* main_lane;
  tdm_lane* side_lane;
  tdm_strategy strategy; /* in force */
  tdm_wait_form wait_form;
  char strategy_reason[160];
  tdm_model_graphs whole;
  tdm_model_graphs layers; /* of the last range asked for */
  tdm_program* last;       /* of the last forward call; borrowed from its graph */
  int32_t* next_tokens;    /* [max_tokens] */
  uint64_t calls;
  int64_t n_sequences;
};

struct tdm_sequence {
  tdm_model* model;
  int64_t length;
  int64_t n_pages;
  uint64_t last_call; /* to notice a sequence that is in a batch twice */
  int32_t* pages;     /* [pages_per_seq] */
};

/* Makes the graph caches for a range, in `out_graphs`, which must stay where it is. */
tdm_status tdm_model_graphs_init(tdm_model* model, tdm_model_range range, tdm_model_graphs* out_graphs);
void tdm_model_graphs_fini(tdm_model_graphs* graphs);

/* How many pages the sequence lacks for `n_tokens` more tokens, and taking them: the caller has seen that the cache has
 * room. */
int64_t tdm_sequence_lacks(const tdm_sequence* sequence, int64_t n_tokens);
void tdm_sequence_reserve(tdm_sequence* sequence, int64_t n_tokens);
/* Gives back the pages beyond the first `n_pages`. */
void tdm_sequence_shrink(tdm_sequence* sequence, int64_t n_pages);

#endif
