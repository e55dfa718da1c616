#include "models/deepseek_v3.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/rope_table.h"

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static tdm_mla_config mla_config(const tdm_deepseek_v3_config* config) {
  return (tdm_mla_config){
      .hidden = config->hidden_size,
      .heads = config->num_attention_heads,
      .q_lora = config->q_lora_rank,
      .eps = 1e-6f, /* fixed for q_a_layernorm and kv_a_layernorm: docs/formulas.md, section 1 */
      .scale = tdm_rope_softmax_scale(&config->rope, config->qk_nope_head_dim + config->qk_rope_head_dim),
      .rope = config->rope.interleave ? TDM_ROPE_DEINTERLEAVE : TDM_ROPE_HALVES,
  };
}

static tdm_moe_config moe_config(const tdm_deepseek_v3_config* config, int64_t layer) {
  if (layer < config->first_k_dense_replace)
    return (tdm_moe_config){.hidden = config->hidden_size, .intermediate = config->intermediate_size};
  return (tdm_moe_config){.hidden = config->hidden_size,
                          .intermediate = config->moe_intermediate_size,
                          .n_routed = config->n_routed_experts,
                          .n_shared = config->n_shared_experts,
                          .top_k = (int32_t)config->num_experts_per_tok,
                          .n_group = (int32_t)config->n_group,
                          .topk_group = (int32_t)config->topk_group,
                          .norm_topk_prob = config->norm_topk_prob,
                          .routed_scaling_factor = (float)config->routed_scaling_factor};
}

static tdm_status load_layer(tdm_loader* loader, tdm_v3_weights* weights, int64_t index) {
  const tdm_deepseek_v3_config* config = &weights->config;
  tdm_v3_layer* layer = &weights->layers[index];
  char name[128];
  snprintf(name, sizeof name, "model.layers.%" PRId64 ".input_layernorm", index);
  TDM_TRY(tdm_loader_plain(loader, name, config->hidden_size, 0, &layer->input_norm));
  snprintf(name, sizeof name, "model.layers.%" PRId64 ".self_attn", index);
  const tdm_mla_config mla = mla_config(config);
  TDM_TRY(tdm_mla_load(loader, name, &mla, weights->activation, &layer->attention));
  snprintf(name, sizeof name, "model.layers.%" PRId64 ".post_attention_layernorm", index);
  TDM_TRY(tdm_loader_plain(loader, name, config->hidden_size, 0, &layer->post_norm));
  snprintf(name, sizeof name, "model.layers.%" PRId64 ".mlp", index);
  const tdm_moe_config moe = moe_config(config, index);
  return tdm_moe_load(loader, name, &moe, &layer->moe);
}

static tdm_status walk(tdm_loader* loader, tdm_v3_weights* weights) {
  const tdm_deepseek_v3_config* config = &weights->config;
  const int64_t vocab = config->vocab_size, hidden = config->hidden_size;
  TDM_TRY(tdm_loader_plain(loader, "model.embed_tokens", vocab, hidden, &weights->embedding));
  for (int64_t i = 0; i < weights->n_layers; i++) TDM_TRY(load_layer(loader, weights, i));
  TDM_TRY(tdm_loader_plain(loader, "model.norm", hidden, 0, &weights->norm));
  if (!config->tie_word_embeddings) return tdm_loader_plain(loader, "lm_head", vocab, hidden, &weights->head);
  weights->head = weights->embedding;
  return TDM_OK;
}

/* Tensors that a V3 checkpoint may hold and that are not used: layers beyond those loaded (prediction layers among
 * them), the rotary table, and the head's copy of a tied embedding. A layer number beyond all that the config knows is
 * no excuse. */
static bool ignore_tensor(void* ctx, const char* name) {
  const tdm_v3_weights* weights = ctx;
  const tdm_deepseek_v3_config* config = &weights->config;
  static const char layers[] = "model.layers.", rotary[] = ".rotary_emb.inv_freq";
  const size_t length = strlen(name);
  if (length >= sizeof rotary && strcmp(name + length - (sizeof rotary - 1), rotary) == 0) return true;
  if (config->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0) return true;
  if (strncmp(name, layers, sizeof layers - 1) != 0) return false;
  char* end;
  const long long layer = strtoll(name + sizeof layers - 1, &end, 10);
  return *end == '.' && layer >= weights->n_layers &&
         layer < config->num_hidden_layers + config->num_nextn_predict_layers;
}

static tdm_status check_and_load(tdm_loader* loader, tdm_v3_weights* weights) {
  TDM_TRY(walk(loader, weights));
  TDM_TRY(tdm_loader_report(loader, ignore_tensor, weights));
  loader->loading = true;
  TDM_TRY(walk(loader, weights));
  weights->bytes = loader->loaded_bytes;
  return TDM_OK;
}

tdm_status tdm_v3_weights_load(tdm_runtime* runtime, const tdm_checkpoint* checkpoint, const char* path,
                               const tdm_deepseek_v3_config* config, tdm_dtype activation, int64_t n_layers,
                               uint64_t seed, tdm_v3_weights* out_weights) {
  *out_weights =
      (tdm_v3_weights){.runtime = runtime, .config = *config, .activation = activation, .n_layers = n_layers};
  out_weights->layers = tdm_host_alloc_array(runtime, n_layers, sizeof *out_weights->layers);
  if (!out_weights->layers) return TDM_OUT_OF_MEMORY;
  tdm_loader loader;
  tdm_status status = tdm_loader_create(runtime, checkpoint, path, seed, &loader);
  if (status == TDM_OK) status = check_and_load(&loader, out_weights);
  tdm_loader_destroy(&loader);
  return status;
}

void tdm_v3_weights_release(tdm_v3_weights* weights) {
  if (!weights->runtime) return;
  for (int64_t i = 0; weights->layers && i < weights->n_layers; i++) {
    tdm_v3_layer* layer = &weights->layers[i];
    tdm_buffer_destroy(layer->input_norm.buffer);
    tdm_mla_release(&layer->attention);
    tdm_buffer_destroy(layer->post_norm.buffer);
    tdm_moe_release(&layer->moe);
  }
  if (weights->head.buffer != weights->embedding.buffer) tdm_buffer_destroy(weights->head.buffer);
  tdm_buffer_destroy(weights->embedding.buffer);
  tdm_buffer_destroy(weights->norm.buffer);
  tdm_host_free(weights->runtime, weights->layers, (size_t)weights->n_layers * sizeof *weights->layers);
  *weights = (tdm_v3_weights){0};
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* residual + delta, stored as temporary `name` where there is a delta, and its norm in the forms that `x` has. */
static tdm_status make_norm(tdm_builder* builder, const char* name, const tdm_view* weight, float eps,
                            tdm_v3_stream* stream, const tdm_activation* x, tdm_rmsnorm_args* out_args) {
  *out_args = (tdm_rmsnorm_args){.size = sizeof *out_args,
                                 .n_tokens = builder->n_tokens,
                                 .x = stream->residual,
                                 .delta = stream->delta,
                                 .weight = *weight,
                                 .out = x->plain,
                                 .out_q = x->q,
                                 .out_scale = x->scale,
                                 .eps = eps,
                                 .pow2_scale = builder->pow2_scale};
  if (!tdm_view_present(&stream->delta)) return TDM_OK;
  TDM_TRY(tdm_builder_tap(builder, name, builder->activation, stream->residual.shape[1], &out_args->residual_out));
  *stream = (tdm_v3_stream){.residual = out_args->residual_out};
  return TDM_OK;
}

static tdm_status append_norm(tdm_builder* builder, const char* step, const char* name, const tdm_view* weight,
                              float eps, tdm_v3_stream* stream, const tdm_activation* x) {
  char label[TDM_LABEL_BYTES];
  tdm_rmsnorm_args args;
  TDM_TRY(make_norm(builder, name, weight, eps, stream, x, &args));
  return tdm_append_rmsnorm(builder->program, builder->main_lane, tdm_builder_label(builder, step, label), &args);
}

tdm_status tdm_v3_layer_append(tdm_builder* builder, const tdm_v3_weights* weights, int64_t index,
                               const tdm_mla_batch* batch, const tdm_view* cache, tdm_v3_stream* stream) {
  const tdm_v3_layer* layer = &weights->layers[index];
  const float eps = (float)weights->config.rms_norm_eps;
  const int64_t hidden = weights->config.hidden_size;
  snprintf(builder->prefix, sizeof builder->prefix, "layer%d.", (int)index);
  tdm_activation attn_in;
  TDM_TRY(tdm_builder_activation(builder, "attn_in", hidden, &layer->attention.qkv_a, false, &attn_in));
  TDM_TRY(append_norm(builder, "input_norm", "in", &layer->input_norm, eps, stream, &attn_in));
  TDM_TRY(tdm_mla_append(builder, &layer->attention, batch, cache, &attn_in, &stream->delta));
  return tdm_v3_mlp_append(builder, weights, index, stream);
}

tdm_status tdm_v3_mlp_append(tdm_builder* builder, const tdm_v3_weights* weights, int64_t index,
                             tdm_v3_stream* stream) {
  const tdm_v3_layer* layer = &weights->layers[index];
  const float eps = (float)weights->config.rms_norm_eps;
  const int64_t hidden = weights->config.hidden_size;
  tdm_activation mlp_in;
  snprintf(builder->prefix, sizeof builder->prefix, "layer%d.", (int)index);
  /* The router reads the norm's output unquantised; so do those who want to see it. */
  const bool want_plain = tdm_moe_routes(&layer->moe) || builder->keep;
  TDM_TRY(tdm_builder_activation(builder, "mlp_in", hidden, tdm_moe_input_weight(&layer->moe), want_plain, &mlp_in));
  tdm_rmsnorm_args norm;
  TDM_TRY(make_norm(builder, "mid", &layer->post_norm, eps, stream, &mlp_in, &norm));
  return tdm_moe_append(builder, &layer->moe, &norm, &mlp_in, &stream->delta);
}

tdm_status tdm_v3_stream_finish(tdm_builder* builder, const char* name, const tdm_view* norm, float eps,
                                const tdm_v3_stream* stream, tdm_view* out_hidden, tdm_view* out_normed) {
  builder->prefix[0] = '\0';
  tdm_activation normed = {0};
  const tdm_view absent = {0};
  if (norm) TDM_TRY(tdm_builder_rows(builder, "final", builder->activation, stream->residual.shape[1], &normed.plain));
  tdm_v3_stream end = *stream;
  TDM_TRY(append_norm(builder, "final_norm", name, norm ? norm : &absent, eps, &end, &normed));
  *out_hidden = end.residual;
  if (out_normed) *out_normed = normed.plain;
  return TDM_OK;
}
