/* What a model refuses, and that nothing is lost when it does. */

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"
#include "tests/support/rig.h"
#include "variant.h"

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

static void expect_refused(const char* what, const char* directory, tdm_status status, const char* words,
                           int n_errors) {
  golden g;
  golden_open_runtime(&g);
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  tdm_model* model = (tdm_model*)&g;
  test_expect_failure(what, tdm_model_load(g.runtime, directory, &config, &model), status, words);
  cr_assert_null(model);
  cr_assert_geq(g.n_errors, n_errors, "%s: %d lines in the log", what, g.n_errors);
  golden_close(&g);
}

static bool several_wrong(variant_tensor* tensor) {
  if (strcmp(tensor->name, "model.norm.weight") == 0) return false; /* missing */
  if (strcmp(tensor->name, "model.layers.1.mlp.experts.7.up_proj.weight") == 0)
    tensor->shape[0] = 64, tensor->shape[1] = 768;
  if (strcmp(tensor->name, "model.layers.0.self_attn.q_b_proj.weight") == 0) strcpy(tensor->dtype, "I8");
  if (strcmp(tensor->name, "model.layers.0.self_attn.o_proj.weight_scale_inv") == 0) return false;
  if (strcmp(tensor->name, "lm_head.weight") == 0) tensor->rank = 1, tensor->shape[0] *= tensor->shape[1];
  return true;
}

static bool nan_in_expert(variant_tensor* tensor) {
  if (strcmp(tensor->name, "model.layers.1.mlp.experts.3.down_proj.weight") == 0) ((uint8_t*)tensor->data)[777] = 0xff;
  return true;
}

static bool nan_scale(variant_tensor* tensor) {
  const float nan_value = NAN;
  if (strcmp(tensor->name, "model.layers.0.mlp.gate_proj.weight_scale_inv") == 0)
    memcpy((char*)tensor->data + 20, &nan_value, sizeof nan_value);
  return true;
}

static bool infinite_norm(variant_tensor* tensor) {
  const uint16_t infinity = 0x7f80;
  if (strcmp(tensor->name, "model.layers.1.input_layernorm.weight") == 0)
    memcpy((char*)tensor->data + 10, &infinity, 2);
  return true;
}

static bool mixed_experts(variant_tensor* tensor) {
  if (strstr(tensor->name, "layers.1.mlp.experts.5.") == NULL) return true;
  if (strstr(tensor->name, "_scale_inv")) return false;
  tensor->data = realloc(tensor->data, 2 * tensor->bytes);
  memset(tensor->data, 0, 2 * tensor->bytes);
  tensor->bytes *= 2;
  strcpy(tensor->dtype, "BF16");
  return true;
}

Test(model_errors, checkpoints_are_refused_with_all_findings) {
  static uint8_t bytes[8];
  static const variant_tensor more[] = {
      {.name = "model.layers.0.self_attn.extra.weight",
       .dtype = "BF16",
       .rank = 1,
       .shape = {4},
       .data = bytes,
       .bytes = 8},
      {.name = "model.layers.9.mlp.gate.weight", .dtype = "BF16", .rank = 1, .shape = {4}, .data = bytes, .bytes = 8}};
  static const struct {
    const char* name;
    variant_config variant;
    tdm_status status;
    const char* words;
    int n_errors;
  } cases[] = {
      {"several",
       {.edit = several_wrong},
       TDM_CORRUPT,
       "5 findings|model.norm.weight [384] is missing|experts.7.up_proj.weight has shape [64, 768], must be [128, "
       "384]|q_b_proj.weight has dtype i8|o_proj.weight_scale_inv [3, 4] is missing|lm_head.weight has shape [98304], "
       "must be "
       "[256, 384]",
       5},
      {"extra",
       {.more = more, .n_more = 2},
       TDM_CORRUPT,
       "2 findings|self_attn.extra.weight is not part of this model|layers.9.mlp.gate.weight is not part",
       2},
      {"NaN weight", {.edit = nan_in_expert}, TDM_CORRUPT, "experts.3.down_proj.weight: element 777 is NaN", 0},
      {"NaN scale", {.edit = nan_scale}, TDM_CORRUPT, "gate_proj.weight_scale_inv: element 5 is NaN", 0},
      {"infinite norm", {.edit = infinite_norm}, TDM_CORRUPT, "input_layernorm.weight: element 5 is infinite", 0},
      {"experts of two dtypes",
       {.edit = mixed_experts},
       TDM_CORRUPT,
       "experts.5.gate_proj.weight has dtype bf16|joined with it have e4m3",
       3},
      {"other hidden size",
       {.config_find = "\"hidden_size\": 384", .config_put = "\"hidden_size\": 512"},
       TDM_CORRUPT,
       "embed_tokens.weight has shape [256, 384], must be [256, 512]",
       20},
      {"more layers",
       {.config_find = "\"num_hidden_layers\": 2", .config_put = "\"num_hidden_layers\": 3"},
       TDM_CORRUPT,
       "layers.2.input_layernorm.weight [384] is missing",
       20},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    expect_refused(cases[i].name, variant_make(&cases[i].variant), cases[i].status, cases[i].words, cases[i].n_errors);
  expect_refused("no folder", "/nonexistent", TDM_IO, "/nonexistent", 0);
  variant_remove();
}

/* A prediction layer and layers that were not asked for are no findings. */
Test(model_errors, unused_layers_are_ignored) {
  static uint8_t bytes[8];
  static const variant_tensor more[] = {
      {.name = "model.layers.2.enorm.weight", .dtype = "BF16", .rank = 1, .shape = {4}, .data = bytes, .bytes = 8},
      {.name = "model.layers.0.self_attn.rotary_emb.inv_freq",
       .dtype = "F32",
       .rank = 1,
       .shape = {2},
       .data = bytes,
       .bytes = 8}};
  const variant_config variant = {.more = more, .n_more = 2};
  golden g;
  tdm_model_config config = golden_config(TDM_ACTIVATIONS_FLOAT32);
  config.layers = 1;
  golden_open(&g, variant_make(&variant), &config);
  tdm_model_info info = {.size = sizeof info};
  cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
  cr_assert_eq(info.layers, 1);
  float* logits = golden_run(&g, 1, 5, 1);
  free(logits);
  golden_close(&g);
  variant_remove();
}

/* ---- configs and calls ------------------------------------------------------------------------------------------ */

static void tokens_0(tdm_model_config* c) {
  c->max_tokens = 0;
}
static void tokens_many(tdm_model_config* c) {
  c->max_tokens = 1 << 21;
}
static void seqs_0(tdm_model_config* c) {
  c->max_seqs = 0;
}
static void context_long(tdm_model_config* c) {
  c->max_context = 4097;
}
static void context_negative(tdm_model_config* c) {
  c->max_context = -1;
}
static void pages_negative(tdm_model_config* c) {
  c->cache_pages = -5;
}
static void threshold_0(tdm_model_config* c) {
  c->prefill_threshold = 0;
}
static void layers_3(tdm_model_config* c) {
  c->layers = 3;
}
static void activations_9(tdm_model_config* c) {
  c->activations = (tdm_activations)9;
}
static void order_0(tdm_model_config* c) {
  c->order = (tdm_order)0;
}
static void strategy_0(tdm_model_config* c) {
  c->strategy = (tdm_strategy)0;
}
static void moe_path_5(tdm_model_config* c) {
  c->moe_path = (tdm_moe_path)5;
}
static void signals_alone(tdm_model_config* c) {
  c->wait_form = TDM_WAIT_SIGNAL;
}
static void side_sms_0(tdm_model_config* c) {
  c->side_sms = 0;
}
static const int64_t falling_buckets[] = {8, 4, 96}, short_buckets[] = {8, 64};
static void buckets_fall(tdm_model_config* c) {
  c->buckets = falling_buckets;
  c->n_buckets = 3;
}
static void buckets_end_early(tdm_model_config* c) {
  c->buckets = short_buckets;
  c->n_buckets = 2;
}
static void buckets_none(tdm_model_config* c) {
  c->buckets = short_buckets;
}
static void size_1(tdm_model_config* c) {
  c->size = 1;
}

Test(model_errors, configs_are_refused) {
  static const struct {
    const char* words;
    void (*change)(tdm_model_config* config);
  } cases[] = {{"max_tokens is 0", tokens_0},
               {"max_tokens is 2097152", tokens_many},
               {"max_seqs is 0", seqs_0},
               {"max_context is 4097", context_long},
               {"max_context is -1", context_negative},
               {"cache_pages is -5", pages_negative},
               {"prefill_threshold is 0", threshold_0},
               {"layers is 3", layers_3},
               {"activations is 9", activations_9},
               {"order is 0", order_0},
               {"strategy is 0", strategy_0},
               {"moe_path is 5", moe_path_5},
               {"TDM_WAIT_SIGNAL with TDM_STRATEGY_AUTO", signals_alone},
               {"side_sms is 0", side_sms_0},
               {"buckets[1] is 4", buckets_fall},
               {"buckets is 64, must be max_tokens, 96", buckets_end_early},
               {"n_buckets is 0", buckets_none},
               {"tdm_model_config.size is 1", size_1}};
  golden g;
  golden_open_runtime(&g);
  tdm_model* model;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
    cases[i].change(&config);
    test_expect_failure(cases[i].words, tdm_model_load(g.runtime, GOLDEN_V3, &config, &model), TDM_INVALID_ARGUMENT,
                        cases[i].words);
  }
  test_expect_failure("NULL", tdm_model_load(g.runtime, NULL, NULL, &model), TDM_INVALID_ARGUMENT, "directory");
  golden_close(&g);
}

Test(model_errors, forward_calls_are_refused_and_change_nothing) {
  golden g, other;
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  golden_open(&g, NULL, &config);
  golden_open(&other, NULL, &config);
  tdm_sequence *a = golden_sequence(&g), *b = golden_sequence(&g), *foreign = golden_sequence(&other);
  static const int32_t good[300] = {1, 2, 3}, low[] = {1, -1}, high[] = {255, 256};
  (void)golden_forward(&g, &(tdm_batch_item){.sequence = a, .tokens = good, .n_tokens = 70}, NULL);
  const tdm_batch_item fine = {.sequence = b, .tokens = good, .n_tokens = 3};
  const struct {
    const char* words;
    tdm_batch_item items[5];
    int64_t n_items;
  } cases[] = {
      {"0 items", {fine}, 0},
      {"-1 items", {fine}, -1},
      {"5 items|takes 1 to 4", {fine, fine, fine, fine, fine}, 5},
      {"items[1].sequence must not be NULL", {fine, {.tokens = good, .n_tokens = 1}}, 2},
      {"items[0].sequence belongs to another model", {{.sequence = foreign, .tokens = good, .n_tokens = 1}}, 1},
      {"items[1].sequence is in the batch twice", {fine, fine}, 2},
      {"items[0].n_tokens is 0", {{.sequence = a, .tokens = good}}, 1},
      {"items[0].n_tokens is -3", {{.sequence = a, .tokens = good, .n_tokens = -3}}, 1},
      {"brings 97 tokens after 0|takes 96", {{.sequence = a, .tokens = good, .n_tokens = 97}}, 1},
      {"brings 94 tokens after 3|takes 96", {fine, {.sequence = a, .tokens = good, .n_tokens = 94}}, 2},
      {"items[0].tokens must not be NULL", {{.sequence = a, .n_tokens = 1}}, 1},
      {"items[0].tokens[1] is -1", {{.sequence = a, .tokens = low, .n_tokens = 2}}, 1},
      {"items[0].tokens[1] is 256, must be 0 to 255", {{.sequence = a, .tokens = high, .n_tokens = 2}}, 1},
      {"items[0].logits is 4", {{.sequence = a, .tokens = good, .n_tokens = 1, .logits = (tdm_logits)4}}, 1},
      {"items[0].temperature is -1", {{.sequence = a, .tokens = good, .n_tokens = 1, .temperature = -1}}, 1},
      {"items[0].temperature is nan", {{.sequence = a, .tokens = good, .n_tokens = 1, .temperature = NAN}}, 1},
      {"items[0].top_p is 1.5", {{.sequence = a, .tokens = good, .n_tokens = 1, .top_p = 1.5f}}, 1},
  };
  tdm_model_info before = {.size = sizeof before}, after = {.size = sizeof after};
  cr_assert_eq(tdm_model_get_info(g.model, &before), TDM_OK);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tdm_forward_result result = {.size = sizeof result};
    test_expect_failure(cases[i].words, tdm_model_forward(g.model, cases[i].items, cases[i].n_items, &result),
                        TDM_INVALID_ARGUMENT, cases[i].words);
  }
  tdm_forward_result result = {.size = 3};
  test_expect_failure("size", tdm_model_forward(g.model, &fine, 1, &result), TDM_INVALID_ARGUMENT,
                      "tdm_forward_result.size is 3");
  cr_assert_eq(tdm_model_get_info(g.model, &after), TDM_OK);
  cr_assert_eq(before.cache_pages_free, after.cache_pages_free);
  cr_assert_eq(tdm_sequence_length(a), 70);
  cr_assert_eq(tdm_sequence_length(b), 0);

  /* The context's end: 256 tokens fit exactly, one more does not. */
  (void)golden_forward(&g, &(tdm_batch_item){.sequence = a, .tokens = good, .n_tokens = 96, .logits = TDM_LOGITS_NONE},
                       NULL);
  (void)golden_forward(&g, &(tdm_batch_item){.sequence = a, .tokens = good, .n_tokens = 90}, NULL);
  result.size = sizeof result;
  test_expect_failure(
      "context",
      tdm_model_forward(g.model, &(tdm_batch_item){.sequence = a, .tokens = good, .n_tokens = 1}, 1, &result),
      TDM_INVALID_ARGUMENT, "adds 1 tokens to a sequence of 256|max_context is 256");

  static float hidden[96 * GOLDEN_HIDDEN];
  test_expect_failure("range", tdm_model_forward_layers(g.model, &fine, 1, 1, 2, hidden, hidden), TDM_INVALID_ARGUMENT,
                      "layers 1 .. 2 of a model with 2");
  test_expect_failure("range", tdm_model_forward_layers(g.model, &fine, 1, -1, 1, hidden, hidden), TDM_INVALID_ARGUMENT,
                      "layers -1");
  test_expect_failure("range", tdm_model_forward_layers(g.model, &fine, 1, 0, 0, hidden, hidden), TDM_INVALID_ARGUMENT,
                      "layers 0 .. -1");
  test_expect_failure("NULL", tdm_model_forward_layers(g.model, &fine, 1, 0, 1, NULL, hidden), TDM_INVALID_ARGUMENT,
                      "hidden_in");
  tdm_view view;
  test_expect_failure("tap", tdm_model_tap(g.model, "layer0.nothing", &view), TDM_INVALID_ARGUMENT, "layer0.nothing");
  test_expect_failure("tap", tdm_model_tap(g.model, "layer5.in", &view), TDM_INVALID_ARGUMENT, "layer5.in");
  tdm_program* program;
  test_expect_failure("before forward", tdm_model_program(other.model, &program), TDM_INVALID_STATE, "no forward call");
  test_expect_failure("before forward", tdm_model_tap(other.model, "layer0.in", &view), TDM_INVALID_STATE,
                      "before the first");
  test_expect_failure("sequences alive", tdm_model_destroy(other.model), TDM_INVALID_STATE, "1 of its sequences");
  tdm_sequence_destroy(a);
  tdm_sequence_destroy(b);
  tdm_sequence_destroy(foreign);
  golden_close(&g);
  golden_close(&other);
}

/* 12 pages: when they are gone the call says so, nothing changes, and after one sequence has left it goes through. */
Test(model_errors, a_full_cache_is_no_loss) {
  golden g;
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  golden_open(&g, NULL, &config);
  static const int32_t tokens[96] = {5, 6, 7};
  static float first[GOLDEN_VOCAB], again[GOLDEN_VOCAB];
  tdm_sequence *a = golden_sequence(&g), *b = golden_sequence(&g), *c = golden_sequence(&g), *d = golden_sequence(&g);
  const tdm_sequence* const full[] = {a, b, c};
  for (int i = 0; i < 3; i++)
    for (int call = 0; call < 3; call++) {
      const tdm_batch_item item = {.sequence = (tdm_sequence*)(uintptr_t)full[i],
                                   .tokens = tokens,
                                   .n_tokens = call == 2 ? 64 : 96,
                                   .logits = TDM_LOGITS_NONE};
      (void)golden_forward(&g, &item, NULL);
    }
  tdm_model_info info = {.size = sizeof info};
  cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
  cr_assert_eq(info.cache_pages_free, 0);
  const tdm_batch_item wanted[] = {{.sequence = d, .tokens = tokens, .n_tokens = 65}};
  tdm_forward_result result = {.size = sizeof result};
  test_expect_failure("full", tdm_model_forward(g.model, wanted, 1, &result), TDM_OUT_OF_MEMORY,
                      "the cache is full|2 more pages are needed, 0 of 12 are free");
  cr_assert_eq(tdm_sequence_length(d), 0);
  tdm_sequence_destroy(b);
  (void)golden_forward(&g, wanted, first);
  cr_assert_eq(tdm_sequence_truncate(d, 0), TDM_OK);
  (void)golden_forward(&g, wanted, again);
  cr_assert_arr_eq(first, again, sizeof first);
  tdm_sequence_destroy(a);
  tdm_sequence_destroy(c);
  tdm_sequence_destroy(d);
  cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
  cr_assert_eq(info.cache_pages_free, 12);
  golden_close(&g);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Fails the n-th allocation of loading for every n. The weights' are the slow ones, so the model is one layer with few
 * buckets. */
Test(model_errors, loading_survives_every_allocation_failure, .timeout = 600) {
  tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  config.max_tokens = 2;
  config.layers = 1;
  golden g;
  golden_open_runtime(&g);
  int64_t n = 1;
  for (;; n++) {
    const int64_t outstanding = g.heap.outstanding;
    test_heap_fail_at(&g.heap, n);
    tdm_model* model;
    const tdm_status status = tdm_model_load(g.runtime, GOLDEN_V3, &config, &model);
    test_heap_fail_at(&g.heap, 0);
    cr_assert_eq(tdm_model_destroy(model), TDM_OK);
    if (n > 2) /* the first runs make the lanes, which stay */
      cr_assert_leq(g.heap.outstanding - outstanding, 2, "failure %d leaks", (int)n);
    if (status == TDM_OK) break;
    cr_assert_eq(status, TDM_OUT_OF_MEMORY, "failure %d: %s", (int)n, tdm_last_error()->message);
  }
  cr_assert_gt(n, 200, "the failures were not met");
  golden_close(&g);
}

/* A forward call whose bucket cannot be built leaves sequences and pages as they were, and the next one works. */
Test(model_errors, forward_survives_every_allocation_failure) {
  golden g;
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  golden_open(&g, NULL, &config);
  tdm_model_info before = {.size = sizeof before}, after = {.size = sizeof after};
  float* expected = golden_run(&g, 1, 5, 1);
  cr_assert_eq(tdm_model_get_info(g.model, &before), TDM_OK);
  int64_t failures = 0;
  for (int64_t n = 1;; n += 7) { /* bucket 24 is built here for the first time */
    tdm_sequence* sequence = golden_sequence(&g);
    const tdm_batch_item item = {.sequence = sequence, .tokens = g.tokens[2], .n_tokens = 20};
    tdm_forward_result result = {.size = sizeof result};
    test_heap_fail_at(&g.heap, n);
    const tdm_status status = tdm_model_forward(g.model, &item, 1, &result);
    test_heap_fail_at(&g.heap, 0);
    cr_assert_eq(tdm_sequence_length(sequence), status == TDM_OK ? 20 : 0);
    tdm_sequence_destroy(sequence);
    cr_assert_eq(tdm_model_get_info(g.model, &after), TDM_OK);
    cr_assert_eq(before.cache_pages_free, after.cache_pages_free);
    if (status == TDM_OK) break;
    cr_assert_eq(status, TDM_OUT_OF_MEMORY);
    failures++;
  }
  cr_assert_gt(failures, 20, "the failures were not met");
  float* logits = golden_run(&g, 1, 5, 1);
  cr_assert_arr_eq(logits, expected, 5 * GOLDEN_VOCAB * sizeof *logits);
  free(logits);
  free(expected);
  for (int64_t n = 1; n <= 2; n++) {
    tdm_sequence* sequence;
    test_heap_fail_at(&g.heap, n);
    cr_assert_eq(tdm_sequence_create(g.model, &sequence), TDM_OUT_OF_MEMORY);
    cr_assert_null(sequence);
    test_heap_fail_at(&g.heap, 0);
  }
  golden_close(&g);
}
