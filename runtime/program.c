#include "runtime/program.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "runtime/device.h"

static tdm_view* operand_of(const tdm_op* op, void* args, int32_t i) {
  return (tdm_view*)(void*)((char*)args + op->operands[i].offset);
}

void tdm_program_start_after(tdm_program* program, int64_t later, int64_t earlier) {
  program->steps[later].starts_after = (int32_t)earlier;
}

const tdm_view* tdm_step_operand(const tdm_step* step, int32_t i) {
  return operand_of(step->op, step->args, i);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

tdm_status tdm_program_create(tdm_runtime* runtime, const char* name, tdm_program** out_program) {
  if (out_program) *out_program = NULL;
  if (!runtime || !name || !out_program)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_create: runtime, name and out_program must not be NULL");
  if (strlen(name) >= sizeof((tdm_program*)0)->name)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_create: name '%.80s' has more than 63 characters", name);
  tdm_program* program = tdm_host_alloc(runtime, sizeof *program);
  if (!program) return TDM_OUT_OF_MEMORY;
  program->runtime = runtime;
  memcpy(program->name, name, strlen(name) + 1);
  atomic_init(&program->references, 1);
  pthread_mutex_init(&program->run.mutex, NULL);
  pthread_cond_init(&program->run.changed, NULL);
  tdm_runtime_retain(runtime, TDM_OBJECT_PROGRAM);
  *out_program = program;
  return TDM_OK;
}

void tdm_program_retain(tdm_program* program) {
  atomic_fetch_add_explicit(&program->references, 1, memory_order_relaxed);
}

static void step_free(tdm_program* program, tdm_step* step) {
  for (int32_t i = 0; i < step->op->n_operands; i++) {
    const tdm_view* view = tdm_step_operand(step, i);
    if (tdm_view_present(view) && view->buffer->temp < 0) tdm_buffer_destroy(view->buffer);
  }
  tdm_host_free(program->runtime, step->label, strlen(step->label) + 1);
  tdm_host_free(program->runtime, step->args, step->op->args_bytes);
}

void tdm_program_destroy(tdm_program* program) {
  if (!program || atomic_fetch_sub_explicit(&program->references, 1, memory_order_acq_rel) != 1) return;
  tdm_runtime* runtime = program->runtime;
  if (program->sealed) runtime->device->program_close(program);
  for (int64_t i = 0; i < program->n_steps; i++) step_free(program, &program->steps[i]);
  for (int64_t i = 0; i < program->n_temps; i++) {
    tdm_temp* temp = &program->temps[i];
    tdm_host_free(runtime, temp->label, strlen(temp->label) + 1);
    tdm_buffer_destroy(temp->buffer);
  }
  tdm_host_free(runtime, program->lane_of, (size_t)program->n_steps * sizeof *program->lane_of);
  tdm_schedule_free(runtime, &program->schedule);
  tdm_buffer_destroy(program->workspace);
  tdm_host_free(runtime, program->steps, (size_t)program->steps_capacity * sizeof *program->steps);
  tdm_host_free(runtime, program->temps, (size_t)program->temps_capacity * sizeof *program->temps);
  pthread_cond_destroy(&program->run.changed);
  pthread_mutex_destroy(&program->run.mutex);
  tdm_host_free(runtime, program, sizeof *program);
  tdm_runtime_release(runtime, TDM_OBJECT_PROGRAM);
}

/* ---- temporaries ------------------------------------------------------------------------------------------------ */

static tdm_status check_open(const char* function, const tdm_program* program) {
  if (!program) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: program must not be NULL", function);
  if (program->sealed)
    return TDM_FAIL(TDM_INVALID_STATE, "%s: program '%s' is sealed already", function, program->name);
  return TDM_OK;
}

static tdm_status check_label(const char* function, const char* label) {
  if (!label || !*label || strlen(label) > 63)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: label '%.80s' must have 1 to 63 characters", function,
                    label ? label : "(NULL)");
  return TDM_OK;
}

/* A temporary of `bytes` with the layout of `view`, whose buffer is filled in. */
static tdm_status add_temp(tdm_program* program, const char* label, tdm_view* view, size_t bytes) {
  tdm_runtime* runtime = program->runtime;
  if (program->n_temps == INT32_MAX)
    return TDM_FAIL(TDM_UNSUPPORTED, "program '%s' has too many temporaries", program->name);
  TDM_TRY(tdm_host_grow(runtime, (void**)&program->temps, program->n_temps, &program->temps_capacity,
                        sizeof *program->temps));
  char* copy = tdm_host_strdup(runtime, label);
  if (!copy) return TDM_OUT_OF_MEMORY;
  tdm_status status = tdm_buffer_create_temp(runtime, program, (int32_t)program->n_temps, bytes, &view->buffer);
  if (status != TDM_OK) {
    tdm_host_free(runtime, copy, strlen(copy) + 1);
    return status;
  }
  program->temps[program->n_temps++] = (tdm_temp){.buffer = view->buffer, .label = copy, .view = *view};
  return TDM_OK;
}

tdm_status tdm_program_temp(tdm_program* program, const char* label, tdm_dtype dtype, int32_t rank,
                            const int64_t* shape, tdm_view* out_view) {
  if (out_view) *out_view = (tdm_view){0};
  TDM_TRY(check_open("tdm_program_temp", program));
  TDM_TRY(check_label("tdm_program_temp", label));
  if (!shape || !out_view)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "temporary '%s': shape and out_view must not be NULL", label);
  if (tdm_dtype_bytes(dtype) == 0 || rank < 1 || rank > TDM_MAX_RANK)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "temporary '%s': dtype %d, rank %d; a known dtype and rank 1 to %d are needed", label, (int)dtype,
                    rank, TDM_MAX_RANK);
  int64_t bytes = (int64_t)tdm_dtype_bytes(dtype);
  for (int32_t dim = 0; dim < rank; dim++)
    if (shape[dim] < 1 || __builtin_mul_overflow(bytes, shape[dim], &bytes))
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "temporary '%s': extent %" PRId64 " of dimension %d is below 1 or too large", label, shape[dim],
                      dim);
  tdm_view view = tdm_view_make(NULL, dtype, rank, shape);
  TDM_TRY(add_temp(program, label, &view, (size_t)bytes));
  *out_view = view;
  return TDM_OK;
}

tdm_status tdm_program_temp_scales(tdm_program* program, const char* label, int64_t n_rows, int64_t n_cols,
                                   tdm_view* out_view) {
  if (out_view) *out_view = (tdm_view){0};
  if (n_rows < 1 || n_rows > INT64_MAX - 3 || n_cols < 128 || n_cols % 128 != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "scales '%s' of %" PRId64 " rows and %" PRId64
                    " columns: rows must be at least 1, columns a multiple of 128",
                    label ? label : "(NULL)", n_rows, n_cols);
  const int64_t shape[] = {n_cols / 128, tdm_scale_stride(n_rows)};
  TDM_TRY(tdm_program_temp(program, label, TDM_F32, 2, shape, out_view));
  out_view->shape[1] = n_rows;
  program->temps[program->n_temps - 1].view.shape[1] = n_rows;
  return TDM_OK;
}

tdm_status tdm_program_keep(tdm_program* program, const tdm_view* temp) {
  TDM_TRY(check_open("tdm_program_keep", program));
  if (!temp || !temp->buffer || temp->buffer->program != program)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_keep: the view is no temporary of program '%s'", program->name);
  program->temps[temp->buffer->temp].keep = true;
  return TDM_OK;
}

tdm_status tdm_program_find(const tdm_program* program, const char* label, tdm_view* out_view) {
  if (out_view) *out_view = (tdm_view){0};
  if (!program || !label || !out_view)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_find: program, label and out_view must not be NULL");
  for (int64_t i = 0; i < program->n_temps; i++) {
    if (strcmp(program->temps[i].label, label) != 0) continue;
    *out_view = program->temps[i].view;
    return TDM_OK;
  }
  return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s' has no temporary '%s'", program->name, label);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* A lane's slot in the program; n_lanes when it has none yet. A runtime has no more lanes than a program has slots. */
static tdm_status lane_slot(const tdm_program* program, const tdm_lane* lane, int32_t* out_slot) {
  for (*out_slot = 0; *out_slot < program->n_lanes; ++*out_slot)
    if (program->lanes[*out_slot] == lane) return TDM_OK;
  if (tdm_lane_runtime(lane) != program->runtime)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "lane '%s' belongs to another runtime than program '%s'", tdm_lane_name(lane),
                    program->name);
  return TDM_OK;
}

static tdm_status check_operand(const tdm_program* program, const tdm_op* op, const tdm_operand* operand,
                                tdm_view* view) {
  if (!tdm_view_present(view)) {
    if (!operand->optional) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is absent", op->name, operand->name);
    *view = (tdm_view){0};
    return TDM_OK;
  }
  char name[96];
  snprintf(name, sizeof name, "%s: %s", op->name, operand->name);
  if (view->buffer->runtime != program->runtime)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: its buffer belongs to another runtime", name);
  if (view->buffer->temp >= 0 && view->buffer->program != program)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: its buffer is a temporary of another program", name);
  return tdm_view_check(name, view);
}

static tdm_status check_step(const tdm_program* program, const tdm_op* op, void* args) {
  for (int32_t i = 0; i < op->n_operands; i++)
    TDM_TRY(check_operand(program, op, &op->operands[i], operand_of(op, args, i)));
  return op->check(args);
}

tdm_status tdm_program_append(tdm_program* program, tdm_lane* lane, const tdm_op* op, const char* label,
                              const void* args) {
  TDM_TRY(check_open(op->name, program));
  TDM_TRY(check_label(op->name, label));
  if (!lane || !args) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s '%s': lane and args must not be NULL", op->name, label);
  size_t size;
  memcpy(&size, args, sizeof size);
  if (size < sizeof size || size > op->args_bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s '%s': args.size is %zu; this library knows up to %zu bytes", op->name,
                    label, size, op->args_bytes);
  if (program->n_steps == INT32_MAX) return TDM_FAIL(TDM_UNSUPPORTED, "program '%s' has too many steps", program->name);
  tdm_runtime* runtime = program->runtime;
  int32_t slot;
  TDM_TRY(lane_slot(program, lane, &slot));
  TDM_TRY(tdm_host_grow(runtime, (void**)&program->steps, program->n_steps, &program->steps_capacity,
                        sizeof *program->steps));
  void* copy = tdm_host_alloc(runtime, op->args_bytes);
  if (!copy) return TDM_OUT_OF_MEMORY;
  memcpy(copy, args, size);
  tdm_status status = check_step(program, op, copy);
  char* label_copy = NULL;
  if (status != TDM_OK)
    status = tdm_fail_prefix(status, "step '%s'", label);
  else if (!(label_copy = tdm_host_strdup(runtime, label)))
    status = TDM_OUT_OF_MEMORY;
  if (status != TDM_OK) {
    tdm_host_free(runtime, copy, op->args_bytes);
    return status;
  }
  for (int32_t i = 0; i < op->n_operands; i++) {
    const tdm_view* view = operand_of(op, copy, i);
    if (tdm_view_present(view) && view->buffer->temp < 0) tdm_buffer_retain(view->buffer);
  }
  if (slot == program->n_lanes) program->lanes[program->n_lanes++] = lane;
  program->steps[program->n_steps] =
      (tdm_step){.op = op, .args = copy, .label = label_copy, .lane = slot, .starts_after = (int32_t)program->n_steps};
  program->n_steps++;
  return TDM_OK;
}
