/* Several runtimes on one GPU, one runtime from several threads, and the same random values on every device. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"

enum { ROWS = 64, COLS = 1024, THREADS = 4, ROUNDS = 40 };

static bool ok(gpu_rig* rig, tdm_status status, const char* what) {
  if (status != TDM_OK) gpu_fail(rig, "%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
  return status == TDM_OK;
}

static tdm_status open_runtime(tdm_device_kind kind, tdm_runtime** out_runtime) {
  tdm_runtime_config config;
  const tdm_status status = tdm_runtime_config_init(&config, sizeof config);
  config.device_kind = kind;
  return status == TDM_OK ? tdm_runtime_create(&config, out_runtime) : status;
}

static tdm_status lane_of(tdm_runtime* runtime, const char* name, tdm_lane** out_lane) {
  tdm_lane_config config;
  const tdm_status status = tdm_lane_config_init(&config, sizeof config);
  config.name = name;
  return status == TDM_OK ? tdm_lane_get(runtime, &config, out_lane) : status;
}

/* ---- fill ------------------------------------------------------------------------------------------------------- */

/* `count` values in a buffer of the runtime's, copied out. */
static tdm_status run_fill(tdm_runtime* runtime, tdm_dtype dtype, int64_t count, void* out) {
  tdm_buffer* buffer;
  tdm_program* program = NULL;
  tdm_lane* lane;
  const size_t bytes = (size_t)count * tdm_dtype_bytes(dtype);
  tdm_status status = tdm_buffer_create(runtime, bytes, &buffer);
  if (status == TDM_OK) status = lane_of(runtime, "main", &lane);
  if (status == TDM_OK) status = tdm_program_create(runtime, "fill", &program);
  const tdm_fill_args args = {
      .size = sizeof args, .out = tdm_view_make(buffer, dtype, 1, &count), .seed = 11, .amplitude = 3, .offset = 0.5f};
  if (status == TDM_OK) status = tdm_append_fill(program, lane, "fill", &args);
  if (status == TDM_OK) status = tdm_program_seal(program, NULL);
  if (status == TDM_OK) status = tdm_program_launch(program, NULL);
  if (status == TDM_OK) status = tdm_buffer_read(buffer, 0, out, bytes);
  tdm_program_destroy(program);
  tdm_buffer_destroy(buffer);
  return status;
}

static void compare_fill(gpu_rig* rig, tdm_runtime* cuda, tdm_dtype dtype) {
  enum { COUNT = 100003 }; /* a tail that no vector divides */
  static uint8_t ours[COUNT * 4], theirs[COUNT * 4];
  tdm_runtime* host = NULL;
  gpu_begin(rig, "fill: %s has the host's bits", tdm_dtype_name(dtype));
  if (ok(rig, open_runtime(TDM_DEVICE_HOST, &host), "host runtime") &&
      ok(rig, run_fill(cuda, dtype, COUNT, ours), "GPU") && ok(rig, run_fill(host, dtype, COUNT, theirs), "host") &&
      memcmp(ours, theirs, COUNT * tdm_dtype_bytes(dtype)) != 0)
    gpu_fail(rig, "other bits");
  (void)ok(rig, tdm_runtime_destroy(host), "destroying the host runtime");
  gpu_end(rig);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

/* What a thread does: random values on one lane, their norm on another, over and over, each time the same bits. */
typedef struct worker {
  tdm_runtime* runtime;
  uint64_t seed;
  atomic_int different;
  tdm_status status;
  char message[256];
} worker;

static tdm_status append_steps(worker* w, tdm_program* program, tdm_buffer* out) {
  tdm_lane *main_lane, *side_lane;
  tdm_view values;
  const int64_t shape[] = {ROWS, COLS};
  const tdm_view result = tdm_view_make(out, TDM_F32, 2, shape);
  tdm_status status = lane_of(w->runtime, "main", &main_lane);
  if (status == TDM_OK) status = lane_of(w->runtime, "side", &side_lane);
  if (status == TDM_OK) status = tdm_program_temp(program, "values", TDM_F32, 2, shape, &values);
  const tdm_fill_args fill = {.size = sizeof fill, .out = values, .seed = w->seed, .amplitude = 1};
  const tdm_rmsnorm_args norm = {.size = sizeof norm, .x = values, .out = result};
  if (status == TDM_OK) status = tdm_append_fill(program, main_lane, "fill", &fill);
  if (status == TDM_OK) status = tdm_append_rmsnorm(program, side_lane, "norm", &norm);
  return status == TDM_OK ? tdm_program_seal(program, NULL) : status;
}

static tdm_status repeat(worker* w, tdm_program* program, tdm_graph* graph, tdm_buffer* out) {
  const size_t bytes = (size_t)ROWS * COLS * sizeof(float);
  float *expected = malloc(bytes), *found = malloc(bytes);
  tdm_status status = expected && found ? TDM_OK : TDM_OUT_OF_MEMORY;
  for (int i = 0; i < ROUNDS && status == TDM_OK; i++) {
    status = i % 2 ? tdm_program_launch(program, NULL) : tdm_graph_replay(graph, NULL);
    if (status == TDM_OK) status = tdm_buffer_read(out, 0, i ? found : expected, bytes);
    if (i && memcmp(expected, found, bytes) != 0) w->different++;
  }
  free(expected);
  free(found);
  return status;
}

static void* work(void* argument) {
  worker* w = argument;
  tdm_buffer* out = NULL;
  tdm_program* program = NULL;
  tdm_graph* graph = NULL;
  w->status = tdm_buffer_create(w->runtime, (size_t)ROWS * COLS * sizeof(float), &out);
  if (w->status == TDM_OK) w->status = tdm_program_create(w->runtime, "worker", &program);
  if (w->status == TDM_OK) w->status = append_steps(w, program, out);
  if (w->status == TDM_OK) w->status = tdm_graph_capture(program, &graph);
  if (w->status == TDM_OK) w->status = repeat(w, program, graph, out);
  if (w->status != TDM_OK) strncpy(w->message, tdm_last_error()->message, sizeof w->message - 1);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  tdm_buffer_destroy(out);
  return NULL;
}

/* Threads over one or two runtimes. */
static void run_threads(gpu_rig* rig, tdm_runtime* first, tdm_runtime* second, const char* what) {
  static worker workers[THREADS];
  pthread_t threads[THREADS];
  gpu_begin(rig, "runtimes: %s", what);
  int started = 0;
  for (; started < THREADS; started++) {
    workers[started] = (worker){.runtime = started % 2 ? second : first, .seed = (uint64_t)started};
    if (pthread_create(&threads[started], NULL, work, &workers[started]) != 0) break;
  }
  if (started < THREADS) gpu_fail(rig, "thread %d could not be started", started);
  for (int i = 0; i < started; i++) {
    pthread_join(threads[i], NULL);
    if (workers[i].status != TDM_OK)
      gpu_fail(rig, "thread %d: %s: %s", i, tdm_status_name(workers[i].status), workers[i].message);
    if (workers[i].different) gpu_fail(rig, "thread %d: %d launches gave other bits", i, (int)workers[i].different);
  }
  gpu_end(rig);
}

void test_runtimes(gpu_rig* rig, bool quick) {
  static const tdm_dtype dtypes[] = {TDM_F32, TDM_BF16, TDM_E4M3};
  tdm_runtime *first = NULL, *second = NULL;
  (void)quick;
  gpu_begin(rig, "runtimes: two on one GPU");
  const bool opened = ok(rig, open_runtime(TDM_DEVICE_CUDA, &first), "first") &&
                      ok(rig, open_runtime(TDM_DEVICE_CUDA, &second), "second");
  gpu_end(rig);
  if (opened) {
    for (int i = 0; i < 3; i++) compare_fill(rig, first, dtypes[i]);
    run_threads(rig, first, first, "one, four threads");
    run_threads(rig, first, second, "two, four threads");
  }
  gpu_begin(rig, "runtimes: both go");
  (void)ok(rig, tdm_runtime_destroy(first), "first");
  (void)ok(rig, tdm_runtime_destroy(second), "second");
  gpu_end(rig);
}
