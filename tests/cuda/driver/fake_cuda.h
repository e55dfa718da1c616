#ifndef TESTS_CUDA_DRIVER_FAKE_CUDA_H
#define TESTS_CUDA_DRIVER_FAKE_CUDA_H

/* A CUDA driver for tests: libcuda.so.1 of our own with one Hopper device whose memory is the host's. It keeps the
 * driver's rules (contexts, handles, captures, partitions, launch limits) and counts every breach; kernels are listed
 * from the real cubins, and launching one records it and computes nothing. State is the process's: Criterion gives each
 * test a process. */

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/step_sync.h"

/* Before a runtime is made. */
typedef struct fake_device {
  int count;        /* devices; default 1 */
  int major, minor; /* compute capability; default 9.0 */
  int sms;          /* default 132 */
  int step;         /* SMs come in multiples of it; default 8 */
  bool work_queues; /* green contexts may have their own, as from CUDA 13.1 on; default false */
  size_t memory;    /* bytes that pools can give; default 0: no limit */
} fake_device;
void fake_cuda_reset(const fake_device* device); /* NULL: the defaults. Only while nothing is alive */
void fake_cuda_limit_memory(size_t bytes);       /* fake_device.memory, at any time */

/* Makes calls fail. Functions that destroy, free, pop or end still do so, as the driver's do when they report the error
 * of something earlier; all others do nothing. Counts calls anew. */
typedef struct fake_fault {
  const char* name; /* counts calls of this function only; NULL: all. cuGetErrorName, -String are never counted */
  int64_t nth;      /* from 1; 0: none fails */
  bool onwards;     /* that call and all later ones */
  CUresult result;
} fake_fault;
void fake_cuda_fail(const fake_fault* fault);
const char* fake_cuda_failed(void); /* function that failed first as asked; NULL: none has */
int64_t fake_cuda_calls(void);      /* counted since then */

/* What is alive. */
typedef struct fake_live {
  int contexts; /* references to the primary one */
  int streams, events, pools, libraries, greens, graphs, execs;
  int blocks; /* of memory */
  int pinned; /* pieces of pinned host memory */
  size_t bytes;
  int pushed; /* contexts on this thread's stack */
} fake_live;
fake_live fake_cuda_live(void);
void* fake_cuda_pinned(void); /* the pinned host memory made last that is alive; NULL: none */
int fake_cuda_balanced(void); /* green contexts alive with work queues of their own */
int fake_cuda_left(void);     /* all of these added up, without bytes */

/* Breaches of the driver's rules so far: a dead handle, no current context, an illegal launch, overlapping partitions.
 */
int fake_cuda_breaches(void);
const char* fake_cuda_breach(void); /* the first, "" when there is none */

typedef enum fake_kind { FAKE_LAUNCH = 1, FAKE_RECORD, FAKE_WAIT, FAKE_GRAPH, FAKE_SYNC, FAKE_OTHER } fake_kind;

/* Something that was put on a stream. */
typedef struct fake_op {
  fake_kind kind;
  CUstream stream;
  CUevent event;      /* FAKE_RECORD, FAKE_WAIT */
  CUgraphExec exec;   /* FAKE_GRAPH */
  const char* kernel; /* FAKE_LAUNCH; the driver's: until its library is unloaded */
  unsigned grid, block, shared;
  bool overlaps;       /* may begin while the stream's last launch runs */
  size_t params_bytes; /* that the kernel takes */
  tdm_step_sync sync;  /* its second parameter, where it has one */
  int before[2];       /* ops that are done before: the stream's last, the one an event stands for; -1: none */
} fake_op;

/* What was put on streams since the last call of fake_cuda_forget; and what the last capture that ended recorded. */
const fake_op* fake_cuda_ops(int* out_count);
const fake_op* fake_cuda_captured(int* out_count);
void fake_cuda_forget(void);
/* Whether ops[a] is always done before ops[b]. */
bool fake_cuda_ordered(const fake_op* ops, int a, int b);

#endif
