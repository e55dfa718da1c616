/* All ways to run the layers of a model give the same bits, in one runtime, whose partitions then overlap; tuning; and
 * replays by the thousand beside another process's load. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "models/tuning.h"
#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"
#include "tests/models/variant.h"

enum { LAYERS = 2, CONTEXT = 500, MOST = 128, WIDEST = 7168, SOAK_REPLAYS = 10000, SOAK_LOOKS = 100 };

/* A model with random weights, and the batch of its last call. */
typedef struct layers {
  tdm_runtime* runtime;
  tdm_model* model;
  tdm_sequence* sequences[MOST];
  int64_t n_sequences, width;
} layers;

static bool ok(gpu_rig* rig, tdm_status status, const char* what) {
  if (status != TDM_OK) gpu_fail(rig, "%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
  return status == TDM_OK;
}

static tdm_status open_runtime(tdm_runtime** out_runtime) {
  tdm_runtime_config config;
  const tdm_status status = tdm_runtime_config_init(&config, sizeof config);
  config.device_kind = TDM_DEVICE_CUDA;
  return status == TDM_OK ? tdm_runtime_create(&config, out_runtime) : status;
}

/* The golden model's shape, or that of a rank of tensor parallelism 8 of DeepSeek-V3. */
static tdm_status shape_of(tdm_runtime* runtime, bool small, tdm_deepseek_v3_config* out_shape) {
  const tdm_status status = tdm_deepseek_v3_config_read(runtime, GOLDEN_V3, out_shape);
  if (status != TDM_OK || small) return status;
  out_shape->hidden_size = WIDEST;
  out_shape->num_attention_heads = 16;
  out_shape->q_lora_rank = 1536;
  out_shape->moe_intermediate_size = 256;
  out_shape->n_routed_experts = 256;
  out_shape->n_shared_experts = 1;
  out_shape->num_experts_per_tok = 8;
  out_shape->n_group = 8;
  out_shape->topk_group = 4;
  out_shape->first_k_dense_replace = 0;
  return TDM_OK;
}

static bool open_layers(gpu_rig* rig, bool small, layers* l) {
  static const int64_t buckets[] = {1, 16, 64, MOST};
  tdm_deepseek_v3_config shape;
  tdm_model_config config;
  *l = (layers){0};
  if (!ok(rig, open_runtime(&l->runtime), "runtime") || !ok(rig, shape_of(l->runtime, small, &shape), "shape") ||
      !ok(rig, tdm_model_config_init(&config, sizeof config), "config"))
    return false;
  l->width = shape.hidden_size;
  config.layers = LAYERS;
  config.max_tokens = config.max_seqs = MOST;
  config.max_context = 640;
  config.cache_pages = MOST * 10;
  config.buckets = buckets;
  config.n_buckets = 4;
  return ok(rig, tdm_model_create_random(l->runtime, &shape, 3, &config, &l->model), "model");
}

static void end_sequences(layers* l) {
  while (l->n_sequences > 0) tdm_sequence_destroy(l->sequences[--l->n_sequences]);
}

static void close_layers(gpu_rig* rig, layers* l) {
  end_sequences(l);
  (void)ok(rig, tdm_model_destroy(l->model), "destroying the model");
  (void)ok(rig, tdm_runtime_destroy(l->runtime), "destroying the runtime");
}

/* A decode step of `batch` sequences, so that graphs have something to work on. */
static bool run_step(gpu_rig* rig, layers* l, int64_t batch, float* out) {
  static float hidden[MOST * WIDEST];
  tdm_batch_item items[MOST];
  end_sequences(l);
  for (int64_t i = 0; i < batch; i++) {
    if (!ok(rig, tdm_sequence_create(l->model, &l->sequences[i]), "sequence")) return false;
    l->n_sequences++;
    if (!ok(rig, tdm_sequence_pretend(l->sequences[i], CONTEXT + i % 7), "context")) return false;
    items[i] = (tdm_batch_item){.sequence = l->sequences[i], .n_tokens = 1};
  }
  for (int64_t i = 0; i < batch * l->width; i++) hidden[i] = (float)((i * 7919) % 2003) / 1000.0f - 1.0f;
  return ok(rig, tdm_model_forward_layers(l->model, items, batch, 0, LAYERS, hidden, out), "forward");
}

/* What a graph leaves behind: bf16 [batch, width]. */
static bool read_out(gpu_rig* rig, const layers* l, tdm_graph* graph, int64_t batch, uint16_t* out) {
  tdm_view view;
  return ok(rig, tdm_program_find(tdm_graph_program(graph), "layer1.out", &view), "layer1.out") &&
         ok(rig, tdm_buffer_read(view.buffer, (size_t)view.offset_bytes, out, (size_t)(batch * l->width) * sizeof *out),
            "reading");
}

static const tdm_choice ways[] = {{TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_HITS},
                                  {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_HITS},
                                  {TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, 4, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_HITS},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_HITS},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 32, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 8, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 16, TDM_MOE_PATH_DENSE},
                                  {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 32, TDM_MOE_PATH_HITS}};
enum { WAYS = sizeof ways / sizeof *ways };

static void compare_ways(gpu_rig* rig, layers* l, int64_t batch) {
  static float forwarded[MOST * WIDEST];
  static uint16_t first[MOST * WIDEST], other[MOST * WIDEST];
  gpu_begin(rig, "ways: %d of them for %d tokens, in one runtime", WAYS, (int)batch);
  bool fine = run_step(rig, l, batch, forwarded);
  for (int way = 0; fine && way < WAYS; way++) {
    tdm_graph* graph = NULL;
    fine = ok(rig, tdm_model_capture_layers(l->model, 0, LAYERS, batch, false, &ways[way], &graph), "capture");
    for (int replay = 0; fine && replay < 3; replay++) fine = ok(rig, tdm_graph_replay(graph, NULL), "replay");
    fine = fine && read_out(rig, l, graph, batch, way ? other : first);
    if (fine && way && memcmp(first, other, (size_t)(batch * l->width) * sizeof *first) != 0)
      gpu_fail(rig, "way %d gives other bits than the first", way);
    tdm_graph_destroy(graph);
  }
  for (int64_t i = 0; fine && i < batch * l->width; i++) {
    const uint32_t bits = (uint32_t)first[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    if (value == forwarded[i]) continue;
    gpu_fail(rig, "element %d is %g, and %g by tdm_model_forward_layers", (int)i, (double)value, (double)forwarded[i]);
    break;
  }
  gpu_end(rig);
}

/* Every bucket gets an entry in less than a minute. */
static void tune(gpu_rig* rig, layers* l) {
  tdm_tuning* tuning = NULL;
  tdm_tune_config config;
  tdm_tune_result result = {.size = sizeof result};
  gpu_begin(rig, "ways: tuned");
  bool fine = ok(rig, tdm_tuning_create(l->runtime, &tuning), "tuning") &&
              ok(rig, tdm_tune_config_init(&config, sizeof config), "config");
  end_sequences(l);
  config.prefill = false;
  fine = fine && ok(rig, tdm_model_tune(l->model, &config, tuning, &result), "tune");
  if (fine && (result.buckets != 4 || result.left != 0 || result.seconds > 60))
    gpu_fail(rig, "%d buckets tuned, %d left, %.1f s", result.buckets, result.left, result.seconds);
  for (int32_t i = 0; i < tdm_tuning_count(tuning); i++) {
    tdm_tuning_entry entry = {.size = sizeof entry};
    (void)tdm_tuning_get(tuning, i, &entry);
    (void)printf("  %d tokens: %s, %d SMs beside, %s, %s experts: %.1f us a layer, untuned %.1f, %d ways\n",
                 (int)entry.n_tokens, tdm_strategy_name(entry.choice.strategy), entry.choice.side_sms,
                 entry.choice.wait_form == TDM_WAIT_SIGNAL ? "signals" : "edges",
                 tdm_moe_path_name(entry.choice.moe_path), 1e-3 * (double)entry.time_ns / LAYERS,
                 1e-3 * (double)entry.default_ns / LAYERS, entry.tried);
  }
  if (fine) (void)printf("  %d programs in %.1f s\n", result.programs, result.seconds);
  tdm_tuning_destroy(tuning);
  gpu_end(rig);
}

void test_ways(gpu_rig* rig, bool quick) {
  layers l;
  gpu_begin(rig, "ways: a model to run");
  const bool opened = open_layers(rig, quick, &l);
  gpu_end(rig);
  if (opened) {
    static const int64_t batches[] = {1, 16, 64, MOST};
    for (int i = 0; i < (quick ? 2 : 4); i++) compare_ways(rig, &l, batches[i]);
    if (!quick) tune(rig, &l);
    if (!quick) compare_ways(rig, &l, 16); /* the model itself now runs the way that was found */
  }
  close_layers(rig, &l);
}

/* ---- another process's load ------------------------------------------------------------------------------------- */

static tdm_status load_for_ever(void) {
  tdm_runtime* runtime;
  tdm_lane_config lane_config;
  tdm_lane* lane;
  tdm_buffer* buffer;
  tdm_program* program;
  const int64_t count = (int64_t)64 << 20;
  tdm_status status = open_runtime(&runtime);
  if (status == TDM_OK) status = tdm_lane_config_init(&lane_config, sizeof lane_config);
  lane_config.name = "main";
  if (status == TDM_OK) status = tdm_lane_get(runtime, &lane_config, &lane);
  if (status == TDM_OK) status = tdm_buffer_create(runtime, (size_t)count * sizeof(float), &buffer);
  if (status == TDM_OK) status = tdm_program_create(runtime, "load", &program);
  if (status != TDM_OK) return status;
  const tdm_fill_args fill = {
      .size = sizeof fill, .out = tdm_view_make(buffer, TDM_F32, 1, &count), .seed = 1, .amplitude = 1};
  status = tdm_append_fill(program, lane, "fill", &fill);
  if (status == TDM_OK) status = tdm_program_seal(program, NULL);
  for (int64_t i = 1; status == TDM_OK; i++) {
    status = tdm_program_launch(program, NULL);
    if (status == TDM_OK && i % 16 == 0) status = tdm_runtime_synchronize(runtime);
  }
  return status;
}

int gpu_load_main(void) {
  (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* with the test that started it */
  const tdm_status status = load_for_ever();
  (void)fprintf(stderr, "load: %s: %s\n", tdm_status_name(status), tdm_last_error()->message);
  return 1;
}

/* This executable once more, as the load. */
static pid_t start_load(void) {
  const pid_t child = fork();
  if (child != 0) return child;
  (void)execl("/proc/self/exe", "gpu_test", "load", (char*)NULL);
  _exit(127);
}

static void soak(gpu_rig* rig, layers* l, const tdm_choice* choice, const char* name, pid_t load) {
  static float forwarded[MOST * WIDEST];
  static uint16_t first[MOST * WIDEST], other[MOST * WIDEST];
  tdm_graph* graph = NULL;
  gpu_begin(rig, "soak: %d replays, %s, beside another process", SOAK_REPLAYS, name);
  bool fine = run_step(rig, l, 16, forwarded) &&
              ok(rig, tdm_model_capture_layers(l->model, 0, LAYERS, 16, false, choice, &graph), "capture");
  int looks = 0;
  for (int i = 1; fine && i <= SOAK_REPLAYS; i++) {
    fine = ok(rig, tdm_graph_replay(graph, NULL), "replay");
    if (!fine || i % (SOAK_REPLAYS / SOAK_LOOKS) != 0) continue;
    fine = read_out(rig, l, graph, 16, looks ? other : first);
    if (fine && looks++ && memcmp(first, other, (size_t)(16 * l->width) * sizeof *first) != 0)
      gpu_fail(rig, "after %d replays there are other bits", i);
  }
  int status = 0;
  if (waitpid(load, &status, WNOHANG) != 0) gpu_fail(rig, "the load is gone (status %d): nothing was shown", status);
  if (fine) (void)printf("  %d looks at the result of %d replays\n", looks, SOAK_REPLAYS);
  tdm_graph_destroy(graph);
  gpu_end(rig);
}

void test_soak(gpu_rig* rig, bool quick) {
  layers l;
  (void)quick;
  gpu_begin(rig, "soak: a model and a load");
  const pid_t load = start_load();
  if (load < 0) gpu_fail(rig, "no second process");
  const bool opened = open_layers(rig, false, &l);
  (void)sleep(2); /* until the other process has its runtime */
  gpu_end(rig);
  if (opened && load > 0) {
    static const tdm_choice dense = {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 16, TDM_MOE_PATH_DENSE},
                            hits = {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 32, TDM_MOE_PATH_HITS},
                            soft = {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE};
    soak(rig, &l, &dense, "signals, all experts", load);
    soak(rig, &l, &hits, "signals, hit experts", load);
    soak(rig, &l, &soft, "soft lanes, all experts", load);
  }
  if (load > 0) {
    (void)kill(load, SIGKILL);
    (void)waitpid(load, NULL, 0);
  }
  close_layers(rig, &l);
}
