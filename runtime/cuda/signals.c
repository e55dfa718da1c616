#include "runtime/cuda/signals.h"

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static tdm_status check_lanes(const tdm_program* program) {
  for (int32_t i = 0; i < program->n_lanes; i++) {
    const tdm_lane_info* info = &program->lanes[i]->info;
    if (info->kind != TDM_LANE_GREEN)
      return TDM_FAIL(TDM_UNSUPPORTED,
                      "program '%s' has %d lanes and waits by signal, but lane '%s' is not green: a kernel that waits "
                      "there could keep the SMs from the one that it waits for; use TDM_WAIT_EDGE or green lanes",
                      program->name, program->n_lanes, info->name);
    const tdm_lane_info* first = &program->lanes[0]->info;
    if (info->partition != first->partition)
      return TDM_FAIL(TDM_UNSUPPORTED,
                      "program '%s' waits by signal, but lanes '%s' and '%s' are of partitions %d and %d and may have "
                      "SMs in common; use TDM_WAIT_EDGE or lanes of one partition",
                      program->name, first->name, info->name, first->partition, info->partition);
  }
  return TDM_OK;
}

/* Place of a step among the signals; -1 when nobody waits for it. */
static int32_t signal_of(const tdm_cuda_signals* signals, int32_t step) {
  int32_t low = 0, high = signals->n_signals;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (signals->steps[middle] < step)
      low = middle + 1;
    else
      high = middle;
  }
  return low < signals->n_signals && signals->steps[low] == step ? low : -1;
}

static tdm_status list_signals(tdm_cuda_signals* signals) {
  const tdm_schedule* schedule = &signals->program->schedule;
  tdm_runtime* runtime = signals->program->runtime;
  if (!(signals->steps = tdm_host_alloc_array(runtime, schedule->n_steps, sizeof *signals->steps)))
    return TDM_OUT_OF_MEMORY;
  for (int32_t i = 0; i < schedule->n_waits; i++) signals->steps[schedule->signalers[i]] = 1;
  for (int32_t step = 0; step < schedule->n_steps; step++)
    if (signals->steps[step]) signals->steps[signals->n_signals++] = step; /* never ahead of `step` */
  if (signals->n_signals > UINT16_MAX)
    return TDM_FAIL(TDM_UNSUPPORTED, "program '%s': other lanes wait for %d of its steps; by signal %d are possible",
                    signals->program->name, signals->n_signals, UINT16_MAX);
  return TDM_OK;
}

static tdm_status make_board(tdm_cuda* cuda, tdm_cuda_signals* signals) {
  tdm_runtime* runtime = signals->program->runtime;
  TDM_TRY(tdm_cuda_kernels_find(cuda, "tdm_epoch_sm90", &signals->epoch));
  void* memory = NULL;
  TDM_TRY_CU(&cuda->driver, cuMemHostAlloc, &memory, sizeof *signals->fault,
             CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
  signals->fault = memory;
  *signals->fault = (tdm_signal_fault){0};
  signals->board_bytes = sizeof(tdm_signal_board) + (size_t)signals->n_signals * sizeof(tdm_signal);
  if (!(signals->board = tdm_device_alloc(runtime, signals->board_bytes))) return tdm_last_error()->status;
  const tdm_signal_board board = {.limit_ns = (uint64_t)signals->program->signal_limit_ms * 1000000,
                                  .fault = signals->fault};
  return runtime->device->write(runtime, signals->board, &board, sizeof board);
}

tdm_status tdm_cuda_signals_open(const tdm_program* program, tdm_cuda_signals* out_signals) {
  tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  out_signals->program = program;
  if (program->wait_form != TDM_WAIT_SIGNAL || program->schedule.n_waits == 0) return TDM_OK;
  TDM_TRY(check_lanes(program));
  TDM_TRY(list_signals(out_signals));
  TDM_TRY(make_board(cuda, out_signals));
  pthread_mutex_lock(&cuda->watch_mutex);
  out_signals->next = cuda->watched;
  cuda->watched = out_signals;
  pthread_mutex_unlock(&cuda->watch_mutex);
  return TDM_OK;
}

void tdm_cuda_signals_close(tdm_cuda_signals* signals) {
  if (!signals->program) return;
  tdm_runtime* runtime = signals->program->runtime;
  tdm_cuda* cuda = tdm_cuda_of(runtime);
  pthread_mutex_lock(&cuda->watch_mutex);
  for (tdm_cuda_signals** link = &cuda->watched; *link; link = &(*link)->next)
    if (*link == signals) {
      *link = signals->next;
      break;
    }
  pthread_mutex_unlock(&cuda->watch_mutex);
  tdm_device_free(runtime, signals->board, signals->board_bytes); /* waits for what may still write a fault */
  if (signals->fault) (void)cuda->driver.cuMemFreeHost(signals->fault);
  tdm_host_free(runtime, signals->steps, (size_t)signals->program->n_steps * sizeof *signals->steps);
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

tdm_step_sync tdm_cuda_signals_of(const tdm_cuda_signals* signals, int32_t step, bool first, bool last) {
  tdm_step_sync sync = {.board = signals->board, .step = step, .publishes = -1};
  if (!signals->board) return sync;
  const tdm_schedule* schedule = &signals->program->schedule;
  for (int32_t i = schedule->wait_begin[step]; first && i < schedule->wait_begin[step + 1]; i++)
    sync.waits[sync.n_waits++] = (uint16_t)signal_of(signals, schedule->signalers[i]);
  if (last) sync.publishes = signal_of(signals, step);
  return sync;
}

tdm_status tdm_cuda_signals_begin(const tdm_cuda_signals* signals, CUstream stream) {
  if (!signals->board) return TDM_OK;
  const CUlaunchConfig config = {
      .gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = 1, .blockDimY = 1, .blockDimZ = 1, .hStream = stream};
  const tdm_signal_board* board = signals->board;
  void* params[] = {(void*)&board};
  TDM_TRY_CU(&tdm_cuda_of(signals->program->runtime)->driver, cuLaunchKernelEx, &config, (CUfunction)signals->epoch,
             params, NULL);
  return TDM_OK;
}

/* ---- when a signal does not come -------------------------------------------------------------------------------- */

static tdm_status tell(const tdm_cuda_signals* signals, const tdm_signal_fault* fault) {
  const tdm_program* program = signals->program;
  const uint32_t signal = fault->signaler, step = fault->step;
  if (step >= (uint32_t)program->n_steps || signal >= (uint32_t)signals->n_signals)
    return TDM_FAIL(TDM_INTERNAL, "program '%s': a wait ran out of time, but its note is of step %u and signal %u",
                    program->name, step, signal);
  const tdm_step *waiter = &program->steps[step], *signaler = &program->steps[signals->steps[signal]];
  return TDM_FAIL(
      TDM_TIMEOUT,
      "program '%s', launch %u: step %u '%s' on lane '%s' waited %u ms for step %d '%s' on lane '%s', whose "
      "signal is still of launch %u; the launch went on without it and its results are void",
      program->name, fault->epoch, step, waiter->label, tdm_lane_name(program->lanes[waiter->lane]),
      program->signal_limit_ms, signals->steps[signal], signaler->label, tdm_lane_name(program->lanes[signaler->lane]),
      fault->seen);
}

tdm_status tdm_cuda_signals_check(tdm_cuda* cuda, const tdm_program* program) {
  tdm_status status = TDM_OK;
  pthread_mutex_lock(&cuda->watch_mutex);
  for (tdm_cuda_signals* one = cuda->watched; one && status == TDM_OK; one = one->next) {
    if (program && one->program != program) continue;
    const uint32_t count = __atomic_load_n(&one->fault->count, __ATOMIC_ACQUIRE);
    if (count == one->reported) continue;
    one->reported = count;
    status = tell(one, one->fault);
  }
  pthread_mutex_unlock(&cuda->watch_mutex);
  return status;
}
