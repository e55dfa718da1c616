#ifndef MODELS_MODEL_H
#define MODELS_MODEL_H

/* Inside of a model. model.c makes and destroys, choice.c decides in which way a bucket runs, model_program.c builds
 * programs, forward.c runs, tune.c measures, sequence.c keeps sequences. */

#include "models/batch.h"
#include "models/choice.h"
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
  tdm_view hidden;       /* [max_tokens, hidden], input of tdm_model_forward_layers; made on first use */
  tdm_model_lanes lanes; /* of buckets that no tuning speaks of */
  tdm_tuning* tuning;    /* what holds for `identity`; NULL: nothing was measured */
  tdm_tuning_identity identity;
  char tuning_reason[320]; /* why the tuning that was given holds for nothing here */
  tdm_model_graphs* whole;
  tdm_model_graphs layers; /* of the last range asked for */
  int64_t staged_tokens;   /* in `batch`; 0 before the first call */
  bool staged_expanded;    /* some sequence of theirs is attended to in expanded form */
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
/* The same on the heap, for all layers; NULL is allowed in the second. */
tdm_status tdm_model_graphs_create(tdm_model* model, tdm_model_graphs** out_graphs);
void tdm_model_graphs_destroy(tdm_model_graphs* graphs);

/* Makes model->hidden if it is not there yet. */
tdm_status tdm_model_make_hidden(tdm_model* model);
/* Its first rows from f32 [rows, hidden_size] in host memory. */
tdm_status tdm_model_write_hidden(tdm_model* model, int64_t rows, const float* hidden);
/* Checks the items as a forward call of layers would, takes pages for them, and puts them into the batch's arrays, for
 * graphs of tdm_model_capture_layers to work on. Sequences keep their lengths. */
tdm_status tdm_model_stage(tdm_model* model, const tdm_batch_item* items, int64_t n_items);

/* tdm_model_capture_layers without the attention: of each layer the norm after it, routing and experts, in the way of
 * `choice`. For measurements. */
tdm_status tdm_model_capture_mlps(tdm_model* model, int64_t first, int64_t count, int64_t n_tokens,
                                  const tdm_choice* choice, tdm_graph** out_graph);

/* How many pages the sequence lacks for `n_tokens` more tokens, and taking them: the caller has seen that the cache has
 * room. */
int64_t tdm_sequence_lacks(const tdm_sequence* sequence, int64_t n_tokens);
void tdm_sequence_reserve(tdm_sequence* sequence, int64_t n_tokens);
/* Gives back the pages beyond the first `n_pages`. */
void tdm_sequence_shrink(tdm_sequence* sequence, int64_t n_pages);

#endif
