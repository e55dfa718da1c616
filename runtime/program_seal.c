#include <inttypes.h>
#include <string.h>

#include "runtime/device.h"
#include "runtime/program.h"
#include "runtime/workspace.h"

/* Everything that seal works out before it changes the program. */
typedef struct sealing {
  tdm_program* program;
  int32_t* lane_of;
  tdm_use* uses;
  int64_t n_uses, uses_capacity;
  tdm_schedule schedule;
  tdm_block* blocks; /* the temporaries, then the scratch of each step that has some */
  int32_t n_blocks;
  size_t workspace_bytes;
  tdm_buffer* workspace;
} sealing;

tdm_status tdm_seal_config_init(tdm_seal_config* config, size_t size) {
  const tdm_seal_config defaults = {.size = size, .wait_form = TDM_WAIT_EDGE, .signal_limit_ms = 10000};
  return tdm_config_init("tdm_seal_config", &defaults, sizeof defaults, config, size);
}

static void plan_steps(tdm_program* program) {
  for (int64_t i = 0; i < program->n_steps; i++) {
    tdm_step* step = &program->steps[i];
    step->plan = (tdm_plan){.variant = "ref", .splits = 1};
    step->op->plan(step->args, tdm_lane_sms(program->lanes[step->lane]), &step->plan);
  }
}

static tdm_status add_use(sealing* seal, tdm_use use) {
  TDM_TRY(tdm_host_grow(seal->program->runtime, (void**)&seal->uses, seal->n_uses, &seal->uses_capacity, sizeof use));
  seal->uses[seal->n_uses++] = use;
  return TDM_OK;
}

static tdm_use operand_use(int32_t step, const tdm_view* view, tdm_access access) {
  const tdm_buffer* buffer = view->buffer;
  /* Temporaries are spaces of their own. All other buffers share one, by address: two may wrap the same memory. */
  tdm_use use = {.step = step, .space = buffer->temp, .access = access};
  tdm_use_describe(view, buffer->temp >= 0 ? 0 : (uint64_t)(uintptr_t)buffer->data, &use);
  return use;
}

/* Lists what each step touches; scratch counts as a temporary that one step writes. */
static tdm_status collect_uses(sealing* seal) {
  tdm_program* program = seal->program;
  seal->n_blocks = (int32_t)program->n_temps;
  for (int32_t i = 0; i < program->n_steps; i++) {
    const tdm_step* step = &program->steps[i];
    seal->lane_of[i] = step->lane;
    for (int32_t k = 0; k < step->op->n_operands; k++) {
      const tdm_view* view = tdm_step_operand(step, k);
      if (tdm_view_present(view)) TDM_TRY(add_use(seal, operand_use(i, view, step->op->operands[k].access)));
    }
    if (step->plan.scratch_bytes == 0) continue;
    TDM_TRY(add_use(seal, (tdm_use){.step = i,
                                    .space = seal->n_blocks++,
                                    .end = step->plan.scratch_bytes,
                                    .solid = true,
                                    .access = TDM_WRITE}));
  }
  return TDM_OK;
}

static tdm_status lay_out(sealing* seal) {
  tdm_program* program = seal->program;
  tdm_runtime* runtime = program->runtime;
  if (seal->n_blocks == 0) return TDM_OK;
  if (!(seal->blocks = tdm_host_alloc_array(runtime, seal->n_blocks, sizeof *seal->blocks))) return TDM_OUT_OF_MEMORY;
  for (int64_t i = 0; i < program->n_temps; i++)
    seal->blocks[i] = (tdm_block){.bytes = program->temps[i].buffer->bytes, .keep = program->temps[i].keep};
  int32_t block = (int32_t)program->n_temps;
  for (int64_t i = 0; i < program->n_steps; i++)
    if (program->steps[i].plan.scratch_bytes) seal->blocks[block++].bytes = program->steps[i].plan.scratch_bytes;
  return tdm_workspace_layout(runtime, &seal->schedule, seal->lane_of, seal->uses, seal->n_uses, seal->blocks,
                              seal->n_blocks, &seal->workspace_bytes);
}

static tdm_status get_workspace(sealing* seal, const tdm_seal_config* config) {
  tdm_buffer* given = config->workspace;
  const tdm_program* program = seal->program;
  if (seal->workspace_bytes == 0) return TDM_OK;
  if (!given || (config->may_take_own && given->bytes < seal->workspace_bytes))
    return tdm_buffer_create(program->runtime, seal->workspace_bytes, &seal->workspace);
  if (given->runtime != program->runtime || given->temp >= 0 || (uintptr_t)given->data % 256 != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "program '%s': the workspace at %p must be a 256-byte aligned buffer of the program's runtime",
                    program->name, (void*)given->data);
  if (given->bytes < seal->workspace_bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s' needs a workspace of %zu bytes, the one given has %zu",
                    program->name, seal->workspace_bytes, given->bytes);
  tdm_buffer_retain(given);
  seal->workspace = given;
  return TDM_OK;
}

static void place(const sealing* seal) {
  tdm_program* program = seal->program;
  for (int64_t i = 0; i < program->n_temps; i++) {
    tdm_temp* temp = &program->temps[i];
    temp->offset = seal->blocks[i].offset;
    temp->buffer->data = seal->workspace->data + temp->offset;
  }
  int32_t block = (int32_t)program->n_temps;
  for (int64_t i = 0; i < program->n_steps; i++)
    if (program->steps[i].plan.scratch_bytes) program->steps[i].scratch_offset = seal->blocks[block++].offset;
  program->lane_of = seal->lane_of;
  program->schedule = seal->schedule;
  program->workspace = seal->workspace;
  program->workspace_bytes = seal->workspace_bytes;
}

/* After a failure: the program as it was before. What seal made is still seal's. */
static void displace(const sealing* seal) {
  tdm_program* program = seal->program;
  for (int64_t i = 0; i < program->n_temps; i++) program->temps[i].buffer->data = NULL;
  program->lane_of = NULL;
  program->schedule = (tdm_schedule){0};
  program->workspace = NULL;
  program->workspace_bytes = 0;
}

/* With everything in its place the device makes ready what it launches. */
static tdm_status publish(sealing* seal) {
  tdm_program* program = seal->program;
  const tdm_device* device = program->runtime->device;
  place(seal);
  const tdm_status status = device->program_open(program);
  if (status != TDM_OK) {
    device->program_close(program);
    displace(seal);
    return status;
  }
  program->sealed = true;
  seal->lane_of = NULL;
  seal->schedule = (tdm_schedule){0};
  seal->workspace = NULL;
  return TDM_OK;
}

static tdm_status seal_all(sealing* seal, const tdm_seal_config* config) {
  tdm_program* program = seal->program;
  seal->lane_of = tdm_host_alloc_array(program->runtime, program->n_steps, sizeof *seal->lane_of);
  if (!seal->lane_of) return TDM_OUT_OF_MEMORY;
  plan_steps(program);
  TDM_TRY(collect_uses(seal));
  TDM_TRY(tdm_schedule_make(program->runtime, (int32_t)program->n_steps, seal->lane_of, program->n_lanes, seal->uses,
                            seal->n_uses, &seal->schedule));
  TDM_TRY(lay_out(seal));
  TDM_TRY(get_workspace(seal, config));
  return publish(seal);
}

static tdm_status check_waits(const tdm_program* program, const tdm_seal_config* config) {
  if (config->wait_form != TDM_WAIT_EDGE && config->wait_form != TDM_WAIT_SIGNAL)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': wait form %d is no tdm_wait_form", program->name,
                    (int)config->wait_form);
  if (config->signal_limit_ms < 1 || config->signal_limit_ms > 600000)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': a limit of %u ms for signals; 1 to 600000 are possible",
                    program->name, config->signal_limit_ms);
  return TDM_OK;
}

tdm_status tdm_program_seal(tdm_program* program, const tdm_seal_config* config) {
  if (!program) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_seal: program must not be NULL");
  if (program->sealed) return TDM_FAIL(TDM_INVALID_STATE, "program '%s' is sealed already", program->name);
  if (program->n_steps == 0) return TDM_FAIL(TDM_INVALID_STATE, "program '%s' has no steps to seal", program->name);
  tdm_seal_config wanted;
  TDM_TRY(tdm_seal_config_init(&wanted, sizeof wanted));
  if (config) TDM_TRY(tdm_config_copy("tdm_seal_config", config, sizeof wanted, &wanted));
  TDM_TRY(check_waits(program, &wanted));
  program->wait_form = wanted.wait_form;
  program->signal_limit_ms = wanted.signal_limit_ms;
  program->trace = wanted.trace;
  sealing seal = {.program = program};
  const tdm_status status = seal_all(&seal, &wanted);
  tdm_runtime* runtime = program->runtime;
  tdm_host_free(runtime, seal.blocks, (size_t)seal.n_blocks * sizeof *seal.blocks);
  tdm_host_free(runtime, seal.uses, (size_t)seal.uses_capacity * sizeof *seal.uses);
  tdm_host_free(runtime, seal.lane_of, (size_t)program->n_steps * sizeof *seal.lane_of);
  tdm_schedule_free(runtime, &seal.schedule);
  tdm_buffer_destroy(seal.workspace);
  return status;
}

tdm_buffer* tdm_program_workspace(const tdm_program* program) {
  return program ? program->workspace : NULL;
}

tdm_status tdm_program_get_info(const tdm_program* program, tdm_program_info* out_info) {
  if (!program || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_get_info: program and out_info must not be NULL");
  tdm_program_info info = {.size = sizeof info,
                           .sealed = program->sealed,
                           .steps = (int32_t)program->n_steps,
                           .lanes = program->n_lanes,
                           .waits = program->schedule.n_waits,
                           .temps = (int32_t)program->n_temps,
                           .workspace_bytes = program->workspace_bytes,
                           .wait_form = program->wait_form};
  for (int64_t i = 0; i < program->n_temps; i++) info.temp_bytes += program->temps[i].buffer->bytes;
  for (int64_t i = 0; i < program->n_steps; i++) {
    info.flops += program->steps[i].plan.flops;
    info.bytes += program->steps[i].plan.bytes;
  }
  return tdm_info_copy("tdm_program_info", &info, sizeof info, out_info, out_info->size);
}

tdm_status tdm_program_get_waits(const tdm_program* program, tdm_wait* waits, int32_t capacity, int32_t* out_count) {
  if (out_count) *out_count = 0;
  if (!program || !out_count || capacity < 0 || (capacity && !waits))
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_program_get_waits: program, waits for a capacity of %d and out_count must be set", capacity);
  if (!program->sealed)
    return TDM_FAIL(TDM_INVALID_STATE, "program '%s' has no waits before it is sealed", program->name);
  const tdm_schedule* schedule = &program->schedule;
  for (int32_t step = 0; step < schedule->n_steps; step++)
    for (int32_t i = schedule->wait_begin[step]; i < schedule->wait_begin[step + 1]; i++)
      if (i < capacity) waits[i] = (tdm_wait){.signaler = schedule->signalers[i], .waiter = step};
  *out_count = schedule->n_waits;
  return TDM_OK;
}
