#ifndef RUNTIME_STEP_SYNC_H
#define RUNTIME_STEP_SYNC_H

/* How a kernel waits for other lanes, tells them that it is done, and leaves a trace: the second parameter of every
 * kernel, filled in when a program is sealed. Compiles as C11 and as CUDA C++; the device's side is
 * kernels/device/step.cuh.
 *
 *   producer's last CTA:  signal.value = epoch   (release)         signals live as long as their program, and
 *   consumer's CTAs:      until signal.value >= epoch (acquire)    every launch begins with epoch + 1: nothing is reset
 */

#include "runtime/tensor_map.h"

enum { TDM_STEP_SIGNALS = 15 /* a step waits for at most one step of every other lane */ };

/* One step's word. Padded to a sector, so that spinning on one does not slow another down. */
typedef struct tdm_signal {
  uint32_t value;   /* epoch of the last launch in which the step was done */
  uint32_t arrived; /* CTAs that are done in this launch; 0 between launches */
  uint32_t padding[6];
} tdm_signal;

/* What the first wait of a launch to run out of time writes, in host memory. `count` goes last. */
typedef struct tdm_signal_fault {
  uint32_t step;     /* the one that waited */
  uint32_t signaler; /* index of the signal that did not come */
  uint32_t epoch;
  uint32_t seen;  /* the signal's value */
  uint32_t count; /* faults so far */
} tdm_signal_fault;

/* A program's own memory on the device; its signals follow. */
typedef struct tdm_signal_board {
  uint32_t epoch;  /* of the launch under way */
  uint32_t failed; /* epoch of the last launch in which a wait ran out of time */
  uint64_t limit_ns;
  tdm_signal_fault* fault;
  uint64_t padding[5];
} tdm_signal_board;

/* What one CTA of a traced program tells of its last launch; nanoseconds of the device's clock. */
typedef struct tdm_trace_slot {
  uint64_t resident; /* on its SM */
  uint64_t begin;    /* what it waited for is done */
  uint64_t end;
  uint32_t sm;
  uint32_t padding;
} tdm_trace_slot;

typedef struct tdm_step_sync {
  tdm_trace_slot* trace;   /* one a CTA; NULL: no trace */
  tdm_signal_board* board; /* NULL: no signals */
  int32_t step;
  int32_t publishes; /* signal to give at the end; -1: none */
  int16_t n_waits;
  int16_t fetches_ahead; /* whether weights may be read before the steps before are done: no step writes them */
  int16_t reads_ahead;   /* and operands that are read ahead: the step before has waited for those who write them */
  uint16_t waits[TDM_STEP_SIGNALS]; /* signals to wait for at the beginning */
} tdm_step_sync;

#ifdef __cplusplus
static_assert(sizeof(tdm_signal) == 32 && sizeof(tdm_signal_board) == 64 && sizeof(tdm_step_sync) == 64, "kernel ABI");
#else
_Static_assert(sizeof(tdm_signal) == 32 && sizeof(tdm_signal_board) == 64 && sizeof(tdm_step_sync) == 64, "kernel ABI");
#endif

#endif
