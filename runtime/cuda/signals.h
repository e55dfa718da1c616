#ifndef RUNTIME_CUDA_SIGNALS_H
#define RUNTIME_CUDA_SIGNALS_H

/* Waits by signal: a program's board on the device (runtime/step_sync.h), and what it says when a wait ran out of time.
 */

#include "runtime/cuda/cuda.h"
#include "runtime/step_sync.h"

typedef struct tdm_cuda_signals {
  const tdm_program* program;
  tdm_signal_board* board; /* on the device; NULL: the program waits by edges, or not at all */
  size_t board_bytes;
  CUkernel epoch;
  int32_t* steps; /* [n_signals] step of each signal, ascending */
  int32_t n_signals;
  tdm_signal_fault* fault; /* pinned host memory that the device writes */
  uint32_t reported;       /* faults told of so far */
  struct tdm_cuda_signals* next;
} tdm_cuda_signals;

/* Makes the board of a program that waits by signal; the context is current. UNSUPPORTED unless its lanes are green. */
tdm_status tdm_cuda_signals_open(const tdm_program* program, tdm_cuda_signals* out_signals);
/* Undoes it, also after a failure; nothing of the program runs any more. */
void tdm_cuda_signals_close(tdm_cuda_signals* signals);

/* What a step's kernels get. The first of its launches waits, the last one publishes. */
tdm_step_sync tdm_cuda_signals_of(const tdm_cuda_signals* signals, int32_t step, bool first, bool last);

/* The head of a launch: the next epoch. Nothing without signals. */
tdm_status tdm_cuda_signals_begin(const tdm_cuda_signals* signals, CUstream stream);

/* TIMEOUT, once, when a wait has run out of time: in `program`, or in any program of the runtime when it is NULL. */
tdm_status tdm_cuda_signals_check(tdm_cuda* cuda, const tdm_program* program);

#endif
