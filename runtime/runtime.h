#ifndef RUNTIME_RUNTIME_H
#define RUNTIME_RUNTIME_H

/* Inside of a runtime: memory, log, counts of living objects, lanes. */

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/status.h"
#include "tandem/runtime.h"

#define TDM_MAX_LANES 16

typedef enum tdm_object_kind {
  TDM_OBJECT_BUFFER,
  TDM_OBJECT_PROGRAM,
  TDM_OBJECT_GRAPH,
  TDM_OBJECT_GRAPH_CACHE,
  TDM_OBJECT_CHECKPOINT,
  TDM_OBJECT_MODEL,
  TDM_OBJECT_SEQUENCE,
  TDM_OBJECT_TUNING,
  TDM_OBJECT_KINDS
} tdm_object_kind;

typedef struct tdm_device tdm_device; /* runtime/device.h */

struct tdm_runtime {
  tdm_runtime_config config; /* device_allocator: alloc NULL unless the caller gave one */
  const tdm_device* device;
  void* device_state; /* the device's */
  atomic_int objects[TDM_OBJECT_KINDS];
  pthread_mutex_t lanes_mutex; /* guards lanes and n_lanes */
  tdm_lane* lanes[TDM_MAX_LANES];
  int32_t n_lanes;
  pthread_mutex_t launch_mutex; /* held while a launch is issued (on the host device: runs): its lanes belong to it */
};

/* Zeroed memory for the library's own objects, 64-byte aligned; NULL, with the error recorded, when there is none. */
void* tdm_host_alloc(tdm_runtime* runtime, size_t bytes);
void tdm_host_free(tdm_runtime* runtime, void* memory, size_t bytes);
/* tdm_host_alloc for n * element_bytes, overflow checked. n may be 0: then NULL is no error, and none is recorded. */
void* tdm_host_alloc_array(tdm_runtime* runtime, int64_t n, size_t element_bytes);
/* A copy of `text`; free it with tdm_host_free(runtime, copy, strlen(copy) + 1). */
char* tdm_host_strdup(tdm_runtime* runtime, const char* text);

/* Makes room for one more element in a growing array: doubles `*array` when `count` has reached `*capacity`. */
tdm_status tdm_host_grow(tdm_runtime* runtime, void** array, int64_t count, int64_t* capacity, size_t element_bytes);

extern const tdm_allocator tdm_libc_allocator;
/* Zeroed memory of an allocator; NULL, with the error recorded ("no N bytes of WHAT memory"), when there is none. */
void* tdm_alloc_zeroed(const tdm_allocator* allocator, size_t bytes, size_t alignment, const char* what);

/* Zeroed device memory, 256-byte aligned; NULL, with the error recorded, when there is none. */
void* tdm_device_alloc(tdm_runtime* runtime, size_t bytes);
void tdm_device_free(tdm_runtime* runtime, void* memory, size_t bytes);

/* One line to the log callback, if the level is wanted. */
void tdm_log(tdm_runtime* runtime, tdm_log_level level, const char* format, ...) __attribute__((format(printf, 3, 4)));

/* Counts objects, so that tdm_runtime_destroy can refuse. */
void tdm_runtime_retain(tdm_runtime* runtime, tdm_object_kind kind);
void tdm_runtime_release(tdm_runtime* runtime, tdm_object_kind kind);

/* The three moves of a struct that begins with its size. `bytes` is what this library knows, `size` what the caller
 * knows; a size below sizeof(size_t) or above `bytes` is INVALID_ARGUMENT. Behind every tdm_x_config_init: defaults to
 * the caller. */
tdm_status tdm_config_init(const char* type, const void* defaults, size_t bytes, void* out, size_t size);
/* A caller's config over the defaults that `out` holds. */
tdm_status tdm_config_copy(const char* type, const void* config, size_t bytes, void* out);
/* An info to the caller, as far as its struct reaches. */
tdm_status tdm_info_copy(const char* type, const void* info, size_t bytes, void* out, size_t size);

#endif
