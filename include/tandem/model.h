#ifndef TANDEM_MODEL_H
#define TANDEM_MODEL_H

/* Whole models: configuration, paged cache, sequences, forward steps. */

#include "tandem/checkpoint.h"
#include "tandem/graph.h"
#include "tandem/tuning.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tdm_rope_type { TDM_ROPE_PLAIN = 1, TDM_ROPE_YARN = 2 } tdm_rope_type;

/* Rotary embedding as in the config (docs/formulas.md, section 5). Zero means "absent" except where said. */
typedef struct tdm_rope_config {
  tdm_rope_type type;
  double theta;
  double factor;
  double beta_fast; /* default 32 */
  double beta_slow; /* default 1 */
  double mscale;
  double mscale_all_dim;
  double attention_factor;
  int64_t original_max_position_embeddings;
  bool truncate;   /* default true */
  bool interleave; /* true: pairs (2i, 2i+1); false: halves */
} tdm_rope_config;

/* What config.json says of a DeepSeek-V3 model, both spellings understood, checked for sense. */
typedef struct tdm_deepseek_v3_config {
  int64_t vocab_size;
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t moe_intermediate_size;
  int64_t num_hidden_layers;
  int64_t num_attention_heads;
  int64_t q_lora_rank;
  int64_t kv_lora_rank;
  int64_t qk_nope_head_dim;
  int64_t qk_rope_head_dim;
  int64_t v_head_dim;
  int64_t n_routed_experts;
  int64_t n_shared_experts;
  int64_t num_experts_per_tok;
  int64_t n_group;
  int64_t topk_group;
  int64_t first_k_dense_replace;
  int64_t num_nextn_predict_layers; /* layers after the last one that the checkpoint may hold and that are ignored */
  int64_t max_position_embeddings;
  int64_t bos_token_id; /* -1: none */
  int64_t eos_token_id; /* -1: none */
  double rms_norm_eps;
  double routed_scaling_factor;
  bool norm_topk_prob;
  bool tie_word_embeddings;
  bool pow2_activation_scales; /* quantization_config.scale_fmt "ue8m0": FP8 activation scales are powers of two */
  tdm_rope_config rope;
} tdm_deepseek_v3_config;

/* Reads and checks `path` (config.json, or a directory that holds it). All findings are in the sentence and, one a
 * line, in the log. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY, IO, CORRUPT (not JSON, a field missing, mistyped or out of
 * range), UNSUPPORTED (another model_type, or a value that changes the maths in a way this version does not compute).
 */
TDM_API tdm_status tdm_deepseek_v3_config_read(tdm_runtime* runtime, const char* path,
                                               tdm_deepseek_v3_config* out_config);

/* How activations are held. */
typedef enum tdm_activations {
  TDM_ACTIVATIONS_NATIVE = 1, /* bf16 and FP8, exactly as on the GPU */
  TDM_ACTIVATIONS_FLOAT32 = 2 /* f32 throughout, nothing quantised: to judge the maths; host device only */
} tdm_activations;

/* A DeepSeek-V3 model: weights, paged cache, rotary table, programs by token bucket.
 * Threads: one thread at a time. */
typedef struct tdm_model tdm_model;

typedef struct tdm_model_config {
  size_t size;
  tdm_activations activations; /* default native */
  int64_t max_tokens;          /* new tokens in one forward call, all sequences together; default 512 */
  int64_t max_seqs;            /* sequences in one forward call; default 64 */
  int64_t max_context;         /* tokens of one sequence; default 0: min(max_position_embeddings, 4096) */
  int64_t cache_pages;         /* pages of 64 tokens, shared by all sequences; default 256 */
  int64_t prefill_threshold;   /* a new sequence with at least this many tokens is attended to in expanded form;
                                  default 16.   Results depend on it in rounding, never on what else is in the batch */
  const int64_t* buckets;  /* token counts that programs are made for, strictly ascending, the last one max_tokens; a
                              step runs in the smallest that holds it; copied. Default NULL: 1 2 4 8 16 24 32 48 64 96
                              128 192 256, then doubling, and max_tokens */
  int32_t n_buckets;       /* 1 to 64 with buckets */
  int64_t layers;          /* load only the first so many decoder layers; default 0: all */
  tdm_strategy strategy;   /* default TDM_STRATEGY_AUTO; any other decides for all buckets, with these two: */
  int32_t side_sms;        /* SMs of the side lane, where router and cache writes run; default 16 */
  tdm_wait_form wait_form; /* default TDM_WAIT_EDGE; TDM_WAIT_SIGNAL is for green lanes on a CUDA device (UNSUPPORTED on
                              soft ones) */
  tdm_moe_path moe_path;   /* default TDM_MOE_PATH_AUTO; any other decides for all buckets */
  const tdm_tuning* tuning; /* default NULL. What fits the model's device, library and shape is copied; when nothing
                               does, a WARNING in the log and tdm_model_explain say in what it differs */
  uint32_t signal_limit_ms; /* default 10000; as in tdm_seal_config */
  bool trace;               /* default false; as in tdm_seal_config, of the program that tdm_model_program names */
  bool strict;         /* default false: where green lanes cannot be had, soft ones are taken, and the reason is in the
                          log (WARNING) and in tdm_model_info; true: that is an error */
  tdm_order order;     /* default TDM_ORDER_LANES */
  uint64_t order_seed; /* for TDM_ORDER_SHUFFLED */
  bool use_graphs;     /* capture a graph per bucket and replay it; default true. false: eager launches */
  bool taps;           /* keep the values that tdm_model_tap names; default false: more memory, same bits */
} tdm_model_config;

TDM_API tdm_status tdm_model_config_init(tdm_model_config* config, size_t size);

/* Loads config.json and the weights from `directory`. Every tensor is checked before any is copied: missing, extra,
 * misshapen and mistyped ones are all reported, one a line to the log, and in the sentence as far as it holds. Weights
 * are BF16, or FP8 with `weight_scale_inv`; a non-finite weight scale is CORRUPT. Errors: those of
 * tdm_deepseek_v3_config_read and tdm_checkpoint_open, INVALID_ARGUMENT, UNSUPPORTED, OUT_OF_MEMORY. `config` NULL
 * means the defaults. */
TDM_API tdm_status tdm_model_load(tdm_runtime* runtime, const char* directory, const tdm_model_config* config,
                                  tdm_model** out_model);
/* A model of that shape with random FP8 weights made on the device, for measurements: `shape` as a config would say it
 * (a tensor-parallel slice has fewer heads and narrower experts). Dimensions that the ops refuse fail with their
 * sentence. `config` as for tdm_model_load. The weights are a function of `seed`. */
TDM_API tdm_status tdm_model_create_random(tdm_runtime* runtime, const tdm_deepseek_v3_config* shape, uint64_t seed,
                                           const tdm_model_config* config, tdm_model** out_model);
/* NULL is allowed. INVALID_STATE, with nothing changed, while sequences of the model are alive. */
TDM_API tdm_status tdm_model_destroy(tdm_model* model);

TDM_API const tdm_deepseek_v3_config* tdm_model_get_config(const tdm_model* model);

/* Builds and captures the programs of all token buckets, for decode steps and for steps with prefill, so that no later
 * forward call has to. Stops at the first failure, which leaves the buckets before it usable. Allocates; blocks. */
TDM_API tdm_status tdm_model_warm_up(tdm_model* model);

typedef struct tdm_model_info {
  size_t size; /* set by the caller: sizeof(tdm_model_info) */
  int64_t layers;
  int64_t max_context;
  int64_t cache_pages;
  int64_t cache_pages_free;
  tdm_strategy strategy;     /* the one in force where no tuning speaks; never AUTO */
  char strategy_reason[160]; /* why it is not the one asked for; "" when it is */
  tdm_wait_form wait_form;   /* likewise in force: soft lanes instead of green ones wait by edges */
  int32_t tuned_buckets;     /* that the tuning speaks of, decoding and prefill together */
  char tuning_reason[320];   /* why it speaks of none; "" when it does, or when there is no tuning */
  size_t weight_bytes;
  size_t cache_bytes;
  size_t workspace_bytes;
} tdm_model_info;

TDM_API tdm_status tdm_model_get_info(const tdm_model* model, tdm_model_info* out_info);

/* A sequence of tokens in a model's cache. Threads: as its model. */
typedef struct tdm_sequence tdm_sequence;

/* An empty sequence. Takes no page yet. Allocates. */
TDM_API tdm_status tdm_sequence_create(tdm_model* model, tdm_sequence** out_sequence);
/* Gives its pages back. NULL is allowed. */
TDM_API void tdm_sequence_destroy(tdm_sequence* sequence);
/* Tokens in the cache. */
TDM_API int64_t tdm_sequence_length(const tdm_sequence* sequence);
/* Lengthens the sequence by `n_tokens` whose cache entries are whatever the pages hold, as if they had gone through the
 * model: to measure decoding at a given context. INVALID_ARGUMENT beyond max_context, OUT_OF_MEMORY when the cache is
 * full. */
TDM_API tdm_status tdm_sequence_pretend(tdm_sequence* sequence, int64_t n_tokens);
/* Shortens the sequence to `length` tokens (0 <= length <= now); pages that become empty go back. INVALID_ARGUMENT
 * else. */
TDM_API tdm_status tdm_sequence_truncate(tdm_sequence* sequence, int64_t length);

typedef enum tdm_logits {
  TDM_LOGITS_LAST = 1, /* of the last new token */
  TDM_LOGITS_ALL = 2,  /* of every new token */
  TDM_LOGITS_NONE = 3  /* none: a part of a long prompt */
} tdm_logits;

/* New tokens of one sequence. Zero-initialise; a batch is an array of them, each sequence at most once. */
typedef struct tdm_batch_item {
  tdm_sequence* sequence;
  const int32_t* tokens; /* n_tokens ids in [0, vocab_size) */
  int64_t n_tokens;      /* at least 1 */
  tdm_logits logits;     /* 0 means TDM_LOGITS_LAST */
  float temperature;     /* 0: greedy */
  float top_p;           /* 0 means 1 */
  uint64_t seed;         /* of this sequence's draws */
} tdm_batch_item;

typedef struct tdm_forward_result {
  size_t size;           /* set by the caller: sizeof(tdm_forward_result) */
  int64_t n_logits;      /* rows of logits: items in order, each with its rows */
  const int32_t* tokens; /* [n_logits] next tokens drawn from the rows; valid until the next forward */
  tdm_view logits;       /* [n_logits, vocab_size] f32 in device memory; valid until the next forward */
  int64_t bucket;        /* token bucket that ran */
  int64_t launched_steps;
} tdm_forward_result;

/* Runs the new tokens of `n_items` sequences, in any state, through the model in one go. Each sequence's result has the
 * same bits whatever else is in the batch. All input is checked first, and a failing call leaves every sequence and
 * page as it was. Errors: INVALID_ARGUMENT (no items, no tokens, a sequence twice or of another model, an id out of
 * range, more tokens than max_tokens, more sequences than max_seqs, more than max_context in a sequence), OUT_OF_MEMORY
 * (cache full: the sentence says how many pages are wanted and free; also at a bucket's first use). Blocks until done.
 */
TDM_API tdm_status tdm_model_forward(tdm_model* model, const tdm_batch_item* items, int64_t n_items,
                                     tdm_forward_result* out_result);

/* The decoder layers [first, first + count) alone: `hidden_in` and `hidden_out` are host arrays of f32
 * [sum of n_tokens, hidden_size], rows as the items' tokens (whose ids are ignored; logits and sampling as well).
 * Caches of these layers are written, and sequences grow. For pipelines and for judging a layer by itself. Same errors
 * and promises. */
TDM_API tdm_status tdm_model_forward_layers(tdm_model* model, const tdm_batch_item* items, int64_t n_items,
                                            int64_t first, int64_t count, const float* hidden_in, float* hidden_out);

/* An intermediate value of the last forward call, for a model loaded with `taps`: "layerL.in", "layerL.attn",
 * "layerL.mlp_in", "layerL.mlp", "layerL.out" [n_tokens, hidden_size] bf16 or f32; "layerL.topk_ids" i32 and
 * "layerL.topk_weights" f32 [n_tokens, num_experts_per_tok]; "layerL.hits" i32 as moe_route's, where the step took the
 * path hits; "layerL.chosen" i32 as moe_route's, where it took the path grouped; rows beyond the call's tokens are
 * undefined. INVALID_STATE without taps or before a forward; INVALID_ARGUMENT for another name. Valid until the next
 * forward. */
TDM_API tdm_status tdm_model_tap(const tdm_model* model, const char* name, tdm_view* out_view);

/* The token buckets of a model's decode steps, or of its steps with prefill, to look at. Borrowed; NULL when model is.
 */
TDM_API const tdm_graph_cache* tdm_model_graph_cache(const tdm_model* model, bool prefill);

typedef enum tdm_choice_source {
  TDM_CHOICE_RULE = 1,      /* nothing was measured: the rules of tdm_strategy and tdm_moe_path */
  TDM_CHOICE_TUNING = 2,    /* measured */
  TDM_CHOICE_CONFIGURED = 3 /* tdm_model_config.strategy and moe_path, both of them */
} tdm_choice_source;

typedef struct tdm_choice_info {
  size_t size;    /* set by the caller: sizeof(tdm_choice_info) */
  int64_t bucket; /* that the step runs in */
  tdm_choice choice;
  tdm_choice_source source; /* of what the configuration leaves open */
  char reason[256];         /* a clause */
} tdm_choice_info;

/* In which way a step of up to `n_tokens` tokens runs. Errors: INVALID_ARGUMENT. */
TDM_API tdm_status tdm_model_get_choice(const tdm_model* model, int64_t n_tokens, bool prefill,
                                        tdm_choice_info* out_info);

/* Captures the decoder layers [first, first + count) of one token bucket in a way of the caller's (`choice` NULL: in
 * the model's), to measure it or to look at it. A replay works on what the last forward call left: its tokens,
 * positions and sequences, whose cache entries it writes again, and for a call of tdm_model_forward_layers its hidden
 * states. So there must have been one, of at most `n_tokens` tokens (INVALID_STATE), and its sequences must be alive
 * and untouched; `prefill` says of which kind it was. The result is the temporary "layerL.out" of the last layer L.
 * Errors: INVALID_ARGUMENT; UNSUPPORTED for lanes that the device does not have; OUT_OF_MEMORY. Allocates; not
 * capture-safe. */
TDM_API tdm_status tdm_model_capture_layers(tdm_model* model, int64_t first, int64_t count, int64_t n_tokens,
                                            bool prefill, const tdm_choice* choice, tdm_graph** out_graph);

typedef struct tdm_tune_config {
  size_t size;
  int64_t layers;  /* measured in one graph, the last ones of the model; default 4, or as many as there are */
  int64_t context; /* tokens in the cache of each sequence; default 4096, or as many as max_context and the free pages
                      allow */
  bool prefill;    /* also the buckets of steps with prefill; default true */
  double gain;     /* what a way must gain over an untuned model's to take its place; 0 .. 1, default 0.02 */
  double limit_s;  /* begins no bucket but the first after so many seconds; default 60 */
  const float* hidden; /* [max_tokens, hidden_size] hidden states to run on, which decide how many experts are hit;
                          default NULL: random ones */
} tdm_tune_config;

TDM_API tdm_status tdm_tune_config_init(tdm_tune_config* config, size_t size);

typedef struct tdm_tune_result {
  size_t size;      /* set by the caller: sizeof(tdm_tune_result) */
  int32_t buckets;  /* measured */
  int32_t changed;  /* of these: where another way than an untuned model's won */
  int32_t left;     /* not begun when limit_s was over; an untuned model's way stays */
  int32_t programs; /* measured in all */
  double seconds;
} tdm_tune_result;

/* Measures, bucket by bucket, the ways in which the model could run: whole graphs of its layers, replayed. First the
 * experts' paths against each other, then strategies, wait forms and sizes of the side lane with the best path; a way
 * that is a third slower than the best is dropped early, one that is UNSUPPORTED is left out (INFO in the log). The
 * winner is measured once more by turns with the default. Adds the findings to `tuning`, and the model goes by them
 * from then on (its graphs are made anew, so views, programs and graph caches taken from it before are void). What its
 * config decides by hand stays as it is. Takes sequences and pages for the time of the call, and gives them back.
 * Nothing else should use the GPU meanwhile. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY (with no page free for each
 * sequence), and what building answers; then `tuning` has the buckets done so far, and the model goes on as before.
 * Blocks. */
TDM_API tdm_status tdm_model_tune(tdm_model* model, const tdm_tune_config* config, tdm_tuning* tuning,
                                  tdm_tune_result* out_result);

/* Says through `write` what a step of up to `n_tokens` tokens runs and why: the bucket, the lanes, how they wait, which
 * experts are computed, then the program with its kernels. Builds and captures the bucket where it is not yet:
 * allocates, blocks. Errors: those of tdm_graph_cache_get; INVALID_ARGUMENT. */
TDM_API tdm_status tdm_model_explain(tdm_model* model, int64_t n_tokens, bool prefill, tdm_write_fn write, void* ctx);

/* The program behind the last forward call, to print or inspect. Borrowed. INVALID_STATE before a forward. */
TDM_API tdm_status tdm_model_program(const tdm_model* model, tdm_program** out_program);

#ifdef __cplusplus
}
#endif
#endif
