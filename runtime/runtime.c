#include "runtime/runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device.h"
#include "runtime/lane.h"

static void* libc_alloc(void* ctx, size_t bytes, size_t alignment) {
  (void)ctx;
  void* memory = NULL;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : NULL;
}

static void libc_free(void* ctx, void* memory, size_t bytes) {
  (void)ctx;
  (void)bytes;
  free(memory);
}

const tdm_allocator tdm_libc_allocator = {libc_alloc, libc_free, NULL};

/* ---- configs ---------------------------------------------------------------------------------------------------- */

tdm_status tdm_config_init(const char* type, const void* defaults, size_t bytes, void* out, size_t size) {
  if (!out || size < sizeof(size_t) || size > bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s_init: config %p of %zu bytes; this library knows up to %zu bytes", type,
                    out, size, bytes);
  memcpy(out, defaults, size);
  memcpy(out, &size, sizeof size);
  return TDM_OK;
}

tdm_status tdm_config_copy(const char* type, const void* config, size_t bytes, void* out) {
  size_t size = 0;
  memcpy(&size, config, sizeof size);
  if (size < sizeof size || size > bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s.size is %zu; this library knows up to %zu bytes: was %s_init called?",
                    type, size, bytes, type);
  memcpy(out, config, size);
  memcpy(out, &bytes, sizeof bytes);
  return TDM_OK;
}

tdm_status tdm_info_copy(const char* type, const void* info, size_t bytes, void* out, size_t size) {
  if (size < sizeof size || size > bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s.size is %zu; this library knows up to %zu bytes", type, size, bytes);
  memcpy(out, info, size);
  memcpy(out, &size, sizeof size);
  return TDM_OK;
}

/* ---- memory and log --------------------------------------------------------------------------------------------- */

void* tdm_alloc_zeroed(const tdm_allocator* allocator, size_t bytes, size_t alignment, const char* what) {
  void* memory = bytes ? allocator->alloc(allocator->ctx, bytes, alignment) : NULL;
  if (!memory) {
    (void)TDM_FAIL(TDM_OUT_OF_MEMORY, "no %zu bytes of %s memory", bytes, what);
    return NULL;
  }
  return memset(memory, 0, bytes);
}

void* tdm_host_alloc(tdm_runtime* runtime, size_t bytes) {
  return tdm_alloc_zeroed(&runtime->config.host_allocator, bytes, 64, "host");
}

void* tdm_host_alloc_array(tdm_runtime* runtime, int64_t n, size_t element_bytes) {
  if (n == 0) return NULL;
  size_t bytes;
  if (n < 0 || __builtin_mul_overflow((size_t)n, element_bytes, &bytes)) {
    (void)TDM_FAIL(TDM_OUT_OF_MEMORY, "no host memory for %lld elements of %zu bytes", (long long)n, element_bytes);
    return NULL;
  }
  return tdm_host_alloc(runtime, bytes);
}

void tdm_host_free(tdm_runtime* runtime, void* memory, size_t bytes) {
  if (memory) runtime->config.host_allocator.free(runtime->config.host_allocator.ctx, memory, bytes);
}

char* tdm_host_strdup(tdm_runtime* runtime, const char* text) {
  size_t bytes = strlen(text) + 1;
  char* copy = tdm_host_alloc(runtime, bytes);
  if (copy) memcpy(copy, text, bytes);
  return copy;
}

tdm_status tdm_host_grow(tdm_runtime* runtime, void** array, int64_t count, int64_t* capacity, size_t element_bytes) {
  if (count < *capacity) return TDM_OK;
  int64_t more = *capacity ? 2 * *capacity : 16;
  void* bigger = tdm_host_alloc_array(runtime, more, element_bytes);
  if (!bigger) return TDM_OUT_OF_MEMORY;
  if (count) memcpy(bigger, *array, (size_t)count * element_bytes);
  tdm_host_free(runtime, *array, (size_t)*capacity * element_bytes);
  *array = bigger;
  *capacity = more;
  return TDM_OK;
}

void* tdm_device_alloc(tdm_runtime* runtime, size_t bytes) {
  return runtime->device->alloc(runtime, bytes);
}

void tdm_device_free(tdm_runtime* runtime, void* memory, size_t bytes) {
  if (memory) runtime->device->free(runtime, memory, bytes);
}

void tdm_log(tdm_runtime* runtime, tdm_log_level level, const char* format, ...) {
  if (!runtime->config.log || level > runtime->config.log_level) return;
  char line[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  runtime->config.log(runtime->config.log_ctx, level, line);
}

/* ---- the runtime ------------------------------------------------------------------------------------------------ */

static const char* const object_names[TDM_OBJECT_KINDS] = {
    [TDM_OBJECT_BUFFER] = "buffers",           [TDM_OBJECT_PROGRAM] = "programs",       [TDM_OBJECT_GRAPH] = "graphs",
    [TDM_OBJECT_GRAPH_CACHE] = "graph caches", [TDM_OBJECT_CHECKPOINT] = "checkpoints", [TDM_OBJECT_MODEL] = "models",
    [TDM_OBJECT_SEQUENCE] = "sequences",       [TDM_OBJECT_TUNING] = "tunings",
};

void tdm_runtime_retain(tdm_runtime* runtime, tdm_object_kind kind) {
  atomic_fetch_add_explicit(&runtime->objects[kind], 1, memory_order_relaxed);
}

void tdm_runtime_release(tdm_runtime* runtime, tdm_object_kind kind) {
  atomic_fetch_sub_explicit(&runtime->objects[kind], 1, memory_order_release);
}

tdm_status tdm_runtime_config_init(tdm_runtime_config* config, size_t size) {
  const tdm_runtime_config defaults = {.size = size, .device_kind = TDM_DEVICE_HOST, .log_level = TDM_LOG_INFO};
  return tdm_config_init("tdm_runtime_config", &defaults, sizeof defaults, config, size);
}

static tdm_status check_allocator(const char* name, tdm_allocator* allocator) {
  if (!allocator->alloc != !allocator->free)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_config.%s: alloc and free must both be set, or neither", name);
  return TDM_OK;
}

static void runtime_free(tdm_runtime* runtime) {
  for (int32_t i = 0; i < runtime->n_lanes; i++) tdm_lane_destroy(runtime->lanes[i]);
  runtime->device->close(runtime);
  pthread_mutex_destroy(&runtime->launch_mutex);
  pthread_mutex_destroy(&runtime->lanes_mutex);
  const tdm_allocator allocator = runtime->config.host_allocator;
  allocator.free(allocator.ctx, runtime, sizeof *runtime);
}

tdm_status tdm_runtime_create(const tdm_runtime_config* config, tdm_runtime** out_runtime) {
  if (!out_runtime) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_create: out_runtime must not be NULL");
  *out_runtime = NULL;
  tdm_runtime_config wanted;
  TDM_TRY(tdm_runtime_config_init(&wanted, sizeof wanted));
  if (config) TDM_TRY(tdm_config_copy("tdm_runtime_config", config, sizeof wanted, &wanted));
  if (wanted.log_level < TDM_LOG_ERROR || wanted.log_level > TDM_LOG_DEBUG)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_config.log_level is %d, no tdm_log_level",
                    (int)wanted.log_level);
  if (wanted.device_ordinal < 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_config.device_ordinal is %d, must be at least 0",
                    wanted.device_ordinal);
  if (wanted.device_kind != TDM_DEVICE_HOST && wanted.device_kind != TDM_DEVICE_CUDA)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_config.device_kind is %d, no tdm_device_kind",
                    (int)wanted.device_kind);
  TDM_TRY(check_allocator("host_allocator", &wanted.host_allocator));
  TDM_TRY(check_allocator("device_allocator", &wanted.device_allocator));
  if (!wanted.host_allocator.alloc) wanted.host_allocator = tdm_libc_allocator;

  tdm_runtime* runtime = tdm_alloc_zeroed(&wanted.host_allocator, sizeof *runtime, 64, "host");
  if (!runtime) return TDM_OUT_OF_MEMORY;
  runtime->config = wanted;
  runtime->device = wanted.device_kind == TDM_DEVICE_CUDA ? &tdm_cuda_device : &tdm_host_device;
  pthread_mutex_init(&runtime->lanes_mutex, NULL);
  pthread_mutex_init(&runtime->launch_mutex, NULL);
  const tdm_status status = runtime->device->open(runtime);
  if (status != TDM_OK) {
    runtime_free(runtime);
    return status;
  }
  *out_runtime = runtime;
  return TDM_OK;
}

tdm_status tdm_runtime_destroy(tdm_runtime* runtime) {
  if (!runtime) return TDM_OK;
  char alive[256];
  size_t length = 0;
  for (int kind = 0; kind < TDM_OBJECT_KINDS; kind++) {
    int count = atomic_load_explicit(&runtime->objects[kind], memory_order_acquire);
    if (count)
      length += (size_t)snprintf(alive + length, sizeof alive - length, "%s%d %s", length ? ", " : "", count,
                                 object_names[kind]);
  }
  if (length) return TDM_FAIL(TDM_INVALID_STATE, "the runtime cannot be destroyed while it has %s", alive);
  runtime_free(runtime);
  return TDM_OK;
}

tdm_status tdm_runtime_synchronize(tdm_runtime* runtime) {
  if (!runtime) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_synchronize: runtime must not be NULL");
  return runtime->device->synchronize(runtime);
}

tdm_status tdm_runtime_get_info(const tdm_runtime* runtime, tdm_runtime_info* out_info) {
  if (!runtime || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_runtime_get_info: runtime and out_info must not be NULL");
  tdm_runtime* mutable_runtime = (tdm_runtime*)(uintptr_t)runtime; /* for its mutex only */
  pthread_mutex_lock(&mutable_runtime->lanes_mutex);
  tdm_runtime_info info = {.size = sizeof info,
                           .device_kind = runtime->config.device_kind,
                           .device_ordinal = runtime->config.device_ordinal,
                           .lanes = runtime->n_lanes};
  pthread_mutex_unlock(&mutable_runtime->lanes_mutex);
  runtime->device->info(runtime, &info);
  return tdm_info_copy("tdm_runtime_info", &info, sizeof info, out_info, out_info->size);
}
