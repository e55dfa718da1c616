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

static tdm_status build(const tdm_model_graphs* graphs, int64_t rows, bool prefills, tdm_program* program) {
  const tdm_model* model = graphs->model;
  const tdm_model_range* range = &graphs->range;
  const float eps = (float)model->weights.config.rms_norm_eps;
  tdm_builder builder = {.program = program,
                         .main_lane = model->main_lane,
                         .side_lane = model->side_lane,
                         .n_tokens = model->batch.views[TDM_BATCH_N_TOKENS],
                         .rows = rows,
                         .activation = model->weights.activation,
                         .pow2_scale = model->weights.config.pow2_activation_scales,
                         .keep = model->config.taps,
                         .moe_path = model->config.moe_path};
  const tdm_mla_batch batch = attention_batch(model, rows, prefills);
  tdm_v3_stream stream = {0};
  if (range->whole)
    TDM_TRY(append_embedding(&builder, model, &stream));
  else
    stream.residual = tdm_view_slice(model->hidden, 0, 0, rows);
  const int64_t end = range->first + range->count;
  for (int64_t layer = range->first; layer < end; layer++)
    TDM_TRY(tdm_v3_layer_append(&builder, &model->weights, layer, &batch, &model->cache.layers[layer], &stream));
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

static tdm_status build_decode(void* ctx, int64_t n_tokens, tdm_program* program) {
  return build(ctx, n_tokens, false, program);
}

static tdm_status build_mixed(void* ctx, int64_t n_tokens, tdm_program* program) {
  return build(ctx, n_tokens, true, program);
}

tdm_status tdm_model_graphs_init(tdm_model* model, tdm_model_range range, tdm_model_graphs* out_graphs) {
  *out_graphs = (tdm_model_graphs){.model = model, .range = range};
  tdm_graph_cache_config config;
  TDM_TRY(tdm_graph_cache_config_init(&config, sizeof config));
  config.n_buckets = model->config.n_buckets;
  config.buckets = model->config.buckets;
  config.ctx = out_graphs;
  config.wait_form = model->wait_form;
  config.signal_limit_ms = model->config.signal_limit_ms;
  config.trace = model->config.trace;
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
