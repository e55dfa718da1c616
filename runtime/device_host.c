#include <errno.h>
#include <string.h>
#include <time.h>

#include "runtime/device.h"
#include "runtime/program.h"

/* The host device: memory from the allocators, a thread a lane, steps run by their references.
 *
 * Lanes side by side: each lane's thread walks its own steps; `run.done[lane]` counts the steps that are done, and a
 * step with waits sleeps until the counts it needs are reached. When a step fails, later steps are not started, but
 * earlier ones still are: so the failure reported is always the first in program order, however the threads ran. */

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

/* Work handed to a lane's thread. */
typedef void (*lane_fn)(void* ctx, int32_t slot);

/* A lane on the host device is a thread with room for one piece of work: the launch mutex of the runtime makes sure
 * that nobody submits a second one. */
typedef struct host_lane {
  pthread_t thread;
  pthread_mutex_t mutex; /* guards what follows */
  pthread_cond_t changed;
  lane_fn fn; /* NULL: idle */
  void* ctx;
  int32_t slot;
  bool stop;
} host_lane;

static void* lane_main(void* argument) {
  host_lane* lane = argument;
  pthread_mutex_lock(&lane->mutex);
  for (;;) {
    while (!lane->fn && !lane->stop) pthread_cond_wait(&lane->changed, &lane->mutex);
    if (!lane->fn) break;
    lane_fn fn = lane->fn;
    pthread_mutex_unlock(&lane->mutex);
    fn(lane->ctx, lane->slot);
    pthread_mutex_lock(&lane->mutex);
    lane->fn = NULL;
    pthread_cond_broadcast(&lane->changed);
  }
  pthread_mutex_unlock(&lane->mutex);
  return NULL;
}

static void lane_submit(host_lane* lane, lane_fn fn, void* ctx, int32_t slot) {
  pthread_mutex_lock(&lane->mutex);
  lane->fn = fn;
  lane->ctx = ctx;
  lane->slot = slot;
  pthread_cond_broadcast(&lane->changed);
  pthread_mutex_unlock(&lane->mutex);
}

static void lane_await(host_lane* lane) {
  pthread_mutex_lock(&lane->mutex);
  while (lane->fn) pthread_cond_wait(&lane->changed, &lane->mutex);
  pthread_mutex_unlock(&lane->mutex);
}

static tdm_status lane_open(tdm_lane* owner) {
  tdm_runtime* runtime = owner->runtime;
  host_lane* lane = tdm_host_alloc(runtime, sizeof *lane);
  if (!lane) return TDM_OUT_OF_MEMORY;
  pthread_mutex_init(&lane->mutex, NULL);
  pthread_cond_init(&lane->changed, NULL);
  const int error = pthread_create(&lane->thread, NULL, lane_main, lane);
  if (error) {
    pthread_cond_destroy(&lane->changed);
    pthread_mutex_destroy(&lane->mutex);
    tdm_host_free(runtime, lane, sizeof *lane);
    return TDM_FAIL_RAW(error == EAGAIN ? TDM_OUT_OF_MEMORY : TDM_INTERNAL, error,
                        "lane '%s': its thread could not be started: %s", owner->info.name, strerror(error));
  }
  owner->state = lane;
  return TDM_OK;
}

static void lane_close(tdm_lane* owner) {
  host_lane* lane = owner->state;
  pthread_mutex_lock(&lane->mutex);
  lane->stop = true;
  pthread_cond_broadcast(&lane->changed);
  pthread_mutex_unlock(&lane->mutex);
  pthread_join(lane->thread, NULL);
  pthread_cond_destroy(&lane->changed);
  pthread_mutex_destroy(&lane->mutex);
  tdm_host_free(owner->runtime, lane, sizeof *lane);
}

/* ---- running a program ------------------------------------------------------------------------------------------ */

static uint64_t now_ns(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static tdm_status run_step(const tdm_program* program, int32_t index) {
  const tdm_step* step = &program->steps[index];
  void* scratch = step->plan.scratch_bytes ? program->workspace->data + step->scratch_offset : NULL;
  tdm_trace_event* event = program->run.events ? &program->run.events[index] : NULL;
  if (event) event->resident_ns = event->begin_ns = now_ns();
  const tdm_status status = step->op->ref(step->args, &step->plan, scratch);
  if (event) event->end_ns = now_ns();
  return status == TDM_OK ? status : tdm_fail_prefix(status, "step %d '%s'", index, step->label);
}

/* With run.mutex held. Keeps the failure of the lowest step; the message is this thread's last error. */
static void record_failure(tdm_run* run, int32_t step, tdm_status status) {
  if (step >= run->failed_step) return;
  const tdm_error* error = tdm_last_error();
  run->failed_step = step;
  run->status = status;
  run->raw_code = error->raw_code;
  strncpy(run->message, error->message, sizeof run->message - 1);
}

/* With run.mutex held. False when a failure before `step` ends the lane. */
static bool await_signalers(tdm_program* program, int32_t step) {
  tdm_run* run = &program->run;
  const tdm_schedule* schedule = &program->schedule;
  for (int32_t i = schedule->wait_begin[step]; i < schedule->wait_begin[step + 1]; i++) {
    const int32_t signaler = schedule->signalers[i];
    while (run->failed_step > step && run->done[program->lane_of[signaler]] <= schedule->position[signaler])
      pthread_cond_wait(&run->changed, &run->mutex);
  }
  return run->failed_step > step;
}

static void run_lane(void* ctx, int32_t lane) {
  tdm_program* program = ctx;
  tdm_run* run = &program->run;
  pthread_mutex_lock(&run->mutex);
  for (int32_t step = 0; step < program->schedule.n_steps; step++) {
    if (program->lane_of[step] != lane) continue;
    if (!await_signalers(program, step)) break;
    pthread_mutex_unlock(&run->mutex);
    const tdm_status status = run_step(program, step);
    pthread_mutex_lock(&run->mutex);
    if (status != TDM_OK)
      record_failure(run, step, status);
    else
      run->done[lane]++;
    pthread_cond_broadcast(&run->changed);
    if (status != TDM_OK) break;
  }
  pthread_mutex_unlock(&run->mutex);
}

static void run_lanes(tdm_program* program) {
  for (int32_t lane = 0; lane < program->n_lanes; lane++)
    lane_submit(program->lanes[lane]->state, run_lane, program, lane);
  for (int32_t lane = 0; lane < program->n_lanes; lane++) lane_await(program->lanes[lane]->state);
}

/* Runs one step on this thread; false when it failed. */
static bool run_here(tdm_program* program, int32_t step) {
  const tdm_status status = run_step(program, step);
  if (status != TDM_OK) record_failure(&program->run, step, status);
  program->run.done[program->lane_of[step]]++;
  return status == TDM_OK;
}

static void run_serial(tdm_program* program) {
  for (int32_t step = 0; step < program->schedule.n_steps; step++)
    if (!run_here(program, step)) return;
}

/* splitmix64: a small generator is enough to pick among lanes. */
static uint64_t next_random(uint64_t* state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* The lane's next step, -1 when it has none. `cursor` only moves forward. */
static int32_t next_step(const tdm_program* program, int32_t lane, int32_t* cursor) {
  while (*cursor < program->schedule.n_steps && program->lane_of[*cursor] != lane) ++*cursor;
  return *cursor < program->schedule.n_steps ? *cursor : -1;
}

static bool is_ready(const tdm_program* program, int32_t step) {
  const tdm_schedule* schedule = &program->schedule;
  for (int32_t i = schedule->wait_begin[step]; i < schedule->wait_begin[step + 1]; i++)
    if (program->run.done[program->lane_of[schedule->signalers[i]]] <= schedule->position[schedule->signalers[i]])
      return false;
  return true;
}

/* Picks a lane and stays on it for a random while: long runs ahead find more than single steps do. */
static void run_shuffled(tdm_program* program, uint64_t seed) {
  int32_t cursor[TDM_MAX_LANES] = {0};
  int32_t lane = 0;
  for (int32_t left = program->schedule.n_steps; left > 0;) {
    if (next_random(&seed) % 4 == 0) lane = (int32_t)(next_random(&seed) % (uint64_t)program->n_lanes);
    const int32_t step = next_step(program, lane, &cursor[lane]);
    if (step < 0 || !is_ready(program, step)) {
      lane = (lane + 1) % program->n_lanes;
      continue;
    }
    if (!run_here(program, step)) return;
    cursor[lane]++;
    left--;
  }
}

static tdm_status launch(tdm_program* program, const tdm_launch_config* config) {
  if (config->stream)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': stream %p given, but the host device has no streams",
                    program->name, config->stream);
  tdm_run* run = &program->run;
  memset(run->done, 0, sizeof run->done);
  run->failed_step = (int32_t)program->n_steps;
  run->status = TDM_OK;
  if (config->order == TDM_ORDER_SERIAL)
    run_serial(program);
  else if (config->order == TDM_ORDER_SHUFFLED)
    run_shuffled(program, config->seed);
  else
    run_lanes(program);
  if (run->status == TDM_OK) return TDM_OK;
  return TDM_FAIL_RAW(run->status, run->raw_code, "program '%s': %s", program->name, run->message);
}

/* ---- memory and the rest ---------------------------------------------------------------------------------------- */

static tdm_status device_open(tdm_runtime* runtime) {
  tdm_runtime_config* config = &runtime->config;
  if (config->device_ordinal != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "host device ordinal is %d, there is only 0", config->device_ordinal);
  /* The device's own memory is the C library's, whatever tandem's objects live in. */
  if (!config->device_allocator.alloc) config->device_allocator = tdm_libc_allocator;
  return TDM_OK;
}

static void device_close(tdm_runtime* runtime) {
  (void)runtime;
}

static void device_info(const tdm_runtime* runtime, tdm_runtime_info* info) {
  (void)runtime;
  strcpy(info->device_name, "host");
}

static void* device_alloc(tdm_runtime* runtime, size_t bytes) {
  return tdm_alloc_zeroed(&runtime->config.device_allocator, bytes, 256, "device");
}

static void device_free(tdm_runtime* runtime, void* memory, size_t bytes) {
  runtime->config.device_allocator.free(runtime->config.device_allocator.ctx, memory, bytes);
}

static tdm_status device_copy(tdm_runtime* runtime, void* destination, const void* source, size_t bytes) {
  (void)runtime;
  memcpy(destination, source, bytes);
  return TDM_OK;
}

static tdm_status device_synchronize(tdm_runtime* runtime) {
  (void)runtime;
  return TDM_OK;
}

static tdm_status program_open(tdm_program* program) {
  if (!program->trace) return TDM_OK;
  tdm_trace_event* events = tdm_host_alloc_array(program->runtime, program->n_steps, sizeof *events);
  if (!events) return TDM_OUT_OF_MEMORY;
  for (int32_t i = 0; i < program->n_steps; i++)
    events[i] = (tdm_trace_event){.step = i, .lane = program->lane_of[i], .sm = program->lane_of[i]};
  program->run.events = events;
  return TDM_OK;
}

static void program_close(tdm_program* program) {
  tdm_trace_event** events = &program->run.events;
  tdm_host_free(program->runtime, *events, (size_t)program->n_steps * sizeof **events);
  *events = NULL;
}

static tdm_status trace(tdm_program* program, tdm_trace_event* events, int64_t* out_n) {
  *out_n = program->n_steps;
  if (events) memcpy(events, program->run.events, (size_t)program->n_steps * sizeof *events);
  return TDM_OK;
}

/* A sealed program is itself what a capture would give: it never changes and knows every address. */
static tdm_status capture(tdm_program* program, void** out_state) {
  (void)program;
  *out_state = NULL;
  return TDM_OK;
}

static tdm_status replay(tdm_program* program, void* state, const tdm_launch_config* config) {
  (void)state;
  return launch(program, config);
}

static void release(tdm_program* program, void* state) {
  (void)program;
  (void)state;
}

const tdm_device tdm_host_device = {
    .open = device_open,
    .close = device_close,
    .info = device_info,
    .alloc = device_alloc,
    .free = device_free,
    .write = device_copy,
    .read = device_copy,
    .synchronize = device_synchronize,
    .lane_open = lane_open,
    .lane_close = lane_close,
    .program_open = program_open,
    .program_close = program_close,
    .launch = launch,
    .capture = capture,
    .replay = replay,
    .release = release,
    .trace = trace,
};
