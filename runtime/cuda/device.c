#include <string.h>

#include "runtime/cuda/signals.h"

/* ---- contexts --------------------------------------------------------------------------------------------------- */

tdm_status tdm_cuda_enter(const tdm_cuda* cuda) {
  TDM_TRY_CU(&cuda->driver, cuCtxPushCurrent, cuda->context);
  return TDM_OK;
}

void tdm_cuda_leave(const tdm_cuda* cuda) {
  CUcontext ours;
  (void)cuda->driver.cuCtxPopCurrent(&ours);
}

bool tdm_cuda_enter_anyway(const tdm_cuda* cuda) {
  return cuda->driver.cuCtxPushCurrent(cuda->context) == CUDA_SUCCESS;
}

void tdm_cuda_waited(tdm_runtime* runtime, CUresult result, const char* what) {
  const char* name = NULL;
  if (result == CUDA_SUCCESS) return;
  (void)tdm_cuda_of(runtime)->driver.cuGetErrorName(result, &name);
  tdm_log(runtime, TDM_LOG_WARNING, "%s: %d %s", what, (int)result, name ? name : "?");
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static tdm_status choose_device(tdm_cuda* cuda, int32_t ordinal) {
  const tdm_cuda_driver* driver = &cuda->driver;
  int count = 0, major = 0, minor = 0;
  const CUresult begun = driver->cuInit(0);
  if (begun == CUDA_ERROR_NO_DEVICE)
    return TDM_FAIL(TDM_UNSUPPORTED, "device cuda:%d: the driver finds no CUDA device; the host device can be used",
                    ordinal);
  if (begun != CUDA_SUCCESS) return tdm_cuda_fail(driver, begun, "cuInit", __FILE__, __LINE__);
  TDM_TRY_CU(driver, cuDriverGetVersion, &cuda->version);
  TDM_TRY_CU(driver, cuDeviceGetCount, &count);
  if (ordinal >= count)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "device cuda:%d: the driver has %d devices", ordinal, count);
  TDM_TRY_CU(driver, cuDeviceGet, &cuda->device, ordinal);
  TDM_TRY_CU(driver, cuDeviceGetName, cuda->name, (int)sizeof cuda->name, cuda->device);
  TDM_TRY_CU(driver, cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda->device);
  TDM_TRY_CU(driver, cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, cuda->device);
  if (major != 9 || minor != 0)
    return TDM_FAIL(
        TDM_UNSUPPORTED,
        "device cuda:%d, %s, has compute capability %d.%d; tandem's kernels are for 9.0 (H100, H200) alone; the "
        "host device can be used",
        ordinal, cuda->name, major, minor);
  TDM_TRY_CU(driver, cuDeviceGetAttribute, &cuda->sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, cuda->device);
  TDM_TRY_CU(driver, cuDeviceGetAttribute, &cuda->shared_bytes, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
             cuda->device);
  return TDM_OK;
}

/* With the context current. */
static tdm_status open_in_context(tdm_runtime* runtime, tdm_cuda* cuda) {
  const tdm_cuda_driver* driver = &cuda->driver;
  const CUmemPoolProps pool = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                               .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = cuda->device}};
  TDM_TRY_CU(driver, cuStreamCreate, &cuda->stream, CU_STREAM_NON_BLOCKING);
  TDM_TRY_CU(driver, cuStreamCreate, &cuda->capture, CU_STREAM_NON_BLOCKING);
  TDM_TRY_CU(driver, cuMemPoolCreate, &cuda->pool, &pool);
  return tdm_cuda_kernels_open(runtime, cuda);
}

static tdm_status device_open(tdm_runtime* runtime) {
  tdm_cuda* cuda = tdm_host_alloc(runtime, sizeof *cuda);
  if (!cuda) return TDM_OUT_OF_MEMORY;
  pthread_mutex_init(&cuda->watch_mutex, NULL);
  runtime->device_state = cuda;
  const int32_t ordinal = runtime->config.device_ordinal;
  tdm_status status = tdm_cuda_driver_open(&cuda->driver);
  if (status != TDM_OK) return tdm_fail_prefix(status, "device cuda:%d", ordinal);
  TDM_TRY(choose_device(cuda, ordinal));
  TDM_TRY_CU(&cuda->driver, cuDevicePrimaryCtxRetain, &cuda->context, cuda->device);
  TDM_TRY(tdm_cuda_enter(cuda));
  status = open_in_context(runtime, cuda);
  tdm_cuda_leave(cuda);
  return status;
}

static void device_close(tdm_runtime* runtime) {
  tdm_cuda* cuda = tdm_cuda_of(runtime);
  if (!cuda) return;
  const tdm_cuda_driver* driver = &cuda->driver;
  if (cuda->context) {
    const bool entered = tdm_cuda_enter_anyway(cuda);
    tdm_cuda_kernels_close(runtime, cuda);
    if (cuda->pool) (void)driver->cuMemPoolDestroy(cuda->pool);
    if (cuda->capture) (void)driver->cuStreamDestroy(cuda->capture);
    if (cuda->stream) (void)driver->cuStreamDestroy(cuda->stream);
    if (entered) tdm_cuda_leave(cuda);
    (void)driver->cuDevicePrimaryCtxRelease(cuda->device);
  }
  tdm_cuda_driver_close(&cuda->driver);
  pthread_mutex_destroy(&cuda->watch_mutex);
  tdm_host_free(runtime, cuda, sizeof *cuda);
  runtime->device_state = NULL;
}

static void device_info(const tdm_runtime* runtime, tdm_runtime_info* info) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  memcpy(info->device_name, cuda->name, sizeof info->device_name);
  info->sms = cuda->sms;
  info->driver = cuda->version;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static tdm_status alloc_from_pool(const tdm_cuda* cuda, size_t bytes, CUdeviceptr* out_address) {
  TDM_TRY_CU(&cuda->driver, cuMemAllocFromPoolAsync, out_address, bytes, cuda->pool, cuda->stream);
  return TDM_OK;
}

static tdm_status zero(const tdm_cuda* cuda, CUdeviceptr address, size_t bytes) {
  TDM_TRY_CU(&cuda->driver, cuMemsetD8Async, address, 0, bytes, cuda->stream);
  TDM_TRY_CU(&cuda->driver, cuStreamSynchronize, cuda->stream);
  return TDM_OK;
}

/* Waits for what the runtime has on its streams. Not for the whole context: that would break captures that others make
 * in it. Under the mutex, so that no lane is being captured. Programs, which keep the memory they use, wait for the
 * caller's streams. */
static void wait_for_streams(tdm_runtime* runtime) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  pthread_mutex_lock(&runtime->launch_mutex);
  pthread_mutex_lock(&runtime->lanes_mutex);
  tdm_cuda_waited(runtime, cuda->driver.cuStreamSynchronize(cuda->stream),
                  "waiting for the runtime's stream to free memory");
  for (int32_t i = 0; i < runtime->n_lanes; i++) {
    const tdm_cuda_lane* lane = runtime->lanes[i]->state;
    tdm_cuda_waited(runtime, cuda->driver.cuStreamSynchronize(lane->stream), "waiting for a lane to free memory");
  }
  pthread_mutex_unlock(&runtime->lanes_mutex);
  pthread_mutex_unlock(&runtime->launch_mutex);
}

static void free_in_context(tdm_runtime* runtime, void* memory, size_t bytes, bool entered) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  const tdm_allocator* allocator = &runtime->config.device_allocator;
  if (entered) wait_for_streams(runtime);
  if (allocator->alloc)
    allocator->free(allocator->ctx, memory, bytes);
  else
    (void)cuda->driver.cuMemFreeAsync((CUdeviceptr)(uintptr_t)memory, cuda->stream);
}

/* With the context current. */
static tdm_status alloc_in_context(tdm_runtime* runtime, size_t bytes, CUdeviceptr* out_address) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  const tdm_allocator* allocator = &runtime->config.device_allocator;
  if (allocator->alloc) {
    *out_address = (CUdeviceptr)(uintptr_t)allocator->alloc(allocator->ctx, bytes, 256);
    if (!*out_address)
      return TDM_FAIL(TDM_OUT_OF_MEMORY, "no %zu bytes of device memory from the caller's allocator", bytes);
  } else {
    const tdm_status status = alloc_from_pool(cuda, bytes, out_address);
    if (status != TDM_OK) return tdm_fail_prefix(status, "%zu bytes of device memory", bytes);
  }
  const tdm_status status = zero(cuda, *out_address, bytes);
  if (status != TDM_OK) free_in_context(runtime, (void*)(uintptr_t)*out_address, bytes, true);
  return status;
}

static void* device_alloc(tdm_runtime* runtime, size_t bytes) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  CUdeviceptr address = 0;
  if (tdm_cuda_enter(cuda) != TDM_OK) return NULL;
  const tdm_status status = alloc_in_context(runtime, bytes, &address);
  tdm_cuda_leave(cuda);
  return status == TDM_OK ? (void*)(uintptr_t)address : NULL;
}

static void device_free(tdm_runtime* runtime, void* memory, size_t bytes) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  const bool entered = tdm_cuda_enter_anyway(cuda);
  free_in_context(runtime, memory, bytes, entered);
  if (entered) tdm_cuda_leave(cuda);
}

static tdm_status write_in_context(const tdm_cuda* cuda, void* destination, const void* source, size_t bytes) {
  TDM_TRY_CU(&cuda->driver, cuMemcpyHtoDAsync, (CUdeviceptr)(uintptr_t)destination, source, bytes, cuda->stream);
  TDM_TRY_CU(&cuda->driver, cuStreamSynchronize, cuda->stream);
  return TDM_OK;
}

static tdm_status read_in_context(const tdm_cuda* cuda, void* destination, const void* source, size_t bytes) {
  TDM_TRY_CU(&cuda->driver, cuMemcpyDtoHAsync, destination, (CUdeviceptr)(uintptr_t)source, bytes, cuda->stream);
  TDM_TRY_CU(&cuda->driver, cuStreamSynchronize, cuda->stream);
  return TDM_OK;
}

static tdm_status device_write(tdm_runtime* runtime, void* destination, const void* source, size_t bytes) {
  const tdm_cuda* cuda = tdm_cuda_of(runtime);
  TDM_TRY(tdm_cuda_enter(cuda));
  const tdm_status status = write_in_context(cuda, destination, source, bytes);
  tdm_cuda_leave(cuda);
  return status;
}

static tdm_status device_read(tdm_runtime* runtime, void* destination, const void* source, size_t bytes) {
  tdm_cuda* cuda = tdm_cuda_of(runtime);
  TDM_TRY(tdm_cuda_enter(cuda));
  const tdm_status status = read_in_context(cuda, destination, source, bytes);
  tdm_cuda_leave(cuda);
  return status == TDM_OK ? tdm_cuda_signals_check(cuda, NULL) : status;
}

static tdm_status synchronize_in_context(const tdm_cuda* cuda) {
  TDM_TRY_CU(&cuda->driver, cuStreamSynchronize, cuda->stream);
  return TDM_OK;
}

static tdm_status device_synchronize(tdm_runtime* runtime) {
  tdm_cuda* cuda = tdm_cuda_of(runtime);
  TDM_TRY(tdm_cuda_enter(cuda));
  const tdm_status status = synchronize_in_context(cuda);
  tdm_cuda_leave(cuda);
  return status == TDM_OK ? tdm_cuda_signals_check(cuda, NULL) : status;
}

const tdm_device tdm_cuda_device = {
    .open = device_open,
    .close = device_close,
    .info = device_info,
    .alloc = device_alloc,
    .free = device_free,
    .write = device_write,
    .read = device_read,
    .synchronize = device_synchronize,
    .lane_open = tdm_cuda_lane_open,
    .lane_close = tdm_cuda_lane_close,
    .program_open = tdm_cuda_program_open,
    .program_close = tdm_cuda_program_close,
    .launch = tdm_cuda_launch,
    .capture = tdm_cuda_capture,
    .replay = tdm_cuda_replay,
    .release = tdm_cuda_release,
    .trace = tdm_cuda_trace,
};
