#include "decode_step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool decode_step_parse_number(const char* text, int64_t least, int64_t most, int64_t* out) {
  char* end;
  *out = strtoll(text, &end, 10);
  return end != text && *end == '\0' && *out >= least && *out <= most;
}

bool decode_step_parse_device(const char* text, decode_step_options* options) {
  int64_t ordinal = 0;
  options->any_device = strcmp(text, "auto") == 0;
  options->device = strcmp(text, "host") == 0 ? TDM_DEVICE_HOST : TDM_DEVICE_CUDA;
  if (options->any_device || options->device == TDM_DEVICE_HOST) return true;
  const bool ok = strncmp(text, "cuda:", 5) == 0 && decode_step_parse_number(text + 5, 0, 1024, &ordinal);
  options->ordinal = (int32_t)ordinal;
  return ok;
}

bool decode_step_parse_moe(const char* text, tdm_moe_path* out) {
  static const char* const names[] = {NULL, "auto", "dense", "hits", "grouped"};
  for (int path = TDM_MOE_PATH_AUTO; path <= TDM_MOE_PATH_GROUPED; path++) {
    if (strcmp(text, names[path]) != 0) continue;
    *out = (tdm_moe_path)path;
    return true;
  }
  return false;
}

static void print_log(void* ctx, tdm_log_level level, const char* line) {
  (void)ctx;
  (void)level;
  fprintf(stderr, "tandem: %s\n", line);
}

tdm_status decode_step_open(const decode_step_options* options, tdm_runtime** out_runtime) {
  tdm_runtime_config config;
  tdm_status status = tdm_runtime_config_init(&config, sizeof config);
  if (status != TDM_OK) return status;
  config.log = print_log;
  config.log_level = TDM_LOG_WARNING;
  config.device_kind = options->any_device ? TDM_DEVICE_CUDA : options->device;
  config.device_ordinal = options->ordinal;
  status = tdm_runtime_create(&config, out_runtime);
  if (status == TDM_OK || !options->any_device) return status;
  fprintf(stderr, "running on the host: %s\n", tdm_last_error()->message);
  config.device_kind = TDM_DEVICE_HOST;
  return tdm_runtime_create(&config, out_runtime);
}

/* DeepSeek-V3's MoE layer; a rank of tensor parallelism 8 has an eighth of the heads and of each expert's width. */
static tdm_deepseek_v3_config layer_shape(const decode_step_options* options) {
  tdm_deepseek_v3_config shape = {
      .vocab_size = 128, /* embedding and head are not what is measured */
      .hidden_size = 7168,
      .intermediate_size = 18432,
      .moe_intermediate_size = options->whole ? 2048 : 256,
      .num_hidden_layers = options->layers,
      .num_attention_heads = options->whole ? 128 : 16,
      .q_lora_rank = 1536,
      .kv_lora_rank = 512,
      .qk_nope_head_dim = 128,
      .qk_rope_head_dim = 64,
      .v_head_dim = 128,
      .n_routed_experts = 256,
      .n_shared_experts = 1,
      .num_experts_per_tok = 8,
      .n_group = 8,
      .topk_group = 4,
      .max_position_embeddings = 163840,
      .bos_token_id = -1,
      .eos_token_id = -1,
      .rms_norm_eps = 1e-6,
      .routed_scaling_factor = 2.5,
      .norm_topk_prob = true,
      .rope = {.type = TDM_ROPE_YARN,
               .theta = 10000,
               .factor = 40,
               .beta_fast = 32,
               .beta_slow = 1,
               .mscale = 1,
               .mscale_all_dim = 1,
               .original_max_position_embeddings = 4096,
               .truncate = true,
               .interleave = true},
  };
  if (!options->tiny) return shape;
  shape.hidden_size = 512;
  shape.moe_intermediate_size = 128;
  shape.num_attention_heads = 4;
  shape.q_lora_rank = 256;
  shape.n_routed_experts = 16;
  return shape;
}

tdm_status decode_step_model(tdm_runtime* runtime, const decode_step_options* options, int64_t most,
                             tdm_model_config* config, tdm_model** out_model) {
  config->max_tokens = config->max_seqs = most;
  config->max_context = (options->context / 64 + 2) * 64;
  config->cache_pages = most * (options->context / 64 + 2);
  const tdm_deepseek_v3_config shape = layer_shape(options);
  return tdm_model_create_random(runtime, &shape, 1, config, out_model);
}

tdm_status decode_step_begin(tdm_model* model, const decode_step_options* options, int64_t batch, decode_step* step) {
  static float hidden[DECODE_STEP_MOST * 7168];
  const int64_t width = tdm_model_get_config(model)->hidden_size;
  tdm_status status = TDM_OK;
  *step = (decode_step){.batch = 0};
  for (; step->batch < batch && status == TDM_OK; step->batch++) {
    tdm_batch_item* item = &step->items[step->batch];
    *item = (tdm_batch_item){.n_tokens = 1};
    status = tdm_sequence_create(model, &item->sequence);
    if (status == TDM_OK) status = tdm_sequence_pretend(item->sequence, options->context);
  }
  uint32_t random = 1;
  for (int64_t i = 0; i < batch * width; i++) {
    random = random * 1664525u + 1013904223u;
    hidden[i] = (float)(random >> 8) / (float)(1 << 23) - 1.0f;
  }
  if (status == TDM_OK)
    status = tdm_model_forward_layers(model, step->items, batch, 0, options->layers, hidden, hidden);
  if (status == TDM_OK) status = tdm_model_program(model, &step->program);
  return status;
}

void decode_step_end(decode_step* step) {
  while (step->batch > 0) tdm_sequence_destroy(step->items[--step->batch].sequence);
}
