#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/cuda_rig.h"

/* Each driver call made to fail once in turn, all calls from one on, and each block of host memory. Whatever fails
 * answers a status and leaves everything else as it was: the same call made again succeeds, and in the end nothing is
 * left. */

#define GOLDEN_V3 TANDEM_SOURCE_DIR "/tests/golden/deepseek_v3"

/* A walk through the library during which calls fail. */
typedef struct walk {
  cuda_rig rig;
  int failures; /* library calls that failed */
  bool host;    /* it is the host's memory that fails, not the driver */
  bool onwards; /* all driver calls fail from one on: no call is made again */
} walk;

/* Whether `status`, of a call that may be made again, is TDM_OK. A failure has its sentence. */
static bool went_well(walk* w, tdm_status status, const char* what) {
  if (status == TDM_OK) return true;
  w->failures++;
  const tdm_error* error = tdm_last_error();
  cr_assert_eq(error->status, status, "%s answers %s; the last error is %s: %s", what, tdm_status_name(status),
               tdm_status_name(error->status), error->message);
  cr_assert((status == TDM_CUDA && !w->host) || status == TDM_OUT_OF_MEMORY, "%s after %s: %s", tdm_status_name(status),
            fake_cuda_failed(), error->message);
  cr_assert_eq(error->raw_code != 0, !w->host, "%s: %s", what, error->message);
  return false;
}

/* Makes the call, and once more where it failed. Leaves the enclosing block's `ok`. */
#define STEP(call)                                                                                                     \
  do {                                                                                                                 \
    if (ok)                                                                                                            \
      ok = went_well(w, (call), #call);                                                                                \
    else                                                                                                               \
      break;                                                                                                           \
    if (!ok && !w->onwards) {                                                                                          \
      const tdm_status again_ = (call);                                                                                \
      cr_assert_eq(again_, TDM_OK, "%s fails again after %s: %s", #call, fake_cuda_failed(),                           \
                   tdm_last_error()->message);                                                                         \
      ok = true;                                                                                                       \
    }                                                                                                                  \
  } while (0)

static tdm_status get_lane(walk* w, const char* name, tdm_lane_kind kind, int32_t sms, tdm_lane** out_lane) {
  tdm_lane_config config;
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = name;
  config.kind = kind;
  config.sms = sms;
  return tdm_lane_get(w->rig.runtime, &config, out_lane);
}

static void walk_program(walk* w) {
  tdm_lane* lanes[3] = {NULL};
  tdm_program* program = NULL;
  tdm_program* signals = NULL;
  tdm_graph* graph = NULL;
  tdm_buffer* buffer = NULL;
  tdm_view temps[3];
  uint8_t bytes[64] = {1};
  const tdm_runtime_config config = cuda_rig_config(&w->rig);
  tdm_launch_config serial;
  cr_assert_eq(tdm_launch_config_init(&serial, sizeof serial), TDM_OK);
  serial.order = TDM_ORDER_SERIAL;
  tdm_seal_config by_signal;
  cr_assert_eq(tdm_seal_config_init(&by_signal, sizeof by_signal), TDM_OK);
  by_signal.wait_form = TDM_WAIT_SIGNAL;
  by_signal.trace = true;
  bool ok = true;
  STEP(tdm_runtime_create(&config, &w->rig.runtime));
  STEP(get_lane(w, "side", TDM_LANE_GREEN, 16, &lanes[0]));
  STEP(get_lane(w, "main", TDM_LANE_GREEN, 116, &lanes[1]));
  STEP(get_lane(w, "soft", TDM_LANE_SOFT, 16, &lanes[2]));
  STEP(tdm_buffer_create(w->rig.runtime, sizeof bytes, &buffer));
  STEP(tdm_buffer_write(buffer, 0, bytes, sizeof bytes));
  STEP(tdm_program_create(w->rig.runtime, "walk", &program));
  for (int i = 0; i < 3; i++) STEP(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]));
  for (int i = 0; i < 6; i++) {
    const probe_args args = {.size = sizeof args, .read0 = temps[i % 3], .write0 = temps[(i + 1) % 3]};
    STEP(tdm_program_append(program, lanes[i % 3], &cuda_probe_op, "step", &args));
  }
  STEP(tdm_program_seal(program, NULL));
  STEP(tdm_program_launch(program, NULL));
  STEP(tdm_program_launch(program, &serial));
  STEP(tdm_graph_capture(program, &graph));
  STEP(tdm_graph_replay(graph, NULL));
  STEP(tdm_program_launch(program, NULL));
  STEP(tdm_program_create(w->rig.runtime, "signals", &signals));
  for (int i = 0; i < 2; i++) STEP(tdm_program_temp(signals, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]));
  for (int i = 0; i < 4; i++) {
    const probe_args args = {.size = sizeof args, .read0 = temps[i % 2], .write0 = temps[(i + 1) % 2]};
    STEP(tdm_program_append(signals, lanes[i % 2], &cuda_probe_op, "step", &args));
  }
  STEP(tdm_program_seal(signals, &by_signal));
  STEP(tdm_program_launch(signals, NULL));
  STEP(tdm_program_launch(signals, &serial));
  STEP(tdm_runtime_synchronize(w->rig.runtime));
  STEP(tdm_buffer_read(buffer, 0, bytes, sizeof bytes));
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  tdm_program_destroy(signals);
  tdm_buffer_destroy(buffer);
}

static void walk_model(walk* w) {
  tdm_model* model = NULL;
  tdm_sequence* sequence = NULL;
  static const int32_t tokens[20] = {5, 3, 9};
  const tdm_runtime_config config = cuda_rig_config(&w->rig);
  tdm_model_config model_config;
  cr_assert_eq(tdm_model_config_init(&model_config, sizeof model_config), TDM_OK);
  model_config.max_tokens = 32;
  model_config.max_seqs = 2;
  model_config.max_context = 64;
  model_config.cache_pages = 2;
  model_config.strategy = TDM_STRATEGY_GREEN;
  model_config.wait_form = TDM_WAIT_SIGNAL;
  model_config.strict = true;
  bool ok = true;
  STEP(tdm_runtime_create(&config, &w->rig.runtime));
  STEP(tdm_model_load(w->rig.runtime, GOLDEN_V3, &model_config, &model));
  if (ok) cr_assert_eq(tdm_sequence_create(model, &sequence), TDM_OK);
  tdm_forward_result result = {.size = sizeof result};
  tdm_batch_item item = {.sequence = sequence, .tokens = tokens, .n_tokens = 20};
  STEP(tdm_model_forward(model, &item, 1, &result));
  item.n_tokens = 1;
  STEP(tdm_model_forward(model, &item, 1, &result));
  float* rows = calloc(7168, sizeof *rows);
  STEP(tdm_model_forward_layers(model, &item, 1, 0, 1, rows, rows));
  STEP(tdm_model_forward_layers(model, &item, 1, 1, 1, rows, rows));
  tdm_graph* graph = NULL;
  const tdm_choice choice = {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_HITS};
  STEP(tdm_model_capture_layers(model, 0, 2, 1, false, &choice, &graph));
  STEP(tdm_graph_replay(graph, NULL));
  tdm_graph_destroy(graph);
  if (ok) cr_assert_eq(tdm_sequence_length(sequence), 23, "a call that failed was counted");
  free(rows);
  tdm_sequence_destroy(sequence);
  cr_assert_eq(tdm_model_destroy(model), TDM_OK, "%s", tdm_last_error()->message);
}

/* Calls whose failure nobody need hear of: what takes things down, or is made on the way there. */
static bool may_be_silent(const char* name) {
  static const char* const words[] = {"Destroy", "Free", "Unload", "Release", "CtxPop", "CtxPush"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strstr(name, words[i])) return true;
  return false;
}

/* False when there was no n-th call. */
static bool walk_with_fault(void (*path)(walk*), int64_t nth, bool onwards, CUresult result) {
  walk w = {.rig = {.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT}, .onwards = onwards};
  char where[96];
  fake_cuda_reset(NULL);
  fake_cuda_fail(&(fake_fault){.nth = nth, .onwards = onwards, .result = result});
  path(&w);
  const bool injected = fake_cuda_failed() != NULL;
  cr_assert_eq(tdm_runtime_destroy(w.rig.runtime), TDM_OK, "%s", tdm_last_error()->message);
  const char* name = fake_cuda_failed() ? fake_cuda_failed() : "nothing";
  snprintf(where, sizeof where, "call %d, %s,%s failing with %d", (int)nth, name, onwards ? " and all later ones" : "",
           (int)result);
  cuda_rig_expect_clean(where);
  cr_assert_eq(w.rig.host.outstanding, 0, "%s: %d blocks of host memory left", where, (int)w.rig.host.outstanding);
  cr_assert_eq(w.rig.host.bytes, 0, "%s", where);
  if (injected && !may_be_silent(name)) cr_assert_gt(w.failures + w.rig.warnings, 0, "%s: nobody heard of it", where);
  return fake_cuda_failed() != NULL;
}

static int64_t walk_all(void (*path)(walk*), int64_t first, int64_t stride) {
  int64_t nth = first;
  while (walk_with_fault(path, nth, false, CUDA_ERROR_UNKNOWN)) nth += stride;
  return nth;
}

Test(faults, each_call_of_a_program) {
  cr_assert_gt(walk_all(walk_program, 1, 1), 200);
}

Test(faults, out_of_memory_is_told_apart) {
  for (int64_t nth = 1; walk_with_fault(walk_program, nth, false, CUDA_ERROR_OUT_OF_MEMORY); nth += 7) continue;
}

Test(faults, all_calls_from_one_on) {
  for (int64_t nth = 1; walk_with_fault(walk_program, nth, true, CUDA_ERROR_ILLEGAL_ADDRESS); nth++) continue;
}

/* A stride that is prime visits other functions each time it comes past a loop of the library. */
Test(faults, calls_of_a_model) {
  cr_assert_gt(walk_all(walk_model, 1, 11), 1000);
}

Test(faults, all_calls_of_a_model_from_one_on) {
  for (int64_t nth = 5; walk_with_fault(walk_model, nth, true, CUDA_ERROR_ILLEGAL_ADDRESS); nth += 151) continue;
}

/* The same for memory of the host's. */
static bool walk_without_memory(void (*path)(walk*), int64_t nth) {
  walk w = {.rig = {.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT}, .host = true};
  fake_cuda_reset(NULL);
  test_heap_fail_at(&w.rig.host, nth);
  path(&w);
  cr_assert_eq(tdm_runtime_destroy(w.rig.runtime), TDM_OK, "%s", tdm_last_error()->message);
  cuda_rig_expect_clean("without memory");
  cr_assert_eq(w.rig.host.outstanding, 0, "block %d: %d are left", (int)nth, (int)w.rig.host.outstanding);
  const bool failed = w.rig.host.calls >= nth;
  cr_assert_eq(w.failures, failed, "block %d", (int)nth);
  return failed;
}

Test(faults, each_block_of_host_memory) {
  int64_t nth = 1;
  while (walk_without_memory(walk_program, nth)) nth++;
  cr_assert_gt(nth, 30);
  for (nth = 3; walk_without_memory(walk_model, nth);) nth += 53;
}
