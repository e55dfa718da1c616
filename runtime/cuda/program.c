#include <string.h>

#include "runtime/cuda/signals.h"

/* A sealed program on a CUDA device: launches with their parameters, and an event or a signal for each step that others
 * wait for.
 *
 * Issuing it puts every step on its lane's stream, in program order. The caller's stream forks into the lanes and they
 * join it again, with as few edges as the derived waits leave necessary:
 *
 *   origin ──●────────────────────────────────●──►
 *            ├──► main  s0 ── s1 ──────── s3 ─┘        a lane whose first step waits for another lane needs no fork,
 *            (fork)      └──► side  s2 ──┘             a lane whose last step is waited for needs no join
 *
 * With waits by signal all lanes fork at the head and join at the tail, and there are no other edges. A kernel that
 * directly follows another of its lane is launched with programmatic stream serialisation (kernels/device/step.cuh). */

/* What a step launches. */
typedef struct cuda_step {
  tdm_encoded_step encoded;
  CUkernel kernels[TDM_STEP_LAUNCHES];
  tdm_step_sync sync[TDM_STEP_LAUNCHES];
  CUevent done;  /* NULL when nobody waits for the step */
  CUevent begun; /* recorded when all its CTAs run; NULL where no step starts after it */
} cuda_step;

typedef struct cuda_program {
  cuda_step* steps; /* [n_steps] */
  void* state;      /* the steps' own memory, one piece */
  size_t state_bytes;
  tdm_trace_slot* slots; /* on the device, one a CTA of every launch, in their order; NULL: not traced */
  int64_t n_slots;
  tdm_cuda_signals signals;
  CUevent fork;
  CUevent join[TDM_MAX_LANES]; /* NULL where a lane needs no join */
  CUevent finished;            /* the last launch on a stream of the caller's */
} cuda_program;

static CUstream lane_stream(const tdm_program* program, int32_t lane) {
  return ((tdm_cuda_lane*)program->lanes[lane]->state)->stream;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static tdm_status encode_tensor_map(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  const tdm_cuda* cuda = ctx;
  const CUtensorMapDataType type = tile->dtype == TDM_BF16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : tile->dtype == TDM_F32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                                            : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  /* Boxes are rows of 128 bytes. To ask L2 for 256 at a time costs 2 to 7 % of the bandwidth with weights, 7 where 256
   * does not divide a row (docs/kernels/gemm_fp8_swap.md). */
  const CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  const cuuint32_t ones[TDM_TILE_DIMS] = {1, 1, 1, 1};
  cuuint64_t dims[TDM_TILE_DIMS], strides[TDM_TILE_DIMS - 1];
  for (int i = 0; i < TDM_TILE_DIMS; i++) dims[i] = tile->dim[i];
  for (int i = 0; i < TDM_TILE_DIMS - 1; i++) strides[i] = tile->stride_bytes[i];
  TDM_TRY_CU(&cuda->driver, cuTensorMapEncodeTiled, (CUtensorMap*)(void*)out_map, type, tile->rank, tile->data, dims,
             strides, tile->box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
             tile->swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return TDM_OK;
}

static tdm_status encode_step(tdm_program* program, cuda_program* own, int64_t index, size_t state_offset) {
  tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  const tdm_step* step = &program->steps[index];
  cuda_step* out = &own->steps[index];
  if (!step->op->encode) return TDM_FAIL(TDM_UNSUPPORTED, "%s has no kernel for CUDA devices", step->op->name);
  const tdm_encode_env env = {
      .sms = tdm_lane_sms(program->lanes[step->lane]),
      .scratch = step->plan.scratch_bytes ? program->workspace->data + step->scratch_offset : NULL,
      .state = step->plan.state_bytes ? (uint8_t*)own->state + state_offset : NULL,
      .tensor_map = encode_tensor_map,
      .tensor_map_ctx = cuda,
  };
  TDM_TRY(step->op->encode(step->args, &step->plan, &env, &out->encoded));
  for (int32_t i = 0; i < out->encoded.n_launches; i++)
    TDM_TRY(tdm_cuda_kernels_find(cuda, out->encoded.launches[i].launch.kernel, &out->kernels[i]));
  return TDM_OK;
}

static size_t padded(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

static tdm_status encode_steps(tdm_program* program, cuda_program* own) {
  for (int64_t i = 0; i < program->n_steps; i++) own->state_bytes += padded(program->steps[i].plan.state_bytes);
  if (own->state_bytes && !(own->state = tdm_device_alloc(program->runtime, own->state_bytes)))
    return tdm_last_error()->status;
  size_t offset = 0;
  for (int64_t i = 0; i < program->n_steps; i++) {
    const tdm_status status = encode_step(program, own, i, offset);
    if (status != TDM_OK) return tdm_fail_prefix(status, "step %d '%s'", (int)i, program->steps[i].label);
    offset += padded(program->steps[i].plan.state_bytes);
  }
  return TDM_OK;
}

/* Whether the step, or its last launch alone, writes any of the view's memory. */
static bool writes(const tdm_step* step, const tdm_view* view, bool last) {
  tdm_use read = {0}, use = {0};
  tdm_use_describe(view, (uint64_t)(uintptr_t)view->buffer->data, &read);
  for (int32_t i = 0; i < step->op->n_operands; i++) {
    const tdm_operand* operand = &step->op->operands[i];
    const tdm_view* written = tdm_step_operand(step, i);
    if (operand->access == TDM_READ || (last && operand->ahead) || !tdm_view_present(written)) continue;
    tdm_use_describe(written, (uint64_t)(uintptr_t)written->buffer->data, &use);
    if (use.begin < read.end && read.begin < use.end) return true;
  }
  return false;
}

/* Whether no step of the program writes what the step's kernels fetch ahead. Temporaries are always written. */
static bool may_fetch_ahead(const tdm_program* program, int64_t index) {
  const tdm_step* step = &program->steps[index];
  for (int32_t i = 0; i < step->op->n_operands; i++) {
    const tdm_view* view = tdm_step_operand(step, i);
    if (!step->op->operands[i].early || !tdm_view_present(view)) continue;
    if (view->buffer->temp >= 0) return false;
    for (int64_t other = 0; other < program->n_steps; other++)
      if (writes(&program->steps[other], view, false)) return false;
  }
  return true;
}

/* Whether the last launch of the step before `index`, in every order of issue, comes after all that write the view for
 * it. */
static bool written_before(const tdm_program* program, const tdm_view* view, int64_t index) {
  for (int64_t other = 0; other + 1 < index; other++)
    if (writes(&program->steps[other], view, false) &&
        !tdm_schedule_ordered(&program->schedule, program->lane_of, (int32_t)other, (int32_t)index - 1))
      return false;
  return !writes(&program->steps[index - 1], view, true);
}

/* Whether the step's kernels, begun while those of the step before still run, may read what is meant for that: the step
 * before is the same in every order of issue, admits them late, and has waited for those that write it. */
static bool may_read_ahead(const tdm_program* program, const cuda_program* own, int64_t index) {
  if (index == 0 || program->lane_of[index - 1] != program->lane_of[index] || !may_fetch_ahead(program, index))
    return false;
  const tdm_step* step = &program->steps[index];
  const tdm_encoded_step* launched = &own->steps[index - 1].encoded;
  if (launched->n_launches == 0 || !launched->launches[launched->n_launches - 1].launch.admits_late) return false;
  for (int32_t i = 0; i < step->op->n_operands; i++) {
    const tdm_view* view = tdm_step_operand(step, i);
    if (step->op->operands[i].ahead && tdm_view_present(view) && !written_before(program, view, index)) return false;
  }
  return true;
}

static tdm_status make_slots(const tdm_program* program, cuda_program* own) {
  if (!program->trace) return TDM_OK;
  for (int64_t i = 0; i < program->n_steps; i++)
    for (int32_t k = 0; k < own->steps[i].encoded.n_launches; k++)
      own->n_slots += own->steps[i].encoded.launches[k].launch.grid;
  own->slots = tdm_device_alloc(program->runtime, (size_t)own->n_slots * sizeof *own->slots);
  return own->slots ? TDM_OK : tdm_last_error()->status;
}

static void connect_steps(const tdm_program* program, cuda_program* own) {
  int64_t slot = 0;
  for (int64_t i = 0; i < program->n_steps; i++) {
    cuda_step* step = &own->steps[i];
    const bool fetches_ahead = may_fetch_ahead(program, i), reads_ahead = may_read_ahead(program, own, i);
    for (int32_t k = 0; k < step->encoded.n_launches; k++) {
      step->sync[k] = tdm_cuda_signals_of(&own->signals, (int32_t)i, k == 0, k + 1 == step->encoded.n_launches);
      step->sync[k].fetches_ahead = fetches_ahead;
      step->sync[k].reads_ahead = k == 0 && reads_ahead;
      if (own->slots) step->sync[k].trace = own->slots + slot;
      slot += step->encoded.launches[k].launch.grid;
    }
  }
}

/* Whether another lane's last step implies that all of this lane is done. */
static bool is_joined(const tdm_program* program, const int32_t* last_of_lane, int32_t lane) {
  const tdm_schedule* schedule = &program->schedule;
  for (int32_t other = 0; other < program->n_lanes; other++)
    if (other != lane && tdm_schedule_ordered(schedule, program->lane_of, last_of_lane[lane], last_of_lane[other]))
      return true;
  return false;
}

/* The step whose start this one's has to wait for, or -1. On lanes with SMs of their own none has to. */
static int32_t starts_after(const tdm_program* program, int64_t index) {
  const tdm_step *step = &program->steps[index], *earlier = &program->steps[step->starts_after];
  const tdm_lane_kind kind = program->lanes[step->lane]->info.kind, other = program->lanes[earlier->lane]->info.kind;
  return step->lane == earlier->lane || kind == TDM_LANE_GREEN || other == TDM_LANE_GREEN ? -1 : step->starts_after;
}

static tdm_status make_events(tdm_program* program, cuda_program* own) {
  const tdm_cuda_driver* driver = &tdm_cuda_of(program->runtime)->driver;
  const tdm_schedule* schedule = &program->schedule;
  int32_t last_of_lane[TDM_MAX_LANES] = {0};
  const bool edges = !own->signals.board;
  for (int32_t i = 0; edges && i < schedule->n_waits; i++) {
    CUevent* done = &own->steps[schedule->signalers[i]].done;
    if (!*done) TDM_TRY_CU(driver, cuEventCreate, done, CU_EVENT_DISABLE_TIMING);
  }
  for (int32_t i = 0; i < schedule->n_steps; i++) {
    const int32_t earlier = starts_after(program, i);
    if (earlier >= 0 && !own->steps[earlier].begun)
      TDM_TRY_CU(driver, cuEventCreate, &own->steps[earlier].begun, CU_EVENT_DISABLE_TIMING);
  }
  TDM_TRY_CU(driver, cuEventCreate, &own->fork, CU_EVENT_DISABLE_TIMING);
  TDM_TRY_CU(driver, cuEventCreate, &own->finished, CU_EVENT_DISABLE_TIMING);
  for (int32_t step = 0; step < schedule->n_steps; step++) last_of_lane[program->lane_of[step]] = step;
  for (int32_t lane = 0; lane < program->n_lanes; lane++)
    if (!edges || !is_joined(program, last_of_lane, lane))
      TDM_TRY_CU(driver, cuEventCreate, &own->join[lane], CU_EVENT_DISABLE_TIMING);
  return TDM_OK;
}

tdm_status tdm_cuda_program_open(tdm_program* program) {
  tdm_runtime* runtime = program->runtime;
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  cuda_program* own = tdm_host_alloc(runtime, sizeof *own);
  if (!own) return TDM_OUT_OF_MEMORY;
  program->device_state = own;
  if (!(own->steps = tdm_host_alloc_array(runtime, program->n_steps, sizeof *own->steps))) return TDM_OUT_OF_MEMORY;
  TDM_TRY(tdm_cuda_enter(cuda));
  tdm_status status = encode_steps(program, own); /* tensor maps are encoded in the current context */
  if (status == TDM_OK) status = tdm_cuda_signals_open(program, &own->signals);
  if (status == TDM_OK) status = make_slots(program, own);
  if (status == TDM_OK) status = make_events(program, own);
  if (status == TDM_OK) connect_steps(program, own);
  tdm_cuda_leave(cuda);
  return status;
}

void tdm_cuda_program_close(tdm_program* program) {
  tdm_runtime* runtime = program->runtime;
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  cuda_program* own = program->device_state;
  if (!own) return;
  const bool entered = tdm_cuda_enter_anyway(cuda);
  for (int64_t i = 0; own->steps && i < program->n_steps; i++) {
    if (own->steps[i].done) (void)cuda->driver.cuEventDestroy(own->steps[i].done);
    if (own->steps[i].begun) (void)cuda->driver.cuEventDestroy(own->steps[i].begun);
  }
  for (int32_t lane = 0; lane < TDM_MAX_LANES; lane++)
    if (own->join[lane]) (void)cuda->driver.cuEventDestroy(own->join[lane]);
  if (own->fork) (void)cuda->driver.cuEventDestroy(own->fork);
  if (own->finished) {
    /* What ran on a stream of the caller's still uses the program's memory. (The runtime's own streams: device_free.)
     */
    if (entered)
      tdm_cuda_waited(runtime, cuda->driver.cuEventSynchronize(own->finished),
                      "waiting for a program's last launch to destroy it");
    (void)cuda->driver.cuEventDestroy(own->finished);
  }
  tdm_cuda_signals_close(&own->signals);
  tdm_device_free(runtime, own->slots, (size_t)own->n_slots * sizeof *own->slots);
  if (entered) tdm_cuda_leave(cuda);
  tdm_device_free(runtime, own->state, own->state_bytes);
  tdm_host_free(runtime, own->steps, (size_t)program->n_steps * sizeof *own->steps);
  tdm_host_free(runtime, own, sizeof *own);
  program->device_state = NULL;
}

/* ---- issuing ---------------------------------------------------------------------------------------------------- */

/* `lanes`: each on its stream. `follows`: the stream's last operation is a kernel of this launch of the program. */
static tdm_status launch_step(const tdm_program* program, int64_t index, bool lanes, bool follows, CUstream stream) {
  const tdm_cuda_driver* driver = &tdm_cuda_of(program->runtime)->driver;
  cuda_step* step = &((cuda_program*)program->device_state)->steps[index];
  for (int32_t i = 0; i < step->encoded.n_launches; i++) {
    tdm_encoded_launch* one = &step->encoded.launches[i];
    CUlaunchAttribute attributes[2];
    unsigned n_attributes = 0;
    if (follows || i > 0)
      attributes[n_attributes++] = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                                       .value.programmaticStreamSerializationAllowed = 1};
    if (lanes && i == 0 && step->begun)
      attributes[n_attributes++] = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT,
                                                       .value.launchCompletionEvent.event = step->begun};
    const CUlaunchConfig config = {.gridDimX = one->launch.grid,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = one->launch.block,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .sharedMemBytes = one->launch.shared_bytes,
                                   .hStream = stream,
                                   .attrs = attributes,
                                   .numAttrs = n_attributes};
    void* params[] = {one->params, &step->sync[i]};
    const CUresult result = driver->cuLaunchKernelEx(&config, (CUfunction)step->kernels[i], params, NULL);
    if (result == CUDA_SUCCESS) continue;
    const tdm_status status = tdm_cuda_fail(driver, result, "cuLaunchKernelEx", __FILE__, __LINE__);
    return tdm_fail_prefix(status, "step %d '%s', kernel %s, grid %u, block %u, %u bytes of shared memory", (int)index,
                           program->steps[index].label, one->launch.kernel, one->launch.grid, one->launch.block,
                           one->launch.shared_bytes);
  }
  return TDM_OK;
}

static tdm_status issue_serial(const tdm_program* program, CUstream origin) {
  const cuda_program* own = program->device_state;
  TDM_TRY(tdm_cuda_signals_begin(&own->signals, origin));
  for (int64_t i = 0; i < program->n_steps; i++) TDM_TRY(launch_step(program, i, false, i > 0, origin));
  return TDM_OK;
}

static tdm_status issue_on_lanes(const tdm_program* program, CUstream origin) {
  const tdm_cuda_driver* driver = &tdm_cuda_of(program->runtime)->driver;
  const cuda_program* own = program->device_state;
  const tdm_schedule* schedule = &program->schedule;
  const bool edges = !own->signals.board;
  TDM_TRY(tdm_cuda_signals_begin(&own->signals, origin));
  TDM_TRY_CU(driver, cuEventRecord, own->fork, origin);
  for (int32_t i = 0; i < schedule->n_steps; i++) {
    const CUstream stream = lane_stream(program, program->lane_of[i]);
    const int32_t first_wait = schedule->wait_begin[i], end = edges ? schedule->wait_begin[i + 1] : first_wait;
    const bool first = schedule->position[i] == 0;
    if (first && first_wait == end) TDM_TRY_CU(driver, cuStreamWaitEvent, stream, own->fork, 0);
    for (int32_t k = first_wait; k < end; k++)
      TDM_TRY_CU(driver, cuStreamWaitEvent, stream, own->steps[schedule->signalers[k]].done, 0);
    const int32_t earlier = starts_after(program, i);
    if (earlier >= 0) TDM_TRY_CU(driver, cuStreamWaitEvent, stream, own->steps[earlier].begun, 0);
    TDM_TRY(launch_step(program, i, true, !first && first_wait == end && earlier < 0, stream));
    if (own->steps[i].done) TDM_TRY_CU(driver, cuEventRecord, own->steps[i].done, stream);
  }
  for (int32_t lane = 0; lane < program->n_lanes; lane++) {
    if (!own->join[lane]) continue;
    TDM_TRY_CU(driver, cuEventRecord, own->join[lane], lane_stream(program, lane));
    TDM_TRY_CU(driver, cuStreamWaitEvent, origin, own->join[lane], 0);
  }
  return TDM_OK;
}

/* After a failure: what is on the lanes already has not joined the origin, and must not run into what comes next. */
static void drain_lanes(const tdm_program* program) {
  const tdm_cuda_driver* driver = &tdm_cuda_of(program->runtime)->driver;
  for (int32_t lane = 0; lane < program->n_lanes; lane++) (void)driver->cuStreamSynchronize(lane_stream(program, lane));
}

/* Remembers the end of a launch on a stream of the caller's: the program must not go before it. */
static tdm_status mark_finished(const tdm_program* program, const tdm_launch_config* config) {
  const cuda_program* own = program->device_state;
  if (!config->stream) return TDM_OK;
  TDM_TRY_CU(&tdm_cuda_of(program->runtime)->driver, cuEventRecord, own->finished, (CUstream)config->stream);
  return TDM_OK;
}

static CUstream origin_of(const tdm_program* program, const tdm_launch_config* config) {
  return config->stream ? (CUstream)config->stream : tdm_cuda_of(program->runtime)->stream;
}

tdm_status tdm_cuda_launch(tdm_program* program, const tdm_launch_config* config) {
  const tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  if (config->order == TDM_ORDER_SHUFFLED)
    return TDM_FAIL(TDM_UNSUPPORTED, "program '%s': shuffled order is for the host device", program->name);
  TDM_TRY(tdm_cuda_signals_check(tdm_cuda_of(program->runtime), program));
  TDM_TRY(tdm_cuda_enter(cuda));
  const CUstream origin = origin_of(program, config);
  const bool serial = config->order == TDM_ORDER_SERIAL;
  tdm_status status = serial ? issue_serial(program, origin) : issue_on_lanes(program, origin);
  const tdm_status marked = mark_finished(program, config); /* also what was issued before a failure */
  if (status == TDM_OK) status = marked;
  if (status != TDM_OK && !serial) drain_lanes(program);
  tdm_cuda_leave(cuda);
  return status == TDM_OK ? status : tdm_fail_prefix(status, "program '%s'", program->name);
}

/* ---- graphs ----------------------------------------------------------------------------------------------------- */

static tdm_status capture_in_context(tdm_program* program, CUgraph* out_graph) {
  const tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  TDM_TRY_CU(&cuda->driver, cuStreamBeginCapture, cuda->capture, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  const tdm_status status = issue_on_lanes(program, cuda->capture);
  const CUresult ended = cuda->driver.cuStreamEndCapture(cuda->capture, out_graph); /* also after a failure */
  TDM_TRY(status);
  return ended == CUDA_SUCCESS ? TDM_OK : tdm_cuda_fail(&cuda->driver, ended, "cuStreamEndCapture", __FILE__, __LINE__);
}

static tdm_status instantiate(const tdm_cuda* cuda, CUgraph graph, CUgraphExec* out_exec) {
  TDM_TRY_CU(&cuda->driver, cuGraphInstantiateWithFlags, out_exec, graph, 0);
  return TDM_OK;
}

tdm_status tdm_cuda_capture(tdm_program* program, void** out_state) {
  const tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  TDM_TRY(tdm_cuda_enter(cuda));
  tdm_status status = capture_in_context(program, &graph);
  if (status == TDM_OK) status = instantiate(cuda, graph, &exec);
  if (graph) (void)cuda->driver.cuGraphDestroy(graph);
  tdm_cuda_leave(cuda);
  if (status != TDM_OK) return tdm_fail_prefix(status, "capturing program '%s'", program->name);
  *out_state = exec;
  return TDM_OK;
}

static tdm_status launch_graph(const tdm_cuda* cuda, CUgraphExec exec, CUstream stream) {
  TDM_TRY_CU(&cuda->driver, cuGraphLaunch, exec, stream);
  return TDM_OK;
}

tdm_status tdm_cuda_replay(tdm_program* program, void* state, const tdm_launch_config* config) {
  const tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  if (config->order != TDM_ORDER_LANES)
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "program '%s': a captured graph replays on its lanes; another order is for eager launches",
                    program->name);
  TDM_TRY(tdm_cuda_signals_check(tdm_cuda_of(program->runtime), program));
  TDM_TRY(tdm_cuda_enter(cuda));
  tdm_status status = launch_graph(cuda, (CUgraphExec)state, origin_of(program, config));
  if (status == TDM_OK) status = mark_finished(program, config);
  tdm_cuda_leave(cuda);
  return status == TDM_OK ? status : tdm_fail_prefix(status, "program '%s'", program->name);
}

void tdm_cuda_release(tdm_program* program, void* state) {
  const tdm_cuda* cuda = tdm_cuda_of(program->runtime);
  if (!state) return;
  const bool entered = tdm_cuda_enter_anyway(cuda);
  (void)cuda->driver.cuGraphExecDestroy((CUgraphExec)state);
  if (entered) tdm_cuda_leave(cuda);
}

/* ---- traces ----------------------------------------------------------------------------------------------------- */

static void fill_events(const tdm_program* program, const tdm_trace_slot* slots, tdm_trace_event* events) {
  const cuda_program* own = program->device_state;
  int64_t slot = 0;
  for (int32_t i = 0; i < program->n_steps; i++)
    for (int32_t k = 0; k < own->steps[i].encoded.n_launches; k++)
      for (uint32_t cta = 0; cta < own->steps[i].encoded.launches[k].launch.grid; cta++, slot++)
        events[slot] = (tdm_trace_event){.step = i,
                                         .launch = k,
                                         .lane = program->lane_of[i],
                                         .sm = (int32_t)slots[slot].sm,
                                         .resident_ns = slots[slot].resident,
                                         .begin_ns = slots[slot].begin,
                                         .end_ns = slots[slot].end};
}

tdm_status tdm_cuda_trace(tdm_program* program, tdm_trace_event* events, int64_t* out_n) {
  tdm_runtime* runtime = program->runtime;
  const cuda_program* own = program->device_state;
  *out_n = own->n_slots;
  if (!events) return TDM_OK;
  const size_t bytes = (size_t)own->n_slots * sizeof(tdm_trace_slot);
  tdm_trace_slot* slots = tdm_host_alloc(runtime, bytes);
  if (!slots) return TDM_OUT_OF_MEMORY;
  const tdm_status status = runtime->device->read(runtime, slots, own->slots, bytes);
  if (status == TDM_OK) fill_events(program, slots, events);
  tdm_host_free(runtime, slots, bytes);
  return status;
}
