#include <inttypes.h>
#include <stdio.h>

#include "models/model.h"

/* Building the program of one token bucket. */

static tdm_mla_batch attention_batch(const tdm_model* model, int64_t rows, bool prefills) {
  const tdm_batch* batch = &model->batch;
  return (tdm_mla_batch){
      .positions = tdm_batch_view(batch, TDM_BATCH_POSITIONS, rows),
      .slots = tdm_batch_view(batch, TDM_BATCH_SLOTS, rows),
      .cos_sin = model->cos_sin,
      .n_seqs = batch->views[TDM_BATCH_N_SEQS],
      .seq_start = batch->views[TDM_BATCH_SEQ_START],
      .kv_len = batch->views[TDM_BATCH_KV_LEN],
      .seq_kind = batch->views[TDM_BATCH_SEQ_KIND],
      .block_table = batch->views[TDM_BATCH_BLOCK_TABLE],
      .prefills = prefills,
  };
}

/* Token ids to the residual stream. */
static tdm_status append_embedding(tdm_builder* builder, const tdm_model* model, tdm_v3_stream* stream) {
  TDM_TRY(
      tdm_builder_tap(builder, "layer0.in", builder->activation, model->weights.config.hidden_size, &stream->residual));
  const tdm_embedding_args args = {.size = sizeof args,
                                   .n_tokens = builder->n_tokens,
                                   .ids = tdm_batch_view(&model->batch, TDM_BATCH_TOKEN_IDS, builder->rows),
                                   .table = model->weights.embedding,
                                   .out = stream->residual};
  return tdm_append_embedding(builder->program, builder->main_lane, "embedding", &args);
}

/* Normed hidden states to logits of the wanted rows and the tokens drawn from them. */
static tdm_status append_head(tdm_builder* builder, const tdm_model* model, const tdm_view* normed) {
  const tdm_batch* batch = &model->batch;
  const int64_t rows = builder->rows, hidden = model->weights.config.hidden_size;
  const tdm_view n_logits = batch->views[TDM_BATCH_N_LOGITS];
  tdm_view wanted, logits, tokens;
  TDM_TRY(tdm_builder_rows(builder, "head_in", builder->activation, hidden, &wanted));
  TDM_TRY(tdm_builder_rows(builder, "logits", TDM_F32, model->weights.config.vocab_size, &logits));
  TDM_TRY(tdm_builder_temp(builder, "next_tokens", TDM_I32, 1, &rows, &tokens));
  TDM_TRY(tdm_program_keep(builder->program, &logits));
  TDM_TRY(tdm_program_keep(builder->program, &tokens));
  const tdm_gather_rows_args gather = {.size = sizeof gather,
                                       .n_rows = n_logits,
                                       .x = *normed,
                                       .rows = tdm_batch_view(batch, TDM_BATCH_LOGIT_ROWS, rows),
                                       .out = wanted};
  TDM_TRY(tdm_append_gather_rows(builder->program, builder->main_lane, "gather", &gather));
  const tdm_gemm_bf16_args head = {
      .size = sizeof head, .n_tokens = n_logits, .a = wanted, .w = model->weights.head, .out = logits};
  TDM_TRY(tdm_append_gemm_bf16(builder->program, builder->main_lane, "lm_head", &head));
  const tdm_sample_args sample = {.size = sizeof sample,
                                  .n_rows = n_logits,
                                  .logits = logits,
                                  .temperature = tdm_batch_view(batch, TDM_BATCH_TEMPERATURES, rows),
                                  .top_p = tdm_batch_view(batch, TDM_BATCH_TOP_P, rows),
                                  .seeds = tdm_batch_view(batch, TDM_BATCH_SEEDS, rows),
                                  .positions = tdm_batch_view(batch, TDM_BATCH_DRAW_POSITIONS, rows),
                                  .out = tokens};
  return tdm_append_sample(builder->program, builder->main_lane, "sample", &sample);
}

/* What a program is to be: which layers for which bucket, in which way. */
typedef struct program_plan {
  const tdm_model* model;
  tdm_model_range range;
  int64_t rows;
  bool prefills;
  tdm_choice choice;
  bool strict; /* no soft lanes where green ones were chosen */
  bool mlps;   /* of each layer the second half alone */
} program_plan;

static tdm_status build(const program_plan* plan, tdm_program* program, tdm_seal_config* seal) {
  const tdm_model* model = plan->model;
  const tdm_model_range* range = &plan->range;
  const int64_t rows = plan->rows;
  const float eps = (float)model->weights.config.rms_norm_eps;
  tdm_model_lanes lanes;
  TDM_TRY(tdm_model_get_lanes(model, &plan->choice, plan->strict, &lanes));
  seal->wait_form = lanes.wait_form;
  seal->signal_limit_ms = model->config.signal_limit_ms;
  seal->trace = model->config.trace;
  tdm_builder builder = {.program = program,
                         .main_lane = lanes.main,
                         .side_lane = lanes.side,
                         .n_tokens = model->batch.views[TDM_BATCH_N_TOKENS],
                         .rows = rows,
                         .activation = model->weights.activation,
                         .pow2_scale = model->weights.config.pow2_activation_scales,
                         .keep = model->config.taps,
                         .moe_path = plan->choice.moe_path};
  const tdm_mla_batch batch = attention_batch(model, rows, plan->prefills);
  tdm_v3_stream stream = {0};
  if (range->whole)
    TDM_TRY(append_embedding(&builder, model, &stream));
  else
    stream.residual = tdm_view_slice(model->hidden, 0, 0, rows);
  const int64_t end = range->first + range->count;
  for (int64_t layer = range->first; layer < end; layer++)
    TDM_TRY(plan->mlps
                ? tdm_v3_mlp_append(&builder, &model->weights, layer, &stream)
                : tdm_v3_layer_append(&builder, &model->weights, layer, &batch, &model->cache.layers[layer], &stream));
  char last[32];
  snprintf(last, sizeof last, "layer%d.out", (int)(end - 1));
  tdm_view hidden, normed;
  if (range->whole) {
    TDM_TRY(tdm_v3_stream_finish(&builder, last, &model->weights.norm, eps, &stream, &hidden, &normed));
    return append_head(&builder, model, &normed);
  }
  TDM_TRY(tdm_v3_stream_finish(&builder, last, NULL, eps, &stream, &hidden, NULL));
  return tdm_program_keep(program, &hidden);
}

/* ---- graph caches ----------------------------------------------------------------------------------------------- */

static tdm_status build_bucket(const tdm_model_graphs* graphs, int64_t rows, bool prefills, tdm_program* program,
                               tdm_seal_config* seal) {
  const tdm_model* model = graphs->model;
  tdm_choice_info info;
  tdm_model_choose(model, rows, prefills, &info);
  const program_plan plan = {.model = model,
                             .range = graphs->range,
                             .rows = rows,
                             .prefills = prefills,
                             .choice = info.choice,
                             .strict = model->config.strict};
  return build(&plan, program, seal);
}

static tdm_status build_decode(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal) {
  return build_bucket(ctx, n_tokens, false, program, seal);
}

static tdm_status build_mixed(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal) {
  return build_bucket(ctx, n_tokens, true, program, seal);
}

tdm_status tdm_model_graphs_init(tdm_model* model, tdm_model_range range, tdm_model_graphs* out_graphs) {
  *out_graphs = (tdm_model_graphs){.model = model, .range = range};
  tdm_graph_cache_config config;
  TDM_TRY(tdm_graph_cache_config_init(&config, sizeof config));
  config.n_buckets = model->config.n_buckets;
  config.buckets = model->config.buckets;
  config.ctx = out_graphs;
  config.name = "decode";
  config.build = build_decode;
  TDM_TRY(tdm_graph_cache_create(model->runtime, &config, &out_graphs->decode));
  config.name = "mixed";
  config.build = build_mixed;
  return tdm_graph_cache_create(model->runtime, &config, &out_graphs->mixed);
}

void tdm_model_graphs_fini(tdm_model_graphs* graphs) {
  tdm_graph_cache_destroy(graphs->decode);
  tdm_graph_cache_destroy(graphs->mixed);
  *graphs = (tdm_model_graphs){0};
}

tdm_status tdm_model_graphs_create(tdm_model* model, tdm_model_graphs** out_graphs) {
  *out_graphs = NULL;
  tdm_model_graphs* graphs = tdm_host_alloc(model->runtime, sizeof *graphs);
  if (!graphs) return TDM_OUT_OF_MEMORY;
  const tdm_model_range whole = {.count = model->config.layers, .whole = true};
  const tdm_status status = tdm_model_graphs_init(model, whole, graphs);
  if (status != TDM_OK) {
    graphs->model = model;
    tdm_model_graphs_destroy(graphs);
    return status;
  }
  *out_graphs = graphs;
  return TDM_OK;
}

void tdm_model_graphs_destroy(tdm_model_graphs* graphs) {
  if (!graphs) return;
  tdm_runtime* runtime = graphs->model->runtime;
  tdm_model_graphs_fini(graphs);
  tdm_host_free(runtime, graphs, sizeof *graphs);
}

/* ---- one graph of some layers ----------------------------------------------------------------------------------- */

static tdm_status capture(const program_plan* plan, tdm_program* program, tdm_graph** out_graph) {
  tdm_seal_config seal;
  TDM_TRY(tdm_seal_config_init(&seal, sizeof seal));
  TDM_TRY(build(plan, program, &seal));
  TDM_TRY(tdm_program_seal(program, &seal));
  return tdm_graph_capture(program, out_graph);
}

static tdm_status check_capture(const tdm_model* model, int64_t first, int64_t count, int64_t n_tokens, bool prefill) {
  if (first < 0 || count < 1 || first > model->config.layers - count)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_model_capture_layers: layers %" PRId64 " .. %" PRId64 " of a model with %" PRId64, first,
                    first + count - 1, model->config.layers);
  if (n_tokens < 1 || n_tokens > model->config.max_tokens)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_capture_layers: %" PRId64 " tokens; the model takes 1 to %" PRId64,
                    n_tokens, model->config.max_tokens);
  if (model->staged_tokens < 1 || model->staged_tokens > n_tokens)
    return TDM_FAIL(TDM_INVALID_STATE,
                    "tdm_model_capture_layers: for %" PRId64 " tokens, and the last forward call had %" PRId64,
                    n_tokens, model->staged_tokens);
  if (model->staged_expanded && !prefill)
    return TDM_FAIL(TDM_INVALID_STATE,
                    "tdm_model_capture_layers: the last forward call had sequences to prefill, the graph has not");
  return TDM_OK;
}

static tdm_status capture_plan(const program_plan* plan, tdm_graph** out_graph) {
  tdm_program* program;
  TDM_TRY(tdm_program_create(plan->model->runtime, "layers", &program));
  const tdm_status status = capture(plan, program, out_graph);
  tdm_program_destroy(program); /* the graph keeps it */
  return status;
}

tdm_status tdm_model_capture_layers(tdm_model* model, int64_t first, int64_t count, int64_t n_tokens, bool prefill,
                                    const tdm_choice* choice, tdm_graph** out_graph) {
  if (out_graph) *out_graph = NULL;
  if (!model || !out_graph)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_capture_layers: model and out_graph must not be NULL");
  TDM_TRY(check_capture(model, first, count, n_tokens, prefill));
  if (choice) TDM_TRY(tdm_choice_check("tdm_model_capture_layers", choice));
  TDM_TRY(tdm_model_make_hidden(model));
  tdm_choice_info info;
  tdm_model_choose(model, tdm_model_bucket(model, n_tokens), prefill, &info);
  const program_plan plan = {.model = model,
                             .range = {.first = first, .count = count},
                             .rows = info.bucket,
                             .prefills = prefill,
                             .choice = choice ? *choice : info.choice,
                             .strict = choice || model->config.strict};
  return capture_plan(&plan, out_graph);
}

tdm_status tdm_model_capture_mlps(tdm_model* model, int64_t first, int64_t count, int64_t n_tokens,
                                  const tdm_choice* choice, tdm_graph** out_graph) {
  *out_graph = NULL;
  TDM_TRY(check_capture(model, first, count, n_tokens, false));
  TDM_TRY(tdm_choice_check("tdm_model_capture_mlps", choice));
  TDM_TRY(tdm_model_make_hidden(model));
  const program_plan plan = {.model = model,
                             .range = {.first = first, .count = count},
                             .rows = tdm_model_bucket(model, n_tokens),
                             .choice = *choice,
                             .strict = true,
                             .mlps = true};
  return capture_plan(&plan, out_graph);
}
