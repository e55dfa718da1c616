#include "models/deepseek_v3_config.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/findings.h"
#include "runtime/json.h"
#include "runtime/mapped_file.h"

/* A hub config has some 70 values; remote-code tables and label lists make it longer. */
static const tdm_json_limits config_limits = {
    .bytes = 1 << 20, .depth = 16, .string_bytes = 1 << 16, .values = 1 << 16};

/* Positions are exact in f32 below this. */
#define MAX_POSITIONS ((int64_t)1 << 24)

/* What one reading passes around. */
typedef struct reader {
  tdm_json_object root;
  tdm_deepseek_v3_config* config;
  tdm_findings* findings;
} reader;

#define UNSUPPORTED(r, ...) tdm_findings_add((r)->findings, TDM_UNSUPPORTED, __VA_ARGS__)
#define CORRUPT(r, ...)     tdm_findings_add((r)->findings, TDM_CORRUPT, __VA_ARGS__)

/* ---- extents and counts ----------------------------------------------------------------------------------------- */

/* An integer that has to be there. Outside of [min, max] it is absurd (CORRUPT); beyond that, what this version
 * computes is limited to one value or to multiples (UNSUPPORTED). */
typedef struct int_field {
  const char* key;
  size_t offset;
  int64_t min, max;
  int64_t multiple_of; /* 0: of anything */
  int64_t only;        /* 0: any value */
} int_field;

#define FIELD(name) #name, offsetof(tdm_deepseek_v3_config, name)

static const int_field int_fields[] = {
    {FIELD(vocab_size), 1, 1 << 24, 0, 0},
    {FIELD(hidden_size), 1, 65536, 128, 0},
    {FIELD(intermediate_size), 1, 1 << 20, 128, 0},
    {FIELD(moe_intermediate_size), 1, 65536, 128, 0},
    {FIELD(num_hidden_layers), 1, 1024, 0, 0},
    {FIELD(num_attention_heads), 1, 1024, 0, 0},
    {FIELD(kv_lora_rank), 1, 65536, 0, 512},
    {FIELD(qk_nope_head_dim), 1, 65536, 0, 128},
    {FIELD(qk_rope_head_dim), 1, 65536, 0, 64},
    {FIELD(v_head_dim), 1, 65536, 0, 128},
    {FIELD(n_routed_experts), 1, 1024, 0, 0},
    {FIELD(n_shared_experts), 0, 64, 0, 0},
    {FIELD(num_experts_per_tok), 1, 32, 0, 0},
    {FIELD(first_k_dense_replace), 0, 1024, 0, 0},
    {FIELD(max_position_embeddings), 1, MAX_POSITIONS, 0, 0},
};

static void read_int(const reader* r, const int_field* field) {
  int64_t value = 0;
  if (!tdm_findings_collect(r->findings, tdm_json_get_int(r->root, field->key, field->min, field->max, &value))) return;
  if (field->only && value != field->only)
    UNSUPPORTED(r, "%s is %lld, only %lld is computed", field->key, (long long)value, (long long)field->only);
  if (field->multiple_of && value % field->multiple_of != 0)
    UNSUPPORTED(r, "%s is %lld, only multiples of %lld are computed", field->key, (long long)value,
                (long long)field->multiple_of);
  memcpy((char*)r->config + field->offset, &value, sizeof value);
}

static bool is_null(const reader* r, const char* key) {
  return json_is_null(json_object_get(r->root.json, key));
}

static void read_ints(const reader* r) {
  for (size_t i = 0; i < sizeof int_fields / sizeof *int_fields; i++) read_int(r, &int_fields[i]);
  if (is_null(r, "q_lora_rank"))
    UNSUPPORTED(r, "q_lora_rank is null, only a low-rank query projection is computed");
  else
    read_int(r, &(int_field){FIELD(q_lora_rank), 1, 65536, 128, 0});
}

static void read_groups(const reader* r) {
  tdm_deepseek_v3_config* config = r->config;
  /* null stands for a single group */
  const bool ungrouped = is_null(r, "n_group");
  if (ungrouped)
    config->n_group = 1;
  else
    read_int(r, &(int_field){FIELD(n_group), 1, 1024, 0, 0});
  if (ungrouped && is_null(r, "topk_group"))
    config->topk_group = 1;
  else
    read_int(r, &(int_field){FIELD(topk_group), 1, 1024, 0, 0});

  const int64_t experts = config->n_routed_experts, groups = config->n_group, kept = config->topk_group;
  if (experts == 0 || groups == 0 || kept == 0) return; /* found wanting already */
  if (kept > groups)
    CORRUPT(r, "topk_group is %lld, more than n_group %lld", (long long)kept, (long long)groups);
  else if (experts % groups != 0 || experts / groups < 2)
    CORRUPT(r, "n_group is %lld, which does not divide n_routed_experts %lld into groups of 2 or more",
            (long long)groups, (long long)experts);
  else if (config->num_experts_per_tok > kept * (experts / groups))
    CORRUPT(r, "num_experts_per_tok is %lld, more than the %lld experts of topk_group %lld groups",
            (long long)config->num_experts_per_tok, (long long)(kept * (experts / groups)), (long long)kept);
}

static void read_layers(const reader* r) {
  tdm_deepseek_v3_config* config = r->config;
  if (config->num_hidden_layers > 0 && config->first_k_dense_replace > config->num_hidden_layers)
    CORRUPT(r, "first_k_dense_replace is %lld, more than num_hidden_layers %lld",
            (long long)config->first_k_dense_replace, (long long)config->num_hidden_layers);
  if (tdm_json_get(r->root, "num_nextn_predict_layers"))
    read_int(r, &(int_field){FIELD(num_nextn_predict_layers), 0, 64, 0, 0});
}

/* Fields that repeat what others say. */
static void check_heads(const reader* r) {
  const int64_t heads = r->config->num_attention_heads;
  const int64_t qk = r->config->qk_nope_head_dim + r->config->qk_rope_head_dim;
  int64_t value = 0;
  if (tdm_json_get(r->root, "num_key_value_heads") &&
      tdm_findings_collect(r->findings, tdm_json_get_int(r->root, "num_key_value_heads", 1, 1024, &value)) &&
      heads > 0 && value != heads)
    UNSUPPORTED(r, "num_key_value_heads is %lld, only num_attention_heads (%lld) is computed", (long long)value,
                (long long)heads);
  if (tdm_json_get(r->root, "qk_head_dim") &&
      tdm_findings_collect(r->findings, tdm_json_get_int(r->root, "qk_head_dim", 1, 1 << 20, &value)) &&
      r->config->qk_nope_head_dim > 0 && r->config->qk_rope_head_dim > 0 && value != qk)
    CORRUPT(r, "qk_head_dim is %lld, but qk_nope_head_dim + qk_rope_head_dim is %lld", (long long)value, (long long)qk);
}

/* A token id, or a list of them, of which the first is taken. Absent or null: -1. */
static void read_token(const reader* r, const char* key, int64_t* out) {
  *out = -1;
  const json_t* value = tdm_json_get(r->root, key);
  if (!value) return;
  const int64_t last = r->config->vocab_size > 0 ? r->config->vocab_size - 1 : INT64_MAX;
  if (!json_is_array(value)) {
    tdm_findings_collect(r->findings, tdm_json_get_int(r->root, key, 0, last, out));
    return;
  }
  for (size_t i = 0; i < json_array_size(value); i++) {
    int64_t id = -1;
    tdm_status status = tdm_json_get_int_at(value, key, i, 0, last, &id);
    if (!tdm_findings_collect(r->findings, status)) return;
    if (i == 0) *out = id;
  }
  if (json_array_size(value) > 1)
    tdm_log(r->findings->runtime, TDM_LOG_INFO, "%s: %s lists %zu tokens, only the first (%lld) is used",
            r->findings->subject, key, json_array_size(value), (long long)*out);
}

/* ---- numbers and switches --------------------------------------------------------------------------------------- */

static void read_numbers(const reader* r) {
  tdm_deepseek_v3_config* config = r->config;
  tdm_findings_collect(r->findings, tdm_json_get_real(r->root, "rms_norm_eps", 1e-30, 1, &config->rms_norm_eps));
  tdm_findings_collect(r->findings,
                       tdm_json_get_real(r->root, "routed_scaling_factor", 1e-6, 1e6, &config->routed_scaling_factor));
  tdm_findings_collect(r->findings, tdm_json_get_bool(r->root, "norm_topk_prob", &config->norm_topk_prob));
  if (tdm_json_get(r->root, "tie_word_embeddings"))
    tdm_findings_collect(r->findings, tdm_json_get_bool(r->root, "tie_word_embeddings", &config->tie_word_embeddings));
}

/* Fields that change the maths. Absent or null they mean the value given here, the only one that is computed. */
typedef struct fixed_field {
  const char* key;
  json_type type;     /* JSON_NULL: any value but null is refused */
  const char* string; /* JSON_STRING */
  int64_t integer;    /* JSON_INTEGER */
} fixed_field;

static const fixed_field fixed_fields[] = {
    {"hidden_act", JSON_STRING, "silu", 0},
    {"scoring_func", JSON_STRING, "sigmoid", 0},
    {"topk_method", JSON_STRING, "noaux_tc", 0},
    {"moe_layer_freq", JSON_INTEGER, NULL, 1},
    {"attention_bias", JSON_FALSE, NULL, 0},
    {"mlp_bias", JSON_FALSE, NULL, 0},
    {"use_qk_norm", JSON_FALSE, NULL, 0},
    {"use_sliding_window", JSON_FALSE, NULL, 0},
    {"is_encoder_decoder", JSON_FALSE, NULL, 0},
    /* of other members of the family: sparse attention (V3.2), V4 */
    {"index_topk", JSON_NULL, NULL, 0},
    {"index_n_heads", JSON_NULL, NULL, 0},
    {"index_head_dim", JSON_NULL, NULL, 0},
    {"sliding_window", JSON_NULL, NULL, 0},
    {"swiglu_limit", JSON_NULL, NULL, 0},
    {"compress_ratios", JSON_NULL, NULL, 0},
    {"compress_rates", JSON_NULL, NULL, 0},
    {"layer_types", JSON_NULL, NULL, 0},
    {"mlp_layer_types", JSON_NULL, NULL, 0},
    {"num_hash_layers", JSON_NULL, NULL, 0},
    {"hc_mult", JSON_NULL, NULL, 0},
    {"o_groups", JSON_NULL, NULL, 0},
    {"o_lora_rank", JSON_NULL, NULL, 0},
    {"expert_dtype", JSON_NULL, NULL, 0},
    {"partial_rotary_factor", JSON_INTEGER, NULL, 1},
    /* scalings that other families know */
    {"attn_logit_softcapping", JSON_NULL, NULL, 0},
    {"final_logit_softcapping", JSON_NULL, NULL, 0},
    {"embedding_multiplier", JSON_NULL, NULL, 0},
    {"residual_multiplier", JSON_NULL, NULL, 0},
    {"attention_multiplier", JSON_NULL, NULL, 0},
    {"logits_scaling", JSON_NULL, NULL, 0},
    {"logit_scale", JSON_NULL, NULL, 0},
};

static void check_fixed(const reader* r, tdm_json_object object, const fixed_field* field) {
  const json_t* value = tdm_json_get(object, field->key);
  if (!value) return;
  const tdm_quoted found = tdm_json_describe(value);
  switch (field->type) {
  case JSON_STRING:
    if (!json_is_string(value))
      CORRUPT(r, "%s%s is %s, expected a string", object.prefix, field->key, found.text);
    else if (strcmp(json_string_value(value), field->string) != 0)
      UNSUPPORTED(r, "%s%s is %s, only \"%s\" is computed", object.prefix, field->key, found.text, field->string);
    break;
  case JSON_INTEGER:
    if (!json_is_number(value))
      CORRUPT(r, "%s%s is %s, expected a number", object.prefix, field->key, found.text);
    else if (json_number_value(value) != (double)field->integer)
      UNSUPPORTED(r, "%s%s is %s, only %lld is computed", object.prefix, field->key, found.text,
                  (long long)field->integer);
    break;
  case JSON_FALSE:
    if (!json_is_boolean(value))
      CORRUPT(r, "%s%s is %s, expected true or false", object.prefix, field->key, found.text);
    else if (json_is_true(value))
      UNSUPPORTED(r, "%s%s is true, only false is computed", object.prefix, field->key);
    break;
  default:
    UNSUPPORTED(r, "%s%s is %s; a model with this field is not computed", object.prefix, field->key, found.text);
    break;
  }
}

/* FP8 with one scale per 128 x 128 block and activations quantised as they come; absent: BF16. */
static void read_quantization(const reader* r) {
  static const char key[] = "quantization_config", prefix[] = "quantization_config.";
  tdm_json_object quantization;
  if (!tdm_json_get(r->root, key)) return;
  if (!tdm_findings_collect(r->findings, tdm_json_get_object(r->root, key, prefix, &quantization))) return;
  const char* method = NULL;
  if (!tdm_findings_collect(r->findings, tdm_json_get_string(quantization, "quant_method", &method))) return;
  if (strcmp(method, "fp8") != 0) {
    UNSUPPORTED(r, "%squant_method is %s, only \"fp8\" is computed", prefix, tdm_quote(method).text);
    return; /* the other fields are that method's */
  }
  static const fixed_field fields[] = {
      {"activation_scheme", JSON_STRING, "dynamic", 0},
      {"fmt", JSON_STRING, "e4m3", 0},
  };
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) check_fixed(r, quantization, &fields[i]);
  const char* scale_format = "float";
  if (tdm_json_get(quantization, "scale_fmt"))
    tdm_findings_collect(r->findings, tdm_json_get_string(quantization, "scale_fmt", &scale_format));
  r->config->pow2_activation_scales = strcmp(scale_format, "ue8m0") == 0;
  if (!r->config->pow2_activation_scales && strcmp(scale_format, "float") != 0)
    UNSUPPORTED(r, "%sscale_fmt is %s, only \"float\" and \"ue8m0\" are computed", prefix,
                tdm_quote(scale_format).text);
  const json_t* block = tdm_json_get(quantization, "weight_block_size");
  if (!block) {
    UNSUPPORTED(r, "%sweight_block_size is missing, only [128, 128] is computed", prefix);
  } else if (!json_is_array(block) || json_array_size(block) != 2) {
    CORRUPT(r, "%sweight_block_size is %s, expected two integers", prefix, tdm_json_describe(block).text);
  } else {
    int64_t size[2] = {0, 0};
    for (size_t i = 0; i < 2; i++) {
      tdm_status status = tdm_json_get_int_at(block, "weight_block_size", i, 1, 1 << 20, &size[i]);
      if (!tdm_findings_collect(r->findings, status)) return;
    }
    if (size[0] != 128 || size[1] != 128)
      UNSUPPORTED(r, "%sweight_block_size is [%lld, %lld], only [128, 128] is computed", prefix, (long long)size[0],
                  (long long)size[1]);
  }
}

/* ---- rotary embedding ------------------------------------------------------------------------------------------- */

static void read_optional_real(const reader* r, tdm_json_object object, const char* key, double min, double max,
                               double* out) {
  if (tdm_json_get(object, key)) tdm_findings_collect(r->findings, tdm_json_get_real(object, key, min, max, out));
}

/* 0 means the default as well. */
static void read_beta(const reader* r, tdm_json_object yarn, const char* key, double fallback, double* out) {
  read_optional_real(r, yarn, key, 0, 1e6, out);
  if (*out == 0) *out = fallback;
}

static void read_yarn(const reader* r, tdm_json_object yarn) {
  tdm_rope_config* rope = &r->config->rope;
  rope->type = TDM_ROPE_YARN;
  const bool original_known =
      tdm_findings_collect(r->findings, tdm_json_get_int(yarn, "original_max_position_embeddings", 1, MAX_POSITIONS,
                                                         &rope->original_max_position_embeddings));
  if (tdm_json_get(yarn, "factor")) {
    tdm_findings_collect(r->findings, tdm_json_get_real(yarn, "factor", 1, 1e6, &rope->factor));
  } else if (original_known && r->config->max_position_embeddings > 0) {
    rope->factor = (double)r->config->max_position_embeddings / (double)rope->original_max_position_embeddings;
    if (rope->factor < 1)
      CORRUPT(r, "%sfactor is absent and max_position_embeddings / original_max_position_embeddings is %.9g, below 1",
              yarn.prefix, rope->factor);
  }
  read_beta(r, yarn, "beta_fast", 32, &rope->beta_fast);
  read_beta(r, yarn, "beta_slow", 1, &rope->beta_slow);
  if (rope->beta_fast < rope->beta_slow)
    CORRUPT(r, "%sbeta_fast is %.9g, below beta_slow %.9g", yarn.prefix, rope->beta_fast, rope->beta_slow);
  read_optional_real(r, yarn, "mscale", 0, 1e3, &rope->mscale);
  read_optional_real(r, yarn, "mscale_all_dim", 0, 1e3, &rope->mscale_all_dim);
  read_optional_real(r, yarn, "attention_factor", 1e-6, 1e6, &rope->attention_factor);
  if (tdm_json_get(yarn, "truncate"))
    tdm_findings_collect(r->findings, tdm_json_get_bool(yarn, "truncate", &rope->truncate));
}

/* "rope_type" or, as older configs say, "type"; plain when neither is there. NULL after a finding. */
static const char* rope_type(const reader* r, tdm_json_object rope) {
  const char *type = NULL, *old_type = NULL;
  if (tdm_json_get(rope, "rope_type") &&
      !tdm_findings_collect(r->findings, tdm_json_get_string(rope, "rope_type", &type)))
    return NULL;
  if (tdm_json_get(rope, "type") && !tdm_findings_collect(r->findings, tdm_json_get_string(rope, "type", &old_type)))
    return NULL;
  if (type && old_type && strcmp(type, old_type) != 0) {
    CORRUPT(r, "%srope_type is %s, but %stype is %s", rope.prefix, tdm_quote(type).text, rope.prefix,
            tdm_quote(old_type).text);
    return NULL;
  }
  return type ? type : old_type ? old_type : "default";
}

static void read_rope(const reader* r) {
  tdm_rope_config* rope = &r->config->rope;
  *rope = (tdm_rope_config){.type = TDM_ROPE_PLAIN, .truncate = true, .interleave = true};
  if (tdm_json_get(r->root, "rope_interleave"))
    tdm_findings_collect(r->findings, tdm_json_get_bool(r->root, "rope_interleave", &rope->interleave));

  tdm_json_object object = {NULL, ""};
  const bool renamed = tdm_json_get(r->root, "rope_parameters") != NULL;
  const char* key = renamed ? "rope_parameters" : "rope_scaling";
  if (tdm_json_get(r->root, key) &&
      !tdm_findings_collect(r->findings,
                            tdm_json_get_object(r->root, key, renamed ? "rope_parameters." : "rope_scaling.", &object)))
    return;

  /* The base stands beside the old spelling and inside of the new one. */
  const bool inside = renamed && tdm_json_get(object, "rope_theta");
  tdm_findings_collect(r->findings,
                       tdm_json_get_real(inside ? object : r->root, "rope_theta", 1.0001, 1e12, &rope->theta));
  if (!object.json) return;
  check_fixed(r, object, &(fixed_field){"partial_rotary_factor", JSON_INTEGER, NULL, 1});
  const char* type = rope_type(r, object);
  if (!type) return;
  if (strcmp(type, "yarn") == 0)
    read_yarn(r, object);
  else if (strcmp(type, "default") != 0)
    UNSUPPORTED(r, "%srope_type is %s, only \"yarn\" and \"default\" are computed", object.prefix,
                tdm_quote(type).text);
}

/* ---- the rest of the file --------------------------------------------------------------------------------------- */

static void check_architecture(const reader* r) {
  const json_t* names = tdm_json_get(r->root, "architectures");
  if (!names) return;
  if (!json_is_array(names)) {
    CORRUPT(r, "architectures is %s, expected an array", tdm_json_describe(names).text);
    return;
  }
  const size_t n = json_array_size(names);
  for (size_t i = 0; i < n; i++) {
    const char* name = json_string_value(json_array_get(names, i));
    if (name && strcmp(name, "DeepseekV3ForCausalLM") == 0) return;
  }
  if (n > 0)
    UNSUPPORTED(r, "architectures[0] is %s, only \"DeepseekV3ForCausalLM\" is computed",
                tdm_json_describe(json_array_get(names, 0)).text);
}

/* Read above in ways of their own. */
static const char* const read_keys[] = {
    "model_type",     "architectures",   "q_lora_rank",         "n_group",
    "topk_group",     "rms_norm_eps",    "num_key_value_heads", "num_nextn_predict_layers",
    "qk_head_dim",    "bos_token_id",    "eos_token_id",        "routed_scaling_factor",
    "norm_topk_prob", "rope_interleave", "tie_word_embeddings", "quantization_config",
    "rope_theta",     "rope_scaling",    "rope_parameters",
};

/* Known to change nothing in a forward pass at inference. */
static const char* const harmless_keys[] = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "add_cross_attention",
    "attention_dropout",
    "auto_map",
    "aux_loss_alpha",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cls_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "ep_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "head_dim", /* the rotary part in new configs, 192 in some old ones: not to be trusted */
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "seq_aux",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
};

static bool is_in(const char* key, const char* const* keys, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (strcmp(key, keys[i]) == 0) return true;
  return false;
}

static bool is_known(const char* key) {
  if (is_in(key, read_keys, sizeof read_keys / sizeof *read_keys)) return true;
  if (is_in(key, harmless_keys, sizeof harmless_keys / sizeof *harmless_keys)) return true;
  for (size_t i = 0; i < sizeof int_fields / sizeof *int_fields; i++)
    if (strcmp(key, int_fields[i].key) == 0) return true;
  for (size_t i = 0; i < sizeof fixed_fields / sizeof *fixed_fields; i++)
    if (strcmp(key, fixed_fields[i].key) == 0) return true;
  return false;
}

static void log_unknown(const reader* r) {
  enum { MAX_LINES = 16 };
  int64_t unknown = 0;
  const char* key;
  json_t* value;
  json_t* root = (json_t*)(uintptr_t)r->root.json; /* jansson iterates over non-const objects only */
  json_object_foreach(root, key, value) {
    if (is_known(key)) continue;
    if (++unknown <= MAX_LINES)
      tdm_log(r->findings->runtime, TDM_LOG_INFO, "%s: field %s (%s) is not known and not used", r->findings->subject,
              tdm_quote(key).text, tdm_json_describe(value).text);
  }
  if (unknown > MAX_LINES)
    tdm_log(r->findings->runtime, TDM_LOG_INFO, "%s: %lld more fields are not known and not used", r->findings->subject,
            (long long)(unknown - MAX_LINES));
}

static void read_all(const reader* r) {
  const char* model_type = NULL;
  if (!tdm_findings_collect(r->findings, tdm_json_get_string(r->root, "model_type", &model_type))) return;
  if (strcmp(model_type, "deepseek_v3") != 0) {
    UNSUPPORTED(r, "model_type is %s, only \"deepseek_v3\" is computed", tdm_quote(model_type).text);
    return; /* the other fields are that model's */
  }
  check_architecture(r);
  read_ints(r);
  read_groups(r);
  read_layers(r);
  check_heads(r);
  read_token(r, "bos_token_id", &r->config->bos_token_id);
  read_token(r, "eos_token_id", &r->config->eos_token_id);
  read_numbers(r);
  for (size_t i = 0; i < sizeof fixed_fields / sizeof *fixed_fields; i++) check_fixed(r, r->root, &fixed_fields[i]);
  read_quantization(r);
  read_rope(r);
  log_unknown(r);
}

tdm_status tdm_deepseek_v3_config_parse(tdm_runtime* runtime, const char* source, const char* text, size_t n_bytes,
                                        tdm_deepseek_v3_config* out_config) {
  memset(out_config, 0, sizeof *out_config);
  tdm_findings findings;
  tdm_findings_init(&findings, runtime, source);
  json_t* json;
  tdm_status status = tdm_json_parse(text, n_bytes, &config_limits, &json);
  if (status == TDM_OUT_OF_MEMORY) return tdm_fail_prefix(status, "%s", source);
  if (tdm_findings_collect(&findings, status)) {
    const reader r = {{json, ""}, out_config, &findings};
    read_all(&r);
    json_decref(json);
  }
  status = tdm_findings_result(&findings);
  if (status != TDM_OK) memset(out_config, 0, sizeof *out_config);
  return status;
}

static tdm_status read_file(tdm_runtime* runtime, const char* path, tdm_deepseek_v3_config* out_config) {
  tdm_mapped_file file;
  TDM_TRY(tdm_mapped_file_open(path, &file));
  tdm_status status = tdm_deepseek_v3_config_parse(runtime, path, file.bytes, file.n_bytes, out_config);
  tdm_mapped_file_close(&file);
  return status;
}

tdm_status tdm_deepseek_v3_config_read(tdm_runtime* runtime, const char* path, tdm_deepseek_v3_config* out_config) {
  if (!runtime || !path || !*path || !out_config)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_deepseek_v3_config_read: runtime, path and out_config must not be NULL, "
                                          "nor path empty");
  memset(out_config, 0, sizeof *out_config);
  struct stat info;
  if (stat(path, &info) != 0) return TDM_FAIL_RAW(TDM_IO, errno, "%s: %s", path, strerror(errno));
  if (!S_ISDIR(info.st_mode)) return read_file(runtime, path, out_config);
  char* file_path = tdm_path_join(runtime, path, "config.json");
  if (!file_path) return TDM_OUT_OF_MEMORY;
  tdm_status status = read_file(runtime, file_path, out_config);
  tdm_host_free(runtime, file_path, strlen(file_path) + 1);
  return status;
}
