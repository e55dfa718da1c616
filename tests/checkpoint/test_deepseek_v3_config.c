#include "models/deepseek_v3_config.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkpoint/fixture.h"

#define HUB "tests/checkpoint/configs/deepseek_v3.json"

static tdm_status parse(fixture* f, const char* text, tdm_deepseek_v3_config* out) {
  fixture_forget_log(f);
  /* exactly as long as the text, so that AddressSanitizer sees a step too far */
  const size_t n_bytes = strlen(text);
  char* bytes = n_bytes ? malloc(n_bytes) : NULL;
  if (n_bytes) memcpy(bytes, text, n_bytes);
  tdm_status status = tdm_deepseek_v3_config_parse(f->runtime, "config.json", bytes, n_bytes, out);
  free(bytes);
  return status;
}

/* ---- what is right ---------------------------------------------------------------------------------------------- */

Test(deepseek_v3_config, hub) {
  fixture f;
  fixture_open(&f);
  tdm_deepseek_v3_config c;
  char path[512];
  snprintf(path, sizeof path, "%s/%s", TANDEM_SOURCE_DIR, HUB);
  cr_assert_eq(tdm_deepseek_v3_config_read(f.runtime, path, &c), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(f.n_lines, 0, "%s", f.lines[0]);
  cr_expect_eq(c.vocab_size, 129280);
  cr_expect_eq(c.hidden_size, 7168);
  cr_expect_eq(c.intermediate_size, 18432);
  cr_expect_eq(c.moe_intermediate_size, 2048);
  cr_expect_eq(c.num_hidden_layers, 61);
  cr_expect_eq(c.num_attention_heads, 128);
  cr_expect_eq(c.q_lora_rank, 1536);
  cr_expect_eq(c.kv_lora_rank, 512);
  cr_expect_eq(c.qk_nope_head_dim, 128);
  cr_expect_eq(c.qk_rope_head_dim, 64);
  cr_expect_eq(c.v_head_dim, 128);
  cr_expect_eq(c.n_routed_experts, 256);
  cr_expect_eq(c.n_shared_experts, 1);
  cr_expect_eq(c.num_experts_per_tok, 8);
  cr_expect_eq(c.n_group, 8);
  cr_expect_eq(c.topk_group, 4);
  cr_expect_eq(c.first_k_dense_replace, 3);
  cr_expect_eq(c.num_nextn_predict_layers, 1);
  cr_expect_eq(c.max_position_embeddings, 163840);
  cr_expect_eq(c.bos_token_id, 0);
  cr_expect_eq(c.eos_token_id, 1);
  cr_expect_eq(c.rms_norm_eps, 1e-6);
  cr_expect_eq(c.routed_scaling_factor, 2.5);
  cr_expect(c.norm_topk_prob);
  cr_expect_not(c.tie_word_embeddings);
  cr_expect_eq(c.rope.type, TDM_ROPE_YARN);
  cr_expect_eq(c.rope.theta, 10000);
  cr_expect_eq(c.rope.factor, 40);
  cr_expect_eq(c.rope.beta_fast, 32);
  cr_expect_eq(c.rope.beta_slow, 1);
  cr_expect_eq(c.rope.mscale, 1);
  cr_expect_eq(c.rope.mscale_all_dim, 1);
  cr_expect_eq(c.rope.attention_factor, 0);
  cr_expect_eq(c.rope.original_max_position_embeddings, 4096);
  cr_expect(c.rope.truncate);
  cr_expect(c.rope.interleave);
  fixture_close(&f);
}

Test(deepseek_v3_config, golden) {
  fixture f;
  fixture_open(&f);
  tdm_deepseek_v3_config c;
  char path[512];
  snprintf(path, sizeof path, "%s/tests/golden/deepseek_v3", TANDEM_SOURCE_DIR);
  cr_assert_eq(tdm_deepseek_v3_config_read(f.runtime, path, &c), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(f.n_lines, 0, "%s", f.lines[0]);
  cr_expect_eq(c.hidden_size, 384);
  cr_expect_eq(c.q_lora_rank, 256);
  cr_expect_eq(c.n_group, 4);
  cr_expect_eq(c.topk_group, 2);
  cr_expect_eq(c.rope.type, TDM_ROPE_YARN);
  cr_expect_eq(c.rope.theta, 10000);
  cr_expect_eq(c.rope.factor, 40);
  cr_expect_eq(c.rope.original_max_position_embeddings, 64);
  fixture_close(&f);
}

/* The hub's config with one thing changed, which changes what is read or not. */
typedef struct good_case {
  const char* name;
  const char* find;
  const char* replace;
  int32_t n_info; /* lines at INFO: what is not used */
} good_case;

#define YARN                                                                                                           \
  "\"rope_scaling\": {\n    \"beta_fast\": 32,\n    \"beta_slow\": 1,\n    \"factor\": 40,\n    \"mscale\": 1.0,\n"    \
  "    \"mscale_all_dim\": 1.0,\n    \"original_max_position_embeddings\": 4096,\n    \"type\": \"yarn\"\n  },\n"      \
  "  \"rope_theta\": 10000"

static const good_case good_cases[] = {
    {"unchanged", "\"vocab_size\"", "\"vocab_size\"", 0},
    {"BF16", "\"quantization_config\": {", "\"quantization_config\": null, \"x\": {", 1},
    {"head_dim is not used", "{", "{\"head_dim\": 192,", 0},
    {"unknown fields", "{", "{\"colour\": \"blue\", \"line\\nbreak\": {}, ", 2},
    {"rope_type beside type", "\"type\": \"yarn\"", "\"type\": \"yarn\", \"rope_type\": \"yarn\"", 0},
    {"one group spelled null", "\"n_group\": 8", "\"n_group\": null", 0},
    {"no multi-token prediction", "\"num_nextn_predict_layers\": 1,", "", 0},
    {"list of end tokens", "\"eos_token_id\": 1", "\"eos_token_id\": [1, 100, 7]", 1},
    {"no begin token", "\"bos_token_id\": 0", "\"bos_token_id\": null", 0},
    {"other architectures as well", "[\"DeepseekV3ForCausalLM\"]", "[\"X\", \"DeepseekV3ForCausalLM\"]", 0},
    {"architectures absent", "\"architectures\": [\"DeepseekV3ForCausalLM\"],", "", 0},
    {"fields of the old kind absent", "\"scoring_func\": \"sigmoid\",", "", 0},
    {"integer where a number is", "\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 2", 0},
    {"beta absent", "\"beta_fast\": 32,", "", 0},
    {"beta zero", "\"beta_fast\": 32", "\"beta_fast\": 0", 0},
    {"factor absent", "\"factor\": 40,", "", 0},
    {"new spelling", YARN,
     "\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 10000.0, \"factor\": 40.0, "
     "\"original_max_position_embeddings\": 4096, \"mscale\": 1, \"mscale_all_dim\": 1}",
     0},
    {"new spelling wins", "\"rope_theta\": 10000",
     "\"rope_theta\": 5, \"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 10000, \"factor\": 40, "
     "\"original_max_position_embeddings\": 4096, \"mscale\": 1, \"mscale_all_dim\": 1}",
     0},
};

Test(deepseek_v3_config, good_changes) {
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  tdm_deepseek_v3_config expected;
  cr_assert_eq(parse(&f, hub, &expected), TDM_OK);
  for (size_t i = 0; i < sizeof good_cases / sizeof *good_cases; i++) {
    const good_case* g = &good_cases[i];
    char* text = fixture_replace(hub, g->find, g->replace);
    if (strcmp(g->name, "one group spelled null") == 0) {
      char* more = fixture_replace(text, "\"topk_group\": 4", "\"topk_group\": null");
      free(text);
      text = more;
    }
    tdm_deepseek_v3_config c;
    cr_expect_eq(parse(&f, text, &c), TDM_OK, "%s: %s", g->name, tdm_last_error()->message);
    cr_expect_eq(fixture_count_log(&f, TDM_LOG_INFO), g->n_info, "%s: %d lines: %s", g->name, f.n_lines, f.lines[0]);
    cr_expect_eq(fixture_count_log(&f, TDM_LOG_ERROR), 0, "%s", g->name);
    tdm_deepseek_v3_config want = expected;
    if (strstr(g->name, "one group")) want.n_group = want.topk_group = 1;
    if (strstr(g->name, "no multi-token")) want.num_nextn_predict_layers = 0;
    if (strstr(g->name, "no begin")) want.bos_token_id = -1;
    if (strstr(g->name, "integer where")) want.routed_scaling_factor = 2;
    cr_expect_arr_eq(&c, &want, sizeof c, "%s: something else was read", g->name);
    free(text);
  }
  free(hub);
  fixture_close(&f);
}

Test(deepseek_v3_config, plain_rope) {
  static const char* const spellings[] = {
      "\"rope_scaling\": null, \"rope_theta\": 50000.0",
      "\"rope_theta\": 50000",
      "\"rope_scaling\": {\"type\": \"default\"}, \"rope_theta\": 50000",
      "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 50000.0}",
      "\"rope_parameters\": {\"rope_theta\": 50000.0}, \"rope_theta\": 3",
      "\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 1.0}, \"rope_theta\": 50000",
  };
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
    char* text = fixture_replace(hub, YARN, spellings[i]);
    tdm_deepseek_v3_config c;
    cr_expect_eq(parse(&f, text, &c), TDM_OK, "%s: %s", spellings[i], tdm_last_error()->message);
    cr_expect_eq(c.rope.type, TDM_ROPE_PLAIN, "%s", spellings[i]);
    cr_expect_eq(c.rope.theta, 50000, "%s", spellings[i]);
    cr_expect_eq(c.rope.factor, 0, "%s", spellings[i]);
    cr_expect(c.rope.interleave, "%s", spellings[i]);
    free(text);
  }
  char* text = fixture_replace(hub, "\"rope_theta\"", "\"rope_interleave\": false, \"rope_theta\"");
  tdm_deepseek_v3_config c;
  cr_expect_eq(parse(&f, text, &c), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_not(c.rope.interleave);
  free(text);
  free(hub);
  fixture_close(&f);
}

/* ---- what is wrong ---------------------------------------------------------------------------------------------- */

typedef struct bad_case {
  const char* name;
  const char* find; /* NULL: the text is `replace` */
  const char* replace;
  tdm_status status;
  const char* words;
} bad_case;

static const bad_case bad_cases[] = {
    /* the text */
    {"empty", NULL, "", TDM_CORRUPT, "config.json: empty"},
    {"no JSON", NULL, "model_type = deepseek_v3", TDM_CORRUPT, "config.json: line 1"},
    {"array", NULL, "[1, 2]", TDM_CORRUPT, "an array of 2|expected a JSON object"},
    {"cut short", NULL, "{\"model_type\": \"deepseek_v3\",", TDM_CORRUPT, "line 1"},
    {"empty object", NULL, "{}", TDM_CORRUPT, "model_type is missing"},
    {"field twice", "\"vocab_size\": 129280", "\"vocab_size\": 1, \"vocab_size\": 2", TDM_CORRUPT,
     "duplicate object key|vocab_size"},
    {"NaN", "1e-06", "NaN", TDM_CORRUPT, "invalid token|NaN"},
    {"Infinity", "1e-06", "Infinity", TDM_CORRUPT, "invalid token|Infinity"},
    {"number beyond double", "1e-06", "1e999", TDM_CORRUPT, "real number overflow"},
    {"broken UTF-8", "sigmoid", "\xff\xfe", TDM_CORRUPT, "unable to decode byte 0xff"},
    {"nested too deep", "\"ep_size\": 1", "\"ep_size\": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]", TDM_CORRUPT,
     "nested deeper than 16"},

    /* another model */
    {"model_type missing", "\"model_type\": \"deepseek_v3\",", "", TDM_CORRUPT, "model_type is missing"},
    {"model_type is a number", "\"deepseek_v3\"", "3", TDM_CORRUPT, "model_type is 3"},
    {"another model_type", NULL, "{\"model_type\": \"llama\"}", TDM_UNSUPPORTED,
     "config.json: model_type is \"llama\""},
    {"V4", "\"deepseek_v3\"", "\"deepseek_v4\"", TDM_UNSUPPORTED, "\"deepseek_v4\""},
    {"terminal escape in model_type", "\"deepseek_v3\"", "\"\\u001b[31m\"", TDM_UNSUPPORTED, "\"\\x1b[31m\""},
    {"another architecture", "DeepseekV3ForCausalLM\"]", "DeepseekV3ForSequenceClassification\"]", TDM_UNSUPPORTED,
     "architectures[0]|Classification"},
    {"architectures is a string", "[\"DeepseekV3ForCausalLM\"]", "\"x\"", TDM_CORRUPT, "architectures is \"x\""},

    /* extents */
    {"hidden_size missing", "\"hidden_size\": 7168,", "", TDM_CORRUPT, "hidden_size is missing"},
    {"hidden_size null", "\"hidden_size\": 7168", "\"hidden_size\": null", TDM_CORRUPT, "hidden_size is null"},
    {"hidden_size is a string", "\"hidden_size\": 7168", "\"hidden_size\": \"7168\"", TDM_CORRUPT,
     "hidden_size is \"7168\"|an integer"},
    {"hidden_size is a float", "\"hidden_size\": 7168", "\"hidden_size\": 7168.0", TDM_CORRUPT,
     "hidden_size is 7168.0|an integer"},
    {"hidden_size zero", "\"hidden_size\": 7168", "\"hidden_size\": 0", TDM_CORRUPT, "hidden_size is 0|1 to 65536"},
    {"hidden_size negative", "\"hidden_size\": 7168", "\"hidden_size\": -7168", TDM_CORRUPT, "-7168"},
    {"hidden_size absurd", "\"hidden_size\": 7168", "\"hidden_size\": 1000000007", TDM_CORRUPT, "1000000007|65536"},
    {"hidden_size beyond int64", "\"hidden_size\": 7168", "\"hidden_size\": 99999999999999999999", TDM_CORRUPT,
     "too big integer"},
    {"hidden_size no multiple of 128", "\"hidden_size\": 7168", "\"hidden_size\": 7000", TDM_UNSUPPORTED, "7000|128"},
    {"intermediate_size no multiple", "18432", "18400", TDM_UNSUPPORTED, "intermediate_size is 18400|128"},
    {"moe_intermediate_size no multiple", "2048", "2000", TDM_UNSUPPORTED, "moe_intermediate_size is 2000|128"},
    {"vocab_size missing", ",\n  \"vocab_size\": 129280", "", TDM_CORRUPT, "vocab_size is missing"},
    {"vocab_size absurd", "129280", "4294967296", TDM_CORRUPT, "vocab_size is 4294967296|16777216"},
    {"no layers", "\"num_hidden_layers\": 61", "\"num_hidden_layers\": 0", TDM_CORRUPT, "num_hidden_layers is 0"},
    {"too many layers", "\"num_hidden_layers\": 61", "\"num_hidden_layers\": 1025", TDM_CORRUPT, "1025|1024"},
    {"no heads", "\"num_attention_heads\": 128", "\"num_attention_heads\": 0", TDM_CORRUPT, "num_attention_heads is 0"},
    {"grouped heads", "\"num_key_value_heads\": 128", "\"num_key_value_heads\": 8", TDM_UNSUPPORTED,
     "num_key_value_heads is 8|128"},
    {"full-rank queries", "1536", "null", TDM_UNSUPPORTED, "q_lora_rank is null"},
    {"q_lora_rank missing", "\"q_lora_rank\": 1536,", "", TDM_CORRUPT, "q_lora_rank is missing"},
    {"another kv_lora_rank", "\"kv_lora_rank\": 512", "\"kv_lora_rank\": 256", TDM_UNSUPPORTED,
     "kv_lora_rank is 256|512"},
    {"another rope dimension", "\"qk_rope_head_dim\": 64", "\"qk_rope_head_dim\": 32", TDM_UNSUPPORTED,
     "qk_rope_head_dim is 32|64"},
    {"another nope dimension", "\"qk_nope_head_dim\": 128", "\"qk_nope_head_dim\": 192", TDM_UNSUPPORTED, "192|128"},
    {"another value dimension", "\"v_head_dim\": 128", "\"v_head_dim\": 256", TDM_UNSUPPORTED, "v_head_dim is 256"},
    {"qk_head_dim disagrees", "{", "{\"qk_head_dim\": 128,", TDM_CORRUPT, "qk_head_dim is 128|192"},
    {"more dense layers than layers", "\"first_k_dense_replace\": 3", "\"first_k_dense_replace\": 62", TDM_CORRUPT,
     "first_k_dense_replace is 62|61"},
    {"context absurd", "163840", "1000000000000", TDM_CORRUPT, "max_position_embeddings is 1000000000000"},
    {"token beyond the vocabulary", "\"eos_token_id\": 1", "\"eos_token_id\": 129280", TDM_CORRUPT,
     "eos_token_id is 129280|129279"},
    {"token in a list is a string", "\"eos_token_id\": 1", "\"eos_token_id\": [1, \"2\"]", TDM_CORRUPT,
     "eos_token_id[1] is \"2\""},

    /* experts */
    {"no experts", "\"n_routed_experts\": 256", "\"n_routed_experts\": 0", TDM_CORRUPT, "n_routed_experts is 0"},
    {"too many experts", "\"n_routed_experts\": 256", "\"n_routed_experts\": 100000", TDM_CORRUPT, "100000|1024"},
    {"groups do not divide experts", "\"n_group\": 8", "\"n_group\": 7", TDM_CORRUPT, "n_group is 7|256"},
    {"groups of one", "\"n_group\": 8", "\"n_group\": 256", TDM_CORRUPT, "n_group is 256|2 or more"},
    {"no groups", "\"n_group\": 8", "\"n_group\": 0", TDM_CORRUPT, "n_group is 0"},
    {"n_group missing", "\"n_group\": 8,", "", TDM_CORRUPT, "n_group is missing"},
    {"more groups kept than there are", "\"topk_group\": 4", "\"topk_group\": 9", TDM_CORRUPT, "topk_group is 9|8"},
    {"topk_group null with groups", "\"topk_group\": 4", "\"topk_group\": null", TDM_CORRUPT, "topk_group is null"},
    {"no top-k", "\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 0", TDM_CORRUPT, "num_experts_per_tok is 0"},
    {"top-k too large", "\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 33", TDM_CORRUPT, "33|32"},
    {"top-k beyond the kept groups", "\"n_group\": 8,\n  \"n_routed_experts\": 256",
     "\"n_group\": 2, \"n_routed_experts\": 4", TDM_CORRUPT, "topk_group is 4|n_group 2"},
    {"top-k beyond the experts of the kept groups",
     "\"n_group\": 8,\n  \"n_routed_experts\": 256,\n  \"n_shared_experts\": 1,\n  \"norm_topk_prob\": true,\n"
     "  \"num_attention_heads\": 128,\n  \"num_experts_per_tok\": 8",
     "\"n_group\": 128, \"n_routed_experts\": 256, \"n_shared_experts\": 1, \"norm_topk_prob\": true, "
     "\"num_attention_heads\": 128, \"num_experts_per_tok\": 9",
     TDM_CORRUPT, "num_experts_per_tok is 9|the 8 experts of topk_group 4"},
    {"shared experts below 0", "\"n_shared_experts\": 1", "\"n_shared_experts\": -1", TDM_CORRUPT,
     "n_shared_experts is -1"},

    /* numbers and switches */
    {"eps zero", "1e-06", "0", TDM_CORRUPT, "rms_norm_eps is 0"},
    {"eps negative", "1e-06", "-1e-06", TDM_CORRUPT, "rms_norm_eps is -1e-06"},
    {"eps absurd", "1e-06", "1e6", TDM_CORRUPT, "rms_norm_eps is 1000000.0"},
    {"eps is a string", "1e-06", "\"1e-06\"", TDM_CORRUPT, "rms_norm_eps is \"1e-06\"|a number"},
    {"routed_scaling_factor zero", "2.5", "0.0", TDM_CORRUPT, "routed_scaling_factor is 0.0"},
    {"norm_topk_prob is a number", "\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", TDM_CORRUPT,
     "norm_topk_prob is 1|true or false"},
    {"norm_topk_prob missing", "\"norm_topk_prob\": true,", "", TDM_CORRUPT, "norm_topk_prob is missing"},

    /* maths that is not computed */
    {"another activation", "\"silu\"", "\"gelu\"", TDM_UNSUPPORTED, "hidden_act is \"gelu\"|\"silu\""},
    {"activation is a number", "\"silu\"", "1", TDM_CORRUPT, "hidden_act is 1"},
    {"another scoring", "\"sigmoid\"", "\"softmax\"", TDM_UNSUPPORTED, "scoring_func is \"softmax\""},
    {"another choice of experts", "\"noaux_tc\"", "\"greedy\"", TDM_UNSUPPORTED, "topk_method is \"greedy\""},
    {"dense layers in between", "\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", TDM_UNSUPPORTED,
     "moe_layer_freq is 2"},
    {"attention bias", "\"attention_bias\": false", "\"attention_bias\": true", TDM_UNSUPPORTED,
     "attention_bias is true"},
    {"sparse attention", "{", "{\"index_topk\": 2048,", TDM_UNSUPPORTED, "index_topk is 2048"},
    {"clamped SwiGLU", "{", "{\"swiglu_limit\": 10.0,", TDM_UNSUPPORTED, "swiglu_limit is 10.0"},
    {"layer kinds", "{", "{\"layer_types\": [\"x\"],", TDM_UNSUPPORTED, "layer_types is an array of 1"},

    /* quantisation */
    {"another quantisation", "\"fp8\"", "\"awq\"", TDM_UNSUPPORTED, "quantization_config.quant_method is \"awq\""},
    {"quant_method missing", "\"quant_method\": \"fp8\",", "", TDM_CORRUPT,
     "quantization_config.quant_method is missing"},
    {"quantisation is a string", "\"quantization_config\": {", "\"quantization_config\": \"fp8\", \"x\": {",
     TDM_CORRUPT, "quantization_config is \"fp8\"|an object"},
    {"static activation scales", "\"dynamic\"", "\"static\"", TDM_UNSUPPORTED, "activation_scheme is \"static\""},
    {"another FP8", "\"e4m3\"", "\"e5m2\"", TDM_UNSUPPORTED, "fmt is \"e5m2\""},
    {"unknown scales", "\"e4m3\"", "\"e4m3\", \"scale_fmt\": \"int8\"", TDM_UNSUPPORTED, "scale_fmt is \"int8\""},
    {"another block", "[128, 128]", "[128, 64]", TDM_UNSUPPORTED, "weight_block_size is [128, 64]"},
    {"block of one extent", "[128, 128]", "[128]", TDM_CORRUPT, "weight_block_size is an array of 1"},
    {"block of floats", "[128, 128]", "[128, 128.0]", TDM_CORRUPT, "weight_block_size[1] is 128.0"},
    {"no block", ",\n    \"weight_block_size\": [128, 128]", "", TDM_UNSUPPORTED, "weight_block_size is missing"},

    /* rotary embedding */
    {"theta missing", "\"rope_theta\": 10000,", "", TDM_CORRUPT, "rope_theta is missing"},
    {"theta zero", "\"rope_theta\": 10000", "\"rope_theta\": 0", TDM_CORRUPT, "rope_theta is 0"},
    {"theta one", "\"rope_theta\": 10000", "\"rope_theta\": 1", TDM_CORRUPT, "rope_theta is 1"},
    {"theta a string", "\"rope_theta\": 10000", "\"rope_theta\": \"1e4\"", TDM_CORRUPT, "rope_theta is \"1e4\""},
    {"another scaling", "\"yarn\"", "\"linear\"", TDM_UNSUPPORTED, "rope_scaling.rope_type is \"linear\""},
    {"two scalings", "\"yarn\"", "\"yarn\", \"rope_type\": \"default\"", TDM_CORRUPT,
     "rope_scaling.rope_type is \"default\"|rope_scaling.type is \"yarn\""},
    {"scaling is a string", "\"rope_scaling\": {", "\"rope_scaling\": \"yarn\", \"x\": {", TDM_CORRUPT,
     "rope_scaling is \"yarn\"|an object"},
    {"factor below one", "\"factor\": 40", "\"factor\": 0.5", TDM_CORRUPT, "rope_scaling.factor is 0.5"},
    {"factor absurd", "\"factor\": 40", "\"factor\": 1e300", TDM_CORRUPT, "rope_scaling.factor is 1e+300"},
    {"factor is a string", "\"factor\": 40", "\"factor\": \"40\"", TDM_CORRUPT, "rope_scaling.factor is \"40\""},
    {"factor absent, context shorter than the original",
     "\"factor\": 40,\n    \"mscale\": 1.0,\n    \"mscale_all_dim\": 1.0,\n"
     "    \"original_max_position_embeddings\": 4096",
     "\"original_max_position_embeddings\": 327680", TDM_CORRUPT, "factor|0.5"},
    {"original length missing", "\"original_max_position_embeddings\": 4096,", "", TDM_CORRUPT,
     "rope_scaling.original_max_position_embeddings is missing"},
    {"original length zero", "\"original_max_position_embeddings\": 4096", "\"original_max_position_embeddings\": 0",
     TDM_CORRUPT, "original_max_position_embeddings is 0"},
    {"beta negative", "\"beta_fast\": 32", "\"beta_fast\": -1", TDM_CORRUPT, "beta_fast is -1"},
    {"betas reversed", "\"beta_fast\": 32", "\"beta_fast\": 0.5", TDM_CORRUPT, "beta_fast is 0.5|beta_slow 1"},
    {"mscale negative", "\"mscale\": 1.0", "\"mscale\": -1.0", TDM_CORRUPT, "mscale is -1.0"},
    {"attention_factor zero", "\"factor\": 40", "\"factor\": 40, \"attention_factor\": 0", TDM_CORRUPT,
     "attention_factor is 0"},
    {"truncate is a number", "\"factor\": 40", "\"factor\": 40, \"truncate\": 0", TDM_CORRUPT, "truncate is 0"},
    {"partial rotation", "\"factor\": 40", "\"factor\": 40, \"partial_rotary_factor\": 0.5", TDM_UNSUPPORTED,
     "rope_scaling.partial_rotary_factor is 0.5"},
};

Test(deepseek_v3_config, bad_configs) {
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  for (size_t i = 0; i < sizeof bad_cases / sizeof *bad_cases; i++) {
    const bad_case* b = &bad_cases[i];
    char* text = b->find ? fixture_replace(hub, b->find, b->replace) : strdup(b->replace);
    tdm_deepseek_v3_config c;
    fixture_expect_failure(b->name, parse(&f, text, &c), b->status, b->words);
    static const tdm_deepseek_v3_config zero;
    cr_expect_arr_eq(&c, &zero, sizeof c, "%s: a config after a failure", b->name);
    cr_expect_eq(fixture_count_log(&f, TDM_LOG_ERROR), 1, "%s: %d findings: %s", b->name,
                 fixture_count_log(&f, TDM_LOG_ERROR), tdm_last_error()->message);
    free(text);
  }
  free(hub);
  fixture_close(&f);
}

Test(deepseek_v3_config, cut_anywhere) {
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  const size_t n_bytes = strlen(hub);
  for (size_t n = 0; n + 2 < n_bytes; n++) {
    char* text = strndup(hub, n);
    tdm_deepseek_v3_config c;
    fixture_expect_failure("cut", parse(&f, text, &c), TDM_CORRUPT, "config.json");
    free(text);
  }
  free(hub);
  fixture_close(&f);
}

/* All findings are reported, not just the first; one that makes the file wrong outweighs one that is our limit. */
Test(deepseek_v3_config, all_findings) {
  fixture f;
  fixture_open(&f);
  tdm_deepseek_v3_config c;
  char* hub = fixture_read_source(HUB, NULL);
  char* one = fixture_replace(hub, "\"silu\"", "\"relu\"");
  char* two = fixture_replace(one, "\"hidden_size\": 7168", "\"hidden_size\": -5");
  char* three = fixture_replace(two, "\"factor\": 40", "\"factor\": []");
  fixture_expect_failure(
      "three findings", parse(&f, three, &c), TDM_CORRUPT,
      "config.json: 3 findings|hidden_size is -5|hidden_act is \"relu\"|rope_scaling.factor is an array");
  cr_assert_eq(fixture_count_log(&f, TDM_LOG_ERROR), 3);
  for (int i = 0; i < 3; i++) cr_expect_eq(strncmp(f.lines[i], "config.json: ", 13), 0, "%s", f.lines[i]);

  fixture_expect_failure(
      "nothing but the type", parse(&f, "{\"model_type\": \"deepseek_v3\"}", &c), TDM_CORRUPT,
      "vocab_size is missing|hidden_size is missing|q_lora_rank is missing|n_group is missing|"
      "topk_group is missing|rms_norm_eps is missing|norm_topk_prob is missing|rope_theta is missing");
  cr_expect_geq(fixture_count_log(&f, TDM_LOG_ERROR), 20);

  /* too much for one sentence: it says how much is left out */
  char text[32768];
  size_t length = (size_t)snprintf(text, sizeof text, "{\"model_type\": \"deepseek_v3\"");
  static const char* const keys[] = {"hidden_act",        "scoring_func",   "topk_method",     "moe_layer_freq",
                                     "attention_bias",    "sliding_window", "index_topk",      "index_n_heads",
                                     "swiglu_limit",      "hc_mult",        "o_groups",        "o_lora_rank",
                                     "compress_ratios",   "layer_types",    "mlp_layer_types", "num_hash_layers",
                                     "num_hidden_layers", "hidden_size",    "expert_dtype",    "n_group"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    length += (size_t)snprintf(text + length, sizeof text - length, ", \"%s\": \"%0300d\"", keys[i], 0);
  snprintf(text + length, sizeof text - length, "}");
  fixture_expect_failure("long values", parse(&f, text, &c), TDM_CORRUPT, "findings: |more, see the log");
  free(hub);
  free(one);
  free(two);
  free(three);
  fixture_close(&f);
}

Test(deepseek_v3_config, many_unknown_fields) {
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  char fields[4096];
  size_t length = (size_t)snprintf(fields, sizeof fields, "{");
  for (int i = 0; i < 100; i++)
    length += (size_t)snprintf(fields + length, sizeof fields - length, "\"field_%d\": %d, ", i, i);
  char* text = fixture_replace(hub, "{", fields);
  tdm_deepseek_v3_config c;
  cr_assert_eq(parse(&f, text, &c), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(f.n_lines, 17, "%d lines", f.n_lines);
  cr_expect_not_null(strstr(f.lines[16], "84 more fields"), "%s", f.lines[16]);
  free(text);
  free(hub);
  fixture_close(&f);
}

Test(deepseek_v3_config, files) {
  fixture f;
  fixture_open(&f);
  tdm_deepseek_v3_config c;
  fixture_expect_failure("no file", tdm_deepseek_v3_config_read(f.runtime, fixture_path(&f, "none"), &c), TDM_IO,
                         "/none");
  cr_expect_eq(tdm_last_error()->raw_code, ENOENT);
  fixture_expect_failure("no config.json in it", tdm_deepseek_v3_config_read(f.runtime, f.directory, &c), TDM_IO,
                         "/config.json|No such file");
  cr_expect_eq(tdm_last_error()->raw_code, ENOENT);
  fixture_write_text(&f, "config.json", "");
  fixture_expect_failure("empty file", tdm_deepseek_v3_config_read(f.runtime, f.directory, &c), TDM_CORRUPT,
                         "/config.json: empty");
  fixture_expect_failure("device", tdm_deepseek_v3_config_read(f.runtime, "/dev/zero", &c), TDM_IO, "/dev/zero");
  char* big = malloc((1 << 20) + 2);
  memset(big, ' ', (1 << 20) + 1);
  big[(1 << 20) + 1] = '\0';
  fixture_write_text(&f, "config.json", big);
  fixture_expect_failure("a megabyte", tdm_deepseek_v3_config_read(f.runtime, f.directory, &c), TDM_CORRUPT,
                         "1048577 bytes|1048576");
  free(big);

  static const char call[] = "tdm_deepseek_v3_config_read";
  fixture_expect_failure("no runtime", tdm_deepseek_v3_config_read(NULL, "x", &c), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("no path", tdm_deepseek_v3_config_read(f.runtime, NULL, &c), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("empty path", tdm_deepseek_v3_config_read(f.runtime, "", &c), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("no out", tdm_deepseek_v3_config_read(f.runtime, "x", NULL), TDM_INVALID_ARGUMENT, call);
  fixture_close(&f);
}

/* ---- no memory -------------------------------------------------------------------------------------------------- */

Test(deepseek_v3_config, out_of_memory) {
  fixture f;
  fixture_open(&f);
  char* hub = fixture_read_source(HUB, NULL);
  fixture_write_text(&f, "config.json", hub);
  free(hub);
  test_heap* json = test_heap_watch_json();
  test_heap* heaps[] = {&f.heap, json};
  const int64_t least[] = {1, 200};
  for (int h = 0; h < 2; h++) {
    int64_t n = 1;
    for (;; n++) {
      const int64_t before = f.heap.outstanding;
      *json = (test_heap){0};
      heaps[h]->calls = 0;
      heaps[h]->fail_from = n; /* and all after it */
      tdm_deepseek_v3_config c;
      const tdm_status status = tdm_deepseek_v3_config_read(f.runtime, f.directory, &c);
      const bool reached = heaps[h]->calls >= n;
      heaps[h]->fail_from = 0;
      cr_assert_eq(f.heap.outstanding, before, "allocation %lld: a leak", (long long)n);
      cr_assert_eq(json->outstanding, 0, "allocation %lld: a leak of JSON", (long long)n);
      cr_assert_eq(status, reached ? TDM_OUT_OF_MEMORY : TDM_OK, "allocation %lld: %s: %s", (long long)n,
                   tdm_status_name(status), tdm_last_error()->message);
      if (!reached) break;
    }
    cr_expect_gt(n, least[h]);
  }
  fixture_close(&f);
}
