#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/program.h"
#include "tests/cuda/cuda_rig.h"
#include "tests/support/rig.h"

/* The golden model on the fake device: everything but the numbers. */

#define GOLDEN_V3 TANDEM_SOURCE_DIR "/tests/golden/deepseek_v3"

static tdm_model_config small_config(tdm_strategy strategy) {
  tdm_model_config config;
  cr_assert_eq(tdm_model_config_init(&config, sizeof config), TDM_OK);
  config.max_tokens = 64;
  config.max_seqs = 4;
  config.max_context = 256;
  config.cache_pages = 12;
  config.strategy = strategy;
  return config;
}

static tdm_model* load(cuda_rig* rig, const tdm_model_config* config) {
  tdm_model* model;
  cr_assert_eq(tdm_model_load(rig->runtime, GOLDEN_V3, config, &model), TDM_OK, "%s", tdm_last_error()->message);
  return model;
}

static tdm_sequence* new_sequence(tdm_model* model) {
  tdm_sequence* sequence;
  cr_assert_eq(tdm_sequence_create(model, &sequence), TDM_OK);
  return sequence;
}

static tdm_status forward(tdm_model* model, tdm_sequence* sequence, int64_t n_tokens) {
  static const int32_t tokens[64] = {5, 3, 9};
  tdm_forward_result result = {.size = sizeof result};
  const tdm_batch_item item = {.sequence = sequence, .tokens = tokens, .n_tokens = n_tokens};
  return tdm_model_forward(model, &item, 1, &result);
}

static tdm_program* last_program(const tdm_model* model) {
  tdm_program* program;
  cr_assert_eq(tdm_model_program(model, &program), TDM_OK);
  return program;
}

static const struct {
  const char* name;
  tdm_strategy strategy;
  int lanes;
  struct {
    const char* name;
    int32_t requested, granted;
  } lane[2];
} strategies[] = {{"serial", TDM_STRATEGY_SERIAL, 1, {{"main", 0, 132}}},
                  {"soft", TDM_STRATEGY_SOFT, 2, {{"main", 0, 132}, {"side.soft12", 12, 12}}},
                  {"split", TDM_STRATEGY_SPLIT, 2, {{"main.soft120", 120, 120}, {"side.soft12", 12, 12}}},
                  {"green", TDM_STRATEGY_GREEN, 2, {{"side.green12", 12, 16}, {"main.green12", 116, 116}}}};

/* Every step of prefill and decode is launched on its lane with the grid for the lane's SMs, ordered by the waits. */
Test(model, issues_every_step) {
  for (size_t i = 0; i < sizeof strategies / sizeof *strategies; i++)
    for (int graphs = 0; graphs < 2; graphs++) {
      cuda_rig rig;
      cuda_rig_open(&rig);
      tdm_model_config config = small_config(strategies[i].strategy);
      config.side_sms = 12;
      config.use_graphs = graphs;
      tdm_model* model = load(&rig, &config);
      tdm_sequence* sequence = new_sequence(model);
      static const int64_t counts[] = {29, 1, 3, 1};
      const tdm_cuda* cuda = tdm_cuda_of(rig.runtime);
      for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        fake_cuda_forget();
        cr_assert_eq(forward(model, sequence, counts[k]), TDM_OK, "%s", tdm_last_error()->message);
        cuda_issue issue = {.origin = graphs ? cuda->capture : cuda->stream};
        if (graphs && k < 3) { /* first use of a bucket */
          issue.ops = fake_cuda_captured(&issue.end);
          cuda_rig_judge(strategies[i].name, last_program(model), &issue);
        }
        const fake_op* ops = fake_cuda_ops(&issue.end);
        int launches = 0, replays = 0;
        for (int op = 0; op < issue.end; op++) {
          launches += ops[op].kind == FAKE_LAUNCH;
          replays += ops[op].kind == FAKE_GRAPH;
        }
        cr_assert_eq(replays, graphs, "%s: %d replays", strategies[i].name, replays);
        if (graphs) {
          cr_assert_eq(launches, 0);
        } else { /* between the batch's upload and the reading of tokens */
          issue.ops = ops;
          cuda_rig_judge(strategies[i].name, last_program(model), &issue);
        }
      }
      tdm_runtime_info device = {.size = sizeof device};
      cr_assert_eq(tdm_runtime_get_info(rig.runtime, &device), TDM_OK);
      cr_assert_eq(device.lanes, strategies[i].lanes);
      for (int lane = 0; lane < strategies[i].lanes; lane++) {
        const tdm_lane_info* info = &rig.runtime->lanes[lane]->info;
        cr_assert_str_eq(info->name, strategies[i].lane[lane].name);
        cr_assert_eq(info->requested_sms, strategies[i].lane[lane].requested, "%s", info->name);
        cr_assert_eq(info->granted_sms, strategies[i].lane[lane].granted, "%s", info->name);
      }
      tdm_sequence_destroy(sequence);
      cr_assert_eq(tdm_model_destroy(model), TDM_OK);
      cuda_rig_close(&rig);
    }
}

/* ---- the ladder ------------------------------------------------------------------------------------------------- */

static int n_warnings;

static void count_warnings(void* ctx, tdm_log_level level, const char* line) {
  (void)ctx;
  n_warnings += level == TDM_LOG_WARNING && strstr(line, "soft lanes instead of green ones") != NULL;
}

Test(model, steps_down_to_soft_lanes) {
  static const struct {
    const char* name;
    int32_t side_sms; /* 132 and more cannot leave a partition for the main lane */
    const char* fails;
    const char* words;
  } cases[] = {{"more SMs than there are", 140, NULL, "140"},
               {"all SMs", 132, NULL, "side_sms 132 takes all 132 SMs"},
               {"green contexts fail", 16, "cuGreenCtxCreate", "cuGreenCtxCreate"},
               {"so do their streams", 16, "cuGreenCtxStreamCreate", "cuGreenCtxStreamCreate"},
               {"the device cannot be split", 16, "cuDevSmResourceSplitByCount", "cuDevSmResourceSplitByCount"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int strict = 0; strict < 2; strict++) {
      cuda_rig rig = {.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
      tdm_runtime_config runtime_config = cuda_rig_config(&rig);
      runtime_config.log = count_warnings;
      n_warnings = 0;
      cr_assert_eq(tdm_runtime_create(&runtime_config, &rig.runtime), TDM_OK);
      tdm_model_config config = small_config(TDM_STRATEGY_GREEN);
      config.side_sms = cases[i].side_sms;
      config.strict = strict;
      tdm_model* model;
      if (cases[i].fails)
        fake_cuda_fail(&(fake_fault){.name = cases[i].fails, .nth = 1, .result = CUDA_ERROR_NOT_SUPPORTED});
      const tdm_status status = tdm_model_load(rig.runtime, GOLDEN_V3, &config, &model);
      if (strict) {
        cr_assert(status != TDM_OK && !model, "%s", cases[i].name);
        cr_assert(strstr(tdm_last_error()->message, cases[i].words), "%s: %s", cases[i].name,
                  tdm_last_error()->message);
      } else if (cases[i].side_sms > 132) { /* a soft lane of that size cannot be had either */
        test_expect_failure(cases[i].name, status, TDM_INVALID_ARGUMENT, "140|132");
      } else {
        cr_assert_eq(status, TDM_OK, "%s: %s", cases[i].name, tdm_last_error()->message);
        tdm_model_info info = {.size = sizeof info};
        cr_assert_eq(tdm_model_get_info(model, &info), TDM_OK);
        cr_assert_eq(info.strategy, TDM_STRATEGY_SOFT);
        cr_assert(strstr(info.strategy_reason, cases[i].words), "%s: %s", cases[i].name, info.strategy_reason);
        cr_assert_eq(n_warnings, 1);
        tdm_sequence* sequence = new_sequence(model);
        cr_assert_eq(forward(model, sequence, 20), TDM_OK, "%s", tdm_last_error()->message);
        tdm_sequence_destroy(sequence);
        cr_assert_eq(tdm_model_destroy(model), TDM_OK);
      }
      cuda_rig_close(&rig);
    }
}

/* Every kind of lanes with side lanes of three sizes, each a partition of its own; where the driver gives no green ones
 * they are left out, and the model still gets its entry. */
Test(model, tunes_over_partitions) {
  static const struct {
    const char* fails;
    int tried, greens; /* at least; exactly */
  } cases[] = {{NULL, 6, 6}, {"cuGreenCtxCreate", 5, 0}};
  static const int64_t buckets[] = {32};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cuda_rig rig;
    cuda_rig_open(&rig);
    tdm_model_config config = small_config(TDM_STRATEGY_AUTO);
    config.buckets = buckets;
    config.n_buckets = 1;
    config.max_tokens = 32;
    tdm_model* model = load(&rig, &config);
    tdm_tuning* tuning;
    tdm_tune_config tune;
    tdm_tune_result result = {.size = sizeof result};
    cr_assert_eq(tdm_tuning_create(rig.runtime, &tuning), TDM_OK);
    cr_assert_eq(tdm_tune_config_init(&tune, sizeof tune), TDM_OK);
    tune.prefill = false;
    if (cases[i].fails)
      fake_cuda_fail(
          &(fake_fault){.name = cases[i].fails, .nth = 1, .onwards = true, .result = CUDA_ERROR_NOT_SUPPORTED});
    cr_assert_eq(tdm_model_tune(model, &tune, tuning, &result), TDM_OK, "%s", tdm_last_error()->message);
    tdm_tuning_entry entry = {.size = sizeof entry};
    cr_assert_eq(tdm_tuning_get(tuning, 0, &entry), TDM_OK);
    test_expect_words("device", entry.device, "SMs, driver");
    test_expect_words("library", entry.library, "tandem|kernels");
    cr_assert_geq(entry.tried, cases[i].tried, "%d ways", entry.tried);
    const int greens = fake_cuda_live().greens;
    cr_assert(cases[i].greens ? greens == 2 || greens == 6 : greens == 0, "%d green contexts", greens);
    tdm_sequence* sequence = new_sequence(model);
    cr_assert_eq(forward(model, sequence, 20), TDM_OK, "%s", tdm_last_error()->message);
    tdm_sequence_destroy(sequence);
    tdm_tuning_destroy(tuning);
    cr_assert_eq(tdm_model_destroy(model), TDM_OK);
    cuda_rig_close(&rig);
  }
}

/* A graph of layers in a way of the caller's takes that way or fails: no ladder. */
Test(model, captured_layers_are_strict) {
  static const tdm_choice green = {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 8, TDM_MOE_PATH_DENSE},
                          wide = {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 132, TDM_MOE_PATH_DENSE},
                          mixed = {TDM_STRATEGY_SOFT, TDM_WAIT_SIGNAL, 8, TDM_MOE_PATH_DENSE};
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_model_config config = small_config(TDM_STRATEGY_SOFT);
  tdm_model* model = load(&rig, &config);
  tdm_sequence* sequence = new_sequence(model);
  tdm_graph* graph;
  tdm_program_info info = {.size = sizeof info};
  cr_assert_eq(forward(model, sequence, 20), TDM_OK);
  test_expect_failure("all SMs", tdm_model_capture_layers(model, 0, 2, 32, true, &wide, &graph), TDM_UNSUPPORTED,
                      "side_sms 132 takes all 132 SMs");
  test_expect_failure("soft signals", tdm_model_capture_layers(model, 0, 2, 32, true, &mixed, &graph), TDM_UNSUPPORTED,
                      "not green");
  cr_assert_null(graph);
  cr_assert_eq(tdm_model_capture_layers(model, 1, 1, 32, true, &green, &graph), TDM_OK, "%s",
               tdm_last_error()->message);
  cr_assert_eq(tdm_program_get_info(tdm_graph_program(graph), &info), TDM_OK);
  cr_assert_eq(info.wait_form, TDM_WAIT_SIGNAL);
  cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  tdm_graph_destroy(graph);
  tdm_sequence_destroy(sequence);
  cr_assert_eq(tdm_model_destroy(model), TDM_OK);
  cuda_rig_close(&rig);
}

Test(model, refuses_float32) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_model_config config = small_config(TDM_STRATEGY_SOFT);
  config.activations = TDM_ACTIVATIONS_FLOAT32;
  tdm_model* model;
  test_expect_failure("float32", tdm_model_load(rig.runtime, GOLDEN_V3, &config, &model), TDM_UNSUPPORTED,
                      "float32|host device");
  cuda_rig_close(&rig);
}

/* ---- the path grouped ------------------------------------------------------------------------------------------- */

/* Loads, captures and launches; the driver here computes nothing. */
Test(model, runs_the_grouped_path) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  for (int graphs = 0; graphs < 2; graphs++) {
    tdm_model_config config = small_config(TDM_STRATEGY_SOFT);
    config.moe_path = TDM_MOE_PATH_GROUPED;
    config.use_graphs = graphs;
    tdm_model* model = load(&rig, &config);
    cr_assert_eq(tdm_model_destroy(model), TDM_OK);
  }
  cuda_rig_close(&rig);
}

/* ---- ranges of layers, memory ----------------------------------------------------------------------------------- */

/* Graphs of one range go away while those of the next are made, between whole forwards. */
Test(model, ranges_of_layers_come_and_go) {
  static const struct { int64_t first, count; } ranges[] = {{0, 1}, {1, 1}, {0, 2}, {0, 1}, {1, 1}};
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_model_config config = small_config(TDM_STRATEGY_GREEN);
  config.taps = true;
  tdm_model* model = load(&rig, &config);
  const int64_t hidden = tdm_model_get_config(model)->hidden_size;
  float* rows = calloc((size_t)(20 * hidden), sizeof *rows);
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    tdm_sequence* sequence = new_sequence(model);
    tdm_batch_item item = {.sequence = sequence, .n_tokens = 20};
    for (int step = 0; step < 2; step++, item.n_tokens = 1)
      cr_assert_eq(tdm_model_forward_layers(model, &item, 1, ranges[i].first, ranges[i].count, rows, rows), TDM_OK,
                   "%s", tdm_last_error()->message);
    (void)last_program(model);
    cr_assert_eq(forward(model, sequence, 1), TDM_OK, "%s", tdm_last_error()->message);
    tdm_sequence_destroy(sequence);
  }
  free(rows);
  cr_assert_eq(tdm_model_destroy(model), TDM_OK);
  cuda_rig_close(&rig);
}

/* The device is full when a range is first used: that fails, sequences are as before, and whole forwards go on. */
Test(model, runs_out_of_memory_at_a_range) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_model_config config = small_config(TDM_STRATEGY_SOFT);
  tdm_model* model = load(&rig, &config);
  tdm_sequence* sequence = new_sequence(model);
  cr_assert_eq(forward(model, sequence, 19), TDM_OK);
  cr_assert_eq(forward(model, sequence, 1), TDM_OK); /* what its steps keep on the device is there */
  const int64_t hidden = tdm_model_get_config(model)->hidden_size;
  float* rows = calloc((size_t)hidden, sizeof *rows);
  const tdm_batch_item item = {.sequence = sequence, .n_tokens = 1};
  const size_t used = fake_cuda_live().bytes;
  for (size_t more = 0; more < 2; more++) { /* without room for its input, and with that alone */
    fake_cuda_limit_memory(used + more * (size_t)(64 * hidden * 2));
    test_expect_failure("range", tdm_model_forward_layers(model, &item, 1, 0, 1, rows, rows), TDM_OUT_OF_MEMORY,
                        "bytes of device memory");
    cr_assert_eq(tdm_sequence_length(sequence), 20 + (int64_t)more);
    cr_assert_eq(forward(model, sequence, 1), TDM_OK, "%s", tdm_last_error()->message);
  }
  fake_cuda_limit_memory(0);
  cr_assert_eq(tdm_model_forward_layers(model, &item, 1, 0, 1, rows, rows), TDM_OK, "%s", tdm_last_error()->message);
  free(rows);
  tdm_sequence_destroy(sequence);
  cr_assert_eq(tdm_model_destroy(model), TDM_OK);
  cuda_rig_close(&rig);
}
