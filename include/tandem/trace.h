#ifndef TANDEM_TRACE_H
#define TANDEM_TRACE_H

/* Traces: which step of a program ran where and when, CTA by CTA. */

#include "tandem/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One CTA on a CUDA device; one step on the host device. Times count from the first event of the trace, in nanoseconds
 * of the device's clock, whose steps are 32 ns on an H200. */
typedef struct tdm_trace_event {
  int32_t step;         /* in program order */
  int32_t launch;       /* which of the step's kernels; 0 on the host device */
  int32_t lane;         /* in the order in which the program's steps first named them */
  int32_t sm;           /* where it ran; the lane on the host device */
  uint64_t resident_ns; /* on its SM, perhaps before the steps that it waits for were done */
  uint64_t begin_ns;    /* they are done */
  uint64_t end_ns;      /* its last warp is at its end */
} tdm_trace_event;

/* What the last launch or replay of a program sealed with `trace` left behind, by step, launch and CTA: copies up to
 * `capacity` events and says how many there are. Waits for what was launched without a stream of the caller's; one on a
 * stream of the caller's must be done. Errors: INVALID_ARGUMENT, INVALID_STATE (not sealed with trace, or not launched
 * since). Tracing adds two to three clock reads a CTA; without it a kernel tests a parameter. */
TDM_API tdm_status tdm_program_get_trace(tdm_program* program, tdm_trace_event* events, int64_t capacity,
                                         int64_t* out_count);

typedef enum tdm_trace_format {
  TDM_TRACE_JSON = 1, /* Chrome's trace events, for Perfetto and chrome://tracing: a thread an SM */
  TDM_TRACE_SVG = 2   /* a picture: SMs down, time across, a colour a step, lanes outlined where no SM is shared */
} tdm_trace_format;

/* Writes the last launch's trace. As tdm_program_get_trace; OUT_OF_MEMORY as well. */
TDM_API tdm_status tdm_program_write_trace(tdm_program* program, tdm_trace_format format, tdm_write_fn write,
                                           void* ctx);

#ifdef __cplusplus
}
#endif
#endif
