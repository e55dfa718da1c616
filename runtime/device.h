#ifndef RUNTIME_DEVICE_H
#define RUNTIME_DEVICE_H

/* What a device must be able to do: one const table for the host, one for CUDA. The rest of the runtime speaks to a
 * device through runtime->device only.
 *
 *   runtime.c ─ buffer.c ─ lane.c ─ program_seal.c ─ graphs/        (know no device)
 *                             │
 *               ┌─────────────┴─────────────┐
 *        device_host.c                 cuda/device.c, lane.c, program.c, kernels.c, driver.c
 *        memory, a thread a lane       driver API, streams and green contexts, kernels */

#include "runtime/lane.h"
#include "tandem/trace.h"

typedef struct tdm_device {
  /* Fills runtime->device_state; `close` undoes it, also after a failed open. */
  tdm_status (*open)(tdm_runtime* runtime);
  void (*close)(tdm_runtime* runtime);
  void (*info)(const tdm_runtime* runtime, tdm_runtime_info* info);

  /* Zeroed memory, 256-byte aligned. NULL, with the error recorded, when there is none. */
  void* (*alloc)(tdm_runtime* runtime, size_t bytes);
  void (*free)(tdm_runtime* runtime, void* memory, size_t bytes);
  tdm_status (*write)(tdm_runtime* runtime, void* destination, const void* source, size_t bytes);
  tdm_status (*read)(tdm_runtime* runtime, void* destination, const void* source, size_t bytes);
  tdm_status (*synchronize)(tdm_runtime* runtime);

  /* Makes what the lane runs on; fills lane->state and granted_sms. `lane_close` takes what `lane_open` made. */
  tdm_status (*lane_open)(tdm_lane* lane);
  void (*lane_close)(tdm_lane* lane);

  /* The last step of a seal: everything has its address. `program_close` undoes it, also where it failed or never ran.
   */
  tdm_status (*program_open)(tdm_program* program);
  void (*program_close)(tdm_program* program);
  /* Runs a sealed program. The launch mutex is held. */
  tdm_status (*launch)(tdm_program* program, const tdm_launch_config* config);

  /* Captures a sealed program; NULL state is fine. The launch mutex is held. */
  tdm_status (*capture)(tdm_program* program, void** out_state);
  tdm_status (*replay)(tdm_program* program, void* state, const tdm_launch_config* config);
  void (*release)(tdm_program* program, void* state);

  /* Of a program sealed with a trace: how many events its last launch has left, and they themselves unless NULL; an end
   * of 0 where one has not ended. The launch mutex is held. */
  tdm_status (*trace)(tdm_program* program, tdm_trace_event* events, int64_t* out_n);
} tdm_device;

extern const tdm_device tdm_host_device;
/* In a build without CUDA its open answers UNSUPPORTED. */
extern const tdm_device tdm_cuda_device;

#endif
