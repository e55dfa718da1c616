#ifndef RUNTIME_SCHEDULE_H
#define RUNTIME_SCHEDULE_H

/* From what steps read and write to the waits between lanes. Pure: no device, no threads.
 *
 *   A step must wait for every earlier step that it conflicts with: they touch common bytes and at least one writes. Of
 *   these, a lane's own order and waits placed earlier already imply most; schedule keeps the others, at most one a
 * lane:
 *
 *     lane main   s0 ──── s1 ──── s3          s3 reads what s1 and s2 wrote: it waits for s2 only
 *     lane side       └── s2 ──────┘          s2 reads what s0 wrote: it waits for s0
 *
 *   The result is the transitive reduction: dropping any wait leaves a conflicting pair of steps unordered. */

#include "runtime/op.h"
#include "runtime/runtime.h"

/* One use of memory by one step: bytes [begin, end), or of these only a column band:
 *
 *   begin                    end      With pitch > 0 a byte at address a belongs to the use when a mod pitch is in
 *   |###...|###...|###...|###|        [column, column + width). Two bands of one pitch that share no column do not
 * conflict, width  pitch                     however they interleave: heads of q, the latent and the rotated part of a
 * cache row. */
typedef struct tdm_use {
  int32_t step;  /* uses come in ascending order of steps */
  int32_t space; /* address space: -1 for device addresses, else the number of a temporary */
  uint64_t begin, end;
  uint64_t pitch, column, width; /* pitch 0: no band */
  bool solid;                    /* every byte described is touched; false: some may not be */
  tdm_access access;
} tdm_use;

/* Fills in everything but step, space and access from a view and the address of its buffer. */
void tdm_use_describe(const tdm_view* view, uint64_t buffer_address, tdm_use* out_use);

typedef struct tdm_schedule {
  int32_t n_steps, n_lanes, n_waits;
  int32_t* position;   /* [n_steps] place of a step in its lane */
  int32_t* clock;      /* [n_steps][n_lanes] steps of each lane that are done once this step is done */
  int32_t* wait_begin; /* [n_steps + 1] a step's waits are waits[wait_begin[step] .. wait_begin[step + 1] - 1] */
  int32_t* signalers;  /* [n_waits] steps waited for; room for n_steps * (n_lanes - 1) */
} tdm_schedule;

/* `lane_of[step]` < n_lanes. On success free with tdm_schedule_free. */
tdm_status tdm_schedule_make(tdm_runtime* runtime, int32_t n_steps, const int32_t* lane_of, int32_t n_lanes,
                             const tdm_use* uses, int64_t n_uses, tdm_schedule* out_schedule);
void tdm_schedule_free(tdm_runtime* runtime, tdm_schedule* schedule);

/* Whether step `a` is always done before step `b` starts. */
bool tdm_schedule_ordered(const tdm_schedule* schedule, const int32_t* lane_of, int32_t a, int32_t b);

#endif
