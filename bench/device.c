#include <cuda.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"

/* The driver calls that tandem's interface leaves to its callers: streams, events, and capturing the peer. */
#define BENCH_FUNCTIONS(X)                                                                                             \
  X(cuInit)                                                                                                            \
  X(cuGetErrorString)                                                                                                  \
  X(cuDeviceGet)                                                                                                       \
  X(cuDevicePrimaryCtxRetain)                                                                                          \
  X(cuDevicePrimaryCtxRelease)                                                                                         \
  X(cuCtxSetCurrent)                                                                                                   \
  X(cuMemsetD8Async)                                                                                                   \
  X(cuStreamCreate)                                                                                                    \
  X(cuStreamDestroy)                                                                                                   \
  X(cuStreamSynchronize)                                                                                               \
  X(cuStreamBeginCapture)                                                                                              \
  X(cuStreamEndCapture)                                                                                                \
  X(cuEventCreate)                                                                                                     \
  X(cuEventDestroy)                                                                                                    \
  X(cuEventRecord)                                                                                                     \
  X(cuEventElapsedTime)                                                                                                \
  X(cuGraphInstantiateWithFlags)                                                                                       \
  X(cuGraphLaunch)                                                                                                     \
  X(cuGraphDestroy)                                                                                                    \
  X(cuGraphExecDestroy)

struct bench_driver {
#define X(name) __typeof__(name)* name;
  BENCH_FUNCTIONS(X)
#undef X
  void* library;
  CUdevice device;
  CUstream stream;
};

/* Under the names that cuda.h's macros make: cuEventElapsedTime_v2. */
#define STRINGIZE_(x) #x
#define STRINGIZE(x)  STRINGIZE_(x)
static const struct {
  const char* name;
  size_t offset;
} symbols[] = {
#define X(name) {STRINGIZE(name), offsetof(bench_driver, name)},
    BENCH_FUNCTIONS(X)
#undef X
};

void bench_die(const char* format, ...) {
  va_list list;
  va_start(list, format);
  (void)fprintf(stderr, "tandem-bench: ");
  (void)vfprintf(stderr, format, list);
  (void)fprintf(stderr, "\n");
  va_end(list);
  exit(BENCH_FAILED);
}

void bench_must(tdm_status status, const char* what) {
  if (status == TDM_OK) return;
  bench_die("%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
}

static void try_driver(const bench_driver* driver, CUresult result, const char* call) {
  const char* text = NULL;
  if (result == CUDA_SUCCESS) return;
  (void)driver->cuGetErrorString(result, &text);
  bench_die("%s: %d %s", call, (int)result, text ? text : "?");
}
#define TRY(driver, call, ...) try_driver((driver), (driver)->call(__VA_ARGS__), #call)

uint64_t bench_random(bench_rig* rig) {
  uint64_t z = rig->random += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* NULL, or why there is no driver. tandem's runtime has it open already. */
static const char* open_driver(bench_driver* driver) {
  driver->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver->library) return "libcuda.so.1 cannot be opened";
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void* function = dlsym(driver->library, symbols[i].name);
    if (!function) return symbols[i].name;
    memcpy((char*)driver + symbols[i].offset, &function, sizeof function);
  }
  return NULL;
}

static void print_log(void* ctx, tdm_log_level level, const char* line) {
  (void)ctx;
  (void)level;
  (void)fprintf(stderr, "tandem: %s\n", line);
}

static int open_runtime(const bench_options* options, bench_rig* rig) {
  tdm_runtime_config config;
  bench_must(tdm_runtime_config_init(&config, sizeof config), "the runtime");
  config.device_kind = options->host ? TDM_DEVICE_HOST : TDM_DEVICE_CUDA;
  config.log = print_log;
  config.log_level = TDM_LOG_WARNING;
  const tdm_status status = tdm_runtime_create(&config, &rig->runtime);
  if (status == TDM_UNSUPPORTED) {
    (void)fprintf(stderr, "skipped: no GPU to measure: %s\n", tdm_last_error()->message);
    return BENCH_NO_GPU;
  }
  bench_must(status, "the runtime");
  if (!options->host) bench_must(tdm_runtime_create(NULL, &rig->host), "the host device");
  tdm_runtime_info info = {.size = sizeof info};
  bench_must(tdm_runtime_get_info(rig->runtime, &info), "the runtime");
  memcpy(rig->device_name, info.device_name, sizeof rig->device_name);
  rig->device_sms = info.sms;
  return BENCH_OK;
}

static void open_lane(bench_rig* rig, int32_t sms) {
  tdm_lane_config config;
  bench_must(tdm_lane_config_init(&config, sizeof config), "the lane");
  config.name = "bench";
  config.kind = sms ? TDM_LANE_SOFT : TDM_LANE_WHOLE;
  config.sms = sms;
  bench_must(tdm_lane_get(rig->runtime, &config, &rig->lane), "the lane");
  rig->sms = sms ? sms : rig->device_sms;
}

int bench_open(const bench_options* options, bench_rig* rig) {
  *rig = (bench_rig){.random = 1};
  const int status = open_runtime(options, rig);
  if (status != BENCH_OK || options->host) return status;
  bench_driver* driver = calloc(1, sizeof *driver);
  if (!driver) bench_die("no memory for the driver's table");
  const char* problem = open_driver(driver);
  if (problem) bench_die("the CUDA driver: %s", problem);
  rig->driver = driver;
  CUcontext context;
  TRY(driver, cuInit, 0);
  TRY(driver, cuDeviceGet, &driver->device, 0);
  TRY(driver, cuDevicePrimaryCtxRetain, &context, driver->device);
  TRY(driver, cuCtxSetCurrent, context);
  TRY(driver, cuStreamCreate, &driver->stream, CU_STREAM_NON_BLOCKING);
  open_lane(rig, options->sms);
  bench_clock_open(rig);
  return BENCH_OK;
}

void bench_close(bench_rig* rig) {
  bench_clock_close(rig);
  for (int i = 0; i < 2; i++) tdm_buffer_destroy(rig->pools[i]);
  if (rig->driver) {
    (void)rig->driver->cuStreamDestroy(rig->driver->stream);
    (void)rig->driver->cuDevicePrimaryCtxRelease(rig->driver->device);
    (void)dlclose(rig->driver->library);
    free(rig->driver);
  }
  bench_must(tdm_runtime_destroy(rig->runtime), "closing");
  bench_must(tdm_runtime_destroy(rig->host), "closing");
}

/* ---- streams and graphs ----------------------------------------------------------------------------------------- */

void* bench_stream(const bench_rig* rig) {
  return rig->driver ? rig->driver->stream : NULL;
}

void bench_synchronize(const bench_rig* rig) {
  if (!rig->driver) return; /* on the host device a replay is done when it returns */
  TRY(rig->driver, cuStreamSynchronize, rig->driver->stream);
}

void bench_poison(const bench_rig* rig, const tdm_view* view) {
  const CUdeviceptr data = (CUdeviceptr)(uintptr_t)tdm_view_data(view);
  TRY(rig->driver, cuMemsetD8Async, data, 0xff, tdm_view_span_bytes(view), rig->driver->stream);
}

void bench_poison_outputs(const bench_rig* rig, const tdm_op* op, const void* args) {
  for (int32_t i = 0; i < op->n_operands; i++) {
    const tdm_view* view = (const tdm_view*)(const void*)((const uint8_t*)args + op->operands[i].offset);
    if ((op->operands[i].access & TDM_WRITE) && tdm_view_present(view)) bench_poison(rig, view);
  }
  bench_synchronize(rig);
}

void* bench_capture(const bench_rig* rig, bool (*enqueue)(void* ctx), void* ctx) {
  const bench_driver* driver = rig->driver;
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  TRY(driver, cuStreamBeginCapture, driver->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  const bool fine = enqueue(ctx);
  const CUresult ended = driver->cuStreamEndCapture(driver->stream, &graph);
  if (fine && ended == CUDA_SUCCESS) TRY(driver, cuGraphInstantiateWithFlags, &exec, graph, 0);
  if (graph) (void)driver->cuGraphDestroy(graph);
  return exec;
}

void bench_replay(const bench_rig* rig, tdm_graph* graph) {
  const tdm_launch_config config = {.size = sizeof config, .stream = bench_stream(rig), .order = TDM_ORDER_LANES};
  bench_must(tdm_graph_replay(graph, &config), "a replay");
}

void bench_graph_launch(const bench_rig* rig, void* exec) {
  TRY(rig->driver, cuGraphLaunch, exec, rig->driver->stream);
}

void bench_graph_destroy(const bench_rig* rig, void* exec) {
  if (exec) TRY(rig->driver, cuGraphExecDestroy, exec);
}

/* ---- timing ----------------------------------------------------------------------------------------------------- */

enum { WARM_UPS = 3 };

static int ascending(const void* a, const void* b) {
  const float x = *(const float*)a, y = *(const float*)b;
  return (x > y) - (x < y);
}

static void rest(const bench_rig* rig, int32_t ms) {
  if (ms == 0) return;
  bench_synchronize(rig);
  (void)nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static CUevent* make_events(const bench_driver* driver, int32_t count) {
  CUevent* events = calloc((size_t)count, sizeof *events);
  if (!events) bench_die("no memory for %d events", count);
  for (int32_t i = 0; i < count; i++) TRY(driver, cuEventCreate, &events[i], CU_EVENT_DEFAULT);
  return events;
}

static void destroy_events(const bench_driver* driver, CUevent* events, int32_t count) {
  for (int32_t i = 0; i < count; i++) (void)driver->cuEventDestroy(events[i]);
  free(events);
}

/* Median and so on of times in milliseconds, which are sorted. */
static bench_times summary(float* ms, int32_t count) {
  qsort(ms, (size_t)count, sizeof *ms, ascending);
  return (bench_times){
      .median = 1e3 * (double)ms[count / 2], .low = 1e3 * (double)ms[0], .high = 1e3 * (double)ms[count - 1]};
}

static float* make_times(int32_t count) {
  float* ms = calloc((size_t)count, sizeof *ms);
  if (!ms) bench_die("no memory for %d times", count);
  return ms;
}

/* Median and so on of `count` spans, each from its first event to its second, `stride` events from one to the next. */
static bench_times spans(const bench_driver* driver, const CUevent* events, int32_t stride, int32_t count) {
  float* ms = make_times(count);
  for (int32_t i = 0; i < count; i++)
    TRY(driver, cuEventElapsedTime, &ms[i], events[i * stride], events[i * stride + 1]);
  const bench_times times = summary(ms, count);
  free(ms);
  return times;
}

/* A rest, the waits that give the host a lead, and one of the two graphs between two events. */
static void time_one(const bench_rig* rig, const CUevent* events, tdm_graph* graph, void* exec, int32_t leads,
                     int32_t rest_ms) {
  rest(rig, rest_ms);
  for (int32_t i = 0; i < leads; i++) bench_replay(rig, rig->clocks[BENCH_CLOCK_BEFORE]);
  TRY(rig->driver, cuEventRecord, events[0], rig->driver->stream);
  if (graph)
    bench_replay(rig, graph);
  else
    bench_graph_launch(rig, exec);
  TRY(rig->driver, cuEventRecord, events[1], rig->driver->stream);
}

void bench_time(const bench_rig* rig, tdm_graph* graph, void* peer, int32_t replays, int32_t rest_ms,
                bench_timing* out_timing) {
  const bench_driver* driver = rig->driver;
  const int32_t rounds = WARM_UPS + replays;
  CUevent* events = make_events(driver, 4 * rounds); /* of a round: ours, the peer's */
  const CUevent* counted = events + 4 * WARM_UPS;
  bench_clock_reset(rig);
  for (int32_t i = 0; i < rounds; i++) {
    time_one(rig, events + 4 * i, graph, NULL, 1, rest_ms);
    bench_replay(rig, rig->clocks[BENCH_CLOCK_AFTER]);
    if (peer) time_one(rig, events + 4 * i + 2, NULL, peer, 1, rest_ms);
  }
  bench_synchronize(rig);
  *out_timing =
      (bench_timing){.ours = spans(driver, counted, 4, replays), .mhz = bench_clock_mhz(rig, BENCH_CLOCK_AFTER)};
  if (peer) out_timing->peer = spans(driver, counted + 2, 4, replays);
  destroy_events(driver, events, 4 * rounds);
}

static void turns_by_events(const bench_rig* rig, tdm_graph* const* graphs, int32_t n, int32_t leads,
                            const bench_options* options, bench_times* out_times, double* out_mhz) {
  const int32_t rounds = WARM_UPS + options->replays;
  CUevent* events = make_events(rig->driver, 2 * n * rounds); /* of a round: two of each graph */
  bench_clock_reset(rig);
  for (int32_t i = 0; i < rounds; i++)
    for (int32_t k = 0; k < n; k++) {
      const int32_t turn = (i + k) % n;
      time_one(rig, events + 2 * (i * n + turn), graphs[turn], NULL, leads, options->rest_ms);
      bench_replay(rig, rig->clocks[BENCH_CLOCK_AFTER]);
    }
  bench_synchronize(rig);
  for (int32_t k = 0; k < n; k++)
    out_times[k] = spans(rig->driver, events + 2 * (WARM_UPS * n + k), 2 * n, options->replays);
  *out_mhz = bench_clock_mhz(rig, BENCH_CLOCK_AFTER);
  destroy_events(rig->driver, events, 2 * n * rounds);
}

static double milliseconds(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static void turns_by_wall_clock(const bench_rig* rig, tdm_graph* const* graphs, int32_t n, const bench_options* options,
                                bench_times* out_times) {
  float* ms = make_times(n * options->replays);
  for (int32_t i = -1; i < options->replays; i++) /* one to warm up */
    for (int32_t k = 0; k < n; k++) {
      const int32_t turn = (i + 1 + k) % n;
      const double begin = milliseconds();
      bench_replay(rig, graphs[turn]);
      if (i >= 0) ms[turn * options->replays + i] = (float)(milliseconds() - begin);
    }
  for (int32_t k = 0; k < n; k++) out_times[k] = summary(ms + k * options->replays, options->replays);
  free(ms);
}

void bench_time_turns(const bench_rig* rig, tdm_graph* const* graphs, int32_t n, int32_t leads,
                      const bench_options* options, bench_times* out_times, double* out_mhz) {
  *out_mhz = 0;
  if (rig->driver)
    turns_by_events(rig, graphs, n, leads, options, out_times, out_mhz);
  else
    turns_by_wall_clock(rig, graphs, n, options, out_times);
}

double bench_time_graph(const bench_rig* rig, void* exec, int32_t replays) {
  CUevent* events = make_events(rig->driver, 2 * replays);
  for (int32_t i = 0; i < replays; i++) time_one(rig, events + 2 * i, NULL, exec, 1, 0);
  bench_synchronize(rig);
  const double median = spans(rig->driver, events, 2, replays).median;
  destroy_events(rig->driver, events, 2 * replays);
  return median;
}
