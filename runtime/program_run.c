#include <string.h>

#include "runtime/program.h"

/* Running a sealed program on the host device.
 *
 * Lanes side by side: each lane's thread walks its own steps; `run.done[lane]` counts the steps that are done, and a
 * step with waits sleeps until the counts it needs are reached. When a step fails, later steps are not started, but
 * earlier ones still are: so the failure reported is always the first in program order, however the threads ran. */

tdm_status tdm_launch_config_init(tdm_launch_config* config, size_t size) {
  const tdm_launch_config defaults = {.size = size, .order = TDM_ORDER_LANES};
  return tdm_config_init("tdm_launch_config", &defaults, sizeof defaults, config, size);
}

static tdm_status run_step(const tdm_program* program, int32_t index) {
  const tdm_step* step = &program->steps[index];
  void* scratch = step->plan.scratch_bytes ? program->workspace->data + step->scratch_offset : NULL;
  const tdm_status status = step->op->ref(step->args, &step->plan, scratch);
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
    tdm_lane_submit(program->lanes[lane], run_lane, program, lane);
  for (int32_t lane = 0; lane < program->n_lanes; lane++) tdm_lane_await(program->lanes[lane]);
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

static tdm_status check_launch(const tdm_program* program, const tdm_launch_config* config) {
  if (!program->sealed)
    return TDM_FAIL(TDM_INVALID_STATE, "program '%s' must be sealed before it is launched", program->name);
  if (config->order < TDM_ORDER_LANES || config->order > TDM_ORDER_SHUFFLED)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': order %d is no tdm_order", program->name, (int)config->order);
  if (config->stream)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': stream %p given, but the host device has no streams",
                    program->name, config->stream);
  return TDM_OK;
}

tdm_status tdm_program_launch(tdm_program* program, const tdm_launch_config* config) {
  if (!program) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_launch: program must not be NULL");
  tdm_launch_config wanted;
  TDM_TRY(tdm_launch_config_init(&wanted, sizeof wanted));
  if (config) TDM_TRY(tdm_config_copy("tdm_launch_config", config, sizeof wanted, &wanted));
  TDM_TRY(check_launch(program, &wanted));

  pthread_mutex_lock(&program->runtime->launch_mutex);
  tdm_run* run = &program->run;
  memset(run->done, 0, sizeof run->done);
  run->failed_step = (int32_t)program->n_steps;
  run->status = TDM_OK;
  if (wanted.order == TDM_ORDER_SERIAL)
    run_serial(program);
  else if (wanted.order == TDM_ORDER_SHUFFLED)
    run_shuffled(program, wanted.seed);
  else
    run_lanes(program);
  const tdm_status status = run->status;
  if (status != TDM_OK) (void)TDM_FAIL_RAW(status, run->raw_code, "program '%s': %s", program->name, run->message);
  pthread_mutex_unlock(&program->runtime->launch_mutex);
  return status;
}
