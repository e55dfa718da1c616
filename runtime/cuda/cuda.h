#ifndef RUNTIME_CUDA_CUDA_H
#define RUNTIME_CUDA_CUDA_H

/* Inside of the CUDA device: what a runtime, a lane and a program have of their own on it. */

#include "runtime/cuda/driver.h"
#include "runtime/device.h"
#include "runtime/kernel.h"
#include "runtime/program.h"

/* An entry point of an embedded cubin. */
typedef struct tdm_cuda_kernel {
  const char* name; /* the driver's */
  CUkernel kernel;
} tdm_cuda_kernel;

/* All kernels, loaded and with their attributes set when the runtime is created: never while something is captured. */
typedef struct tdm_cuda_kernels {
  CUlibrary* libraries; /* [tdm_cubin_count] */
  int32_t n_libraries;  /* loaded so far */
  tdm_cuda_kernel* kernels;
  int64_t n_kernels, capacity;
} tdm_cuda_kernels;

/* A way to divide the device into green lanes. */
typedef struct tdm_cuda_partition {
  int32_t number;
  CUdevResource free_sms; /* what its lanes have not taken yet */
} tdm_cuda_partition;

/* runtime->device_state. Belongs to no thread: every entry makes the primary context current and puts the caller's
 * back. */
typedef struct tdm_cuda {
  tdm_cuda_driver driver;
  CUdevice device;
  CUcontext context; /* the device's primary context, so that the caller's own CUDA code shares it */
  CUmemoryPool pool;
  CUstream stream;  /* of launches that name none, and of copies */
  CUstream capture; /* where captures begin: `stream` must stay free for what other threads copy meanwhile */
  int32_t version;  /* of the driver */
  int32_t sms;
  int32_t shared_bytes; /* a block can have at most, opted in */
  char name[64];
  tdm_cuda_kernels kernels;
  tdm_cuda_partition partitions[TDM_MAX_LANES];
  int32_t n_partitions;
  pthread_mutex_t watch_mutex;      /* guards watched */
  struct tdm_cuda_signals* watched; /* programs that wait by signal */
} tdm_cuda;

/* lane->state. */
typedef struct tdm_cuda_lane {
  CUstream stream;
  CUgreenCtx green; /* NULL for other kinds */
} tdm_cuda_lane;

static inline tdm_cuda* tdm_cuda_of(const tdm_runtime* runtime) {
  return runtime->device_state;
}

/* Makes the primary context current until tdm_cuda_leave. */
tdm_status tdm_cuda_enter(const tdm_cuda* cuda);
void tdm_cuda_leave(const tdm_cuda* cuda);
/* For what takes objects down: goes on when the context cannot be made current, since destroying takes handles alone,
 * and leaves the last error as it is. Answers whether to leave. */
bool tdm_cuda_enter_anyway(const tdm_cuda* cuda);

/* A wait on the way to freeing or destroying: nobody can be given its status, so a failure, which tells of what ran
 * before, goes to the log. */
void tdm_cuda_waited(tdm_runtime* runtime, CUresult result, const char* what);

/* Loads all embedded cubins; `kernels` is to be closed also after a failure. */
tdm_status tdm_cuda_kernels_open(tdm_runtime* runtime, tdm_cuda* cuda);
void tdm_cuda_kernels_close(tdm_runtime* runtime, tdm_cuda* cuda);
/* UNSUPPORTED when no cubin has it. */
tdm_status tdm_cuda_kernels_find(const tdm_cuda* cuda, const char* name, CUkernel* out_kernel);

tdm_status tdm_cuda_lane_open(tdm_lane* lane);
void tdm_cuda_lane_close(tdm_lane* lane);

tdm_status tdm_cuda_program_open(tdm_program* program);
void tdm_cuda_program_close(tdm_program* program);
tdm_status tdm_cuda_launch(tdm_program* program, const tdm_launch_config* config);
tdm_status tdm_cuda_capture(tdm_program* program, void** out_state);
tdm_status tdm_cuda_replay(tdm_program* program, void* state, const tdm_launch_config* config);
void tdm_cuda_release(tdm_program* program, void* state);
tdm_status tdm_cuda_trace(tdm_program* program, tdm_trace_event* events, int64_t* out_n);

#endif
