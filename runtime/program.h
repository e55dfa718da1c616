#ifndef RUNTIME_PROGRAM_H
#define RUNTIME_PROGRAM_H

/* Inside of a program. program.c appends, program_seal.c seals, program_run.c runs on the host device, program_print.c
 * prints. */

#include "runtime/buffer.h"
#include "runtime/lane.h"
#include "runtime/op.h"
#include "runtime/schedule.h"
#include "tandem/trace.h"

typedef struct tdm_step {
  const tdm_op* op;
  void* args; /* op->args_bytes, owned; views of absent operands are zeroed */
  char* label;
  int32_t lane;         /* slot in the program's lanes */
  int32_t starts_after; /* tdm_program_start_after; its own number: no step */
  tdm_plan plan;
  size_t scratch_offset; /* in the workspace */
} tdm_step;

typedef struct tdm_temp {
  tdm_buffer* buffer;
  char* label;
  tdm_view view;
  bool keep;
  size_t offset; /* in the workspace */
} tdm_temp;

/* What a running launch shares between its lanes; one per program, since launches of a runtime run one after the other.
 */
typedef struct tdm_run {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int32_t done[TDM_MAX_LANES]; /* steps of each lane that are done */
  int32_t failed_step;         /* first in program order; n_steps when none */
  tdm_status status;
  int32_t raw_code;
  char message[2048];
  tdm_trace_event* events; /* [n_steps] where the program is traced */
} tdm_run;

struct tdm_program {
  tdm_runtime* runtime;
  char name[64];
  atomic_int references;
  bool sealed;
  tdm_lane* lanes[TDM_MAX_LANES];
  int32_t n_lanes;
  tdm_step* steps;
  int64_t n_steps, steps_capacity;
  tdm_temp* temps;
  int64_t n_temps, temps_capacity;
  /* from seal on */
  int32_t* lane_of; /* [n_steps] */
  tdm_schedule schedule;
  tdm_buffer* workspace; /* NULL when nothing needs one */
  size_t workspace_bytes;
  tdm_wait_form wait_form;
  uint32_t signal_limit_ms;
  bool trace;
  tdm_run run;
  void* device_state; /* the device's, made by the last step of seal */
};

/* What graphs are made of: the device's capture of a sealed program. */
tdm_status tdm_program_capture(tdm_program* program, void** out_state);
tdm_status tdm_program_replay(tdm_program* program, void* state, const tdm_launch_config* config);
void tdm_program_release_capture(tdm_program* program, void* state);

/* Step `later` is not to start before all CTAs of step `earlier`, of another lane, have: for one that would take every
 * SM from a small one that can run beside it. Orders nothing else, and says nothing where lanes have SMs of their own.
 * Before seal; the steps exist, earlier < later. */
void tdm_program_start_after(tdm_program* program, int64_t later, int64_t earlier);

/* Operand `i` of a step. */
const tdm_view* tdm_step_operand(const tdm_step* step, int32_t i);

void tdm_program_retain(tdm_program* program);

#endif
