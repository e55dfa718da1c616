#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/driver/fake.h"

struct CUctx_st {
  int unused;
};

struct CUmemPoolHandle_st {
  object base;
};

typedef struct block {
  object base;
  size_t bytes;
  CUmemoryPool pool;
  void* memory;
} block;

typedef struct pinned {
  object base;
  void* memory;
} pinned;

/* Partitions are ranges of SMs here; a resource carries its first SM, and which question for the whole
 * device it was split from, in the bytes that the driver keeps for itself. */
struct CUdevResourceDesc_st {
  object base;
  unsigned query, first, count;
  bool balanced; /* work queues of its own */
};

struct CUgreenCtx_st {
  object base;
  unsigned query, first, count;
  bool balanced;
};

enum { QUEUES = 1000 /* the type of work queues in CUDA 13.1 */ };

static struct CUctx_st primary;
static _Thread_local CUcontext pushed[16];
static _Thread_local int n_pushed;

/* ---- errors ------------------------------------------------------------------------------------------------------ */

CUresult cuGetErrorName(CUresult error, const char** out_name) {
  *out_name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** out_text) {
  *out_text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error of the fake driver";
  return CUDA_SUCCESS;
}

/* ---- devices and contexts --------------------------------------------------------------------------------------- */

CUresult cuInit(unsigned flags) {
  FAKE_CALL(cuInit);
  FAKE_NEED(flags == 0, CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  return fake_end(fake.device.count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

CUresult cuDriverGetVersion(int* out_version) {
  FAKE_CALL(cuDriverGetVersion);
  *out_version = fake.device.work_queues ? 13010 : CUDA_VERSION;
  (void)name;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDeviceGetCount(int* out_count) {
  FAKE_CALL(cuDeviceGetCount);
  *out_count = fake.device.count;
  (void)name;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice* out_device, int ordinal) {
  FAKE_CALL(cuDeviceGet);
  FAKE_NEED(ordinal >= 0 && ordinal < fake.device.count, CUDA_ERROR_INVALID_DEVICE, "%s: %d", name, ordinal);
  *out_device = ordinal;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDeviceGetName(char* out_name, int bytes, CUdevice device) {
  FAKE_CALL(cuDeviceGetName);
  FAKE_NEED(device >= 0 && device < fake.device.count, CUDA_ERROR_INVALID_DEVICE, "%s: %d", name, device);
  snprintf(out_name, (size_t)bytes, "Fake H200");
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDeviceGetAttribute(int* out_value, CUdevice_attribute attribute, CUdevice device) {
  FAKE_CALL(cuDeviceGetAttribute);
  FAKE_NEED(device >= 0 && device < fake.device.count, CUDA_ERROR_INVALID_DEVICE, "%s: %d", name, device);
  switch ((int)attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
    *out_value = fake.device.major;
    break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
    *out_value = fake.device.minor;
    break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
    *out_value = fake.device.sms;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    *out_value = 227 * 1024;
    break;
  default:
    return fake_end(fake_breach(CUDA_ERROR_INVALID_VALUE, "%s: attribute %d", name, (int)attribute));
  }
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* out_context, CUdevice device) {
  FAKE_CALL(cuDevicePrimaryCtxRetain);
  FAKE_NEED(device == 0, CUDA_ERROR_INVALID_DEVICE, "%s: %d", name, device);
  fake.contexts++;
  *out_context = &primary;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  FAKE_CALL_ANYWAY(cuDevicePrimaryCtxRelease);
  FAKE_NEED(device == 0 && fake.contexts > 0, CUDA_ERROR_INVALID_CONTEXT, "%s: it is not retained", name);
  fake.contexts--;
  return fake_end(injected);
}

bool fake_context_is_current(void) {
  return n_pushed > 0 && fake.contexts > 0;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  FAKE_CALL(cuCtxPushCurrent);
  FAKE_NEED(context == &primary && fake.contexts > 0 && n_pushed < 16, CUDA_ERROR_INVALID_CONTEXT, "%s: no context",
            name);
  pushed[n_pushed++] = context;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuCtxPopCurrent(CUcontext* out_context) {
  FAKE_CALL_ANYWAY(cuCtxPopCurrent);
  FAKE_NEED(n_pushed > 0, CUDA_ERROR_INVALID_CONTEXT, "%s: none is pushed", name);
  *out_context = pushed[--n_pushed];
  return fake_end(injected);
}

CUresult cuCtxSynchronize(void) {
  FAKE_CALL(cuCtxSynchronize);
  FAKE_NEED_CONTEXT();
  return fake_end(fake_break_captures(name));
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

CUresult cuMemPoolCreate(CUmemoryPool* out_pool, const CUmemPoolProps* props) {
  FAKE_CALL(cuMemPoolCreate);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(props->allocType == CU_MEM_ALLOCATION_TYPE_PINNED && props->location.type == CU_MEM_LOCATION_TYPE_DEVICE,
            CUDA_ERROR_INVALID_VALUE, "%s: not of device memory", name);
  *out_pool = fake_object_new(OBJECT_POOL, sizeof **out_pool);
  return fake_end(CUDA_SUCCESS);
}

CUresult cuMemPoolDestroy(CUmemoryPool pool) {
  FAKE_CALL_ANYWAY(cuMemPoolDestroy);
  FAKE_NEED(fake_object_is(pool, OBJECT_POOL), CUDA_ERROR_INVALID_VALUE, "%s: no pool", name);
  fake_object_delete(pool);
  return fake_end(injected);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* out_address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  FAKE_CALL(cuMemAllocFromPoolAsync);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(pool, OBJECT_POOL), CUDA_ERROR_INVALID_VALUE, "%s: no pool", name);
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(bytes > 0, CUDA_ERROR_INVALID_VALUE, "%s: no bytes", name);
  if (fake_is_capturing(stream)) return fake_end(fake_break_capture(stream, name));
  if (fake.device.memory && (bytes > fake.device.memory || fake.pool_bytes > fake.device.memory - bytes))
    return fake_end(CUDA_ERROR_OUT_OF_MEMORY);
  void* memory = NULL;
  if (posix_memalign(&memory, 256, bytes) != 0) return fake_end(CUDA_ERROR_OUT_OF_MEMORY);
  memset(memory, 0xcd, bytes);
  block* one = fake_object_new(OBJECT_BLOCK, sizeof *one);
  *one = (block){.base = one->base, .bytes = bytes, .pool = pool, .memory = memory};
  fake.pool_bytes += bytes;
  *out_address = (CUdeviceptr)(uintptr_t)memory;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
  FAKE_CALL_ANYWAY(cuMemFreeAsync);
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  if (fake_is_capturing(stream)) return fake_end(fake_break_capture(stream, name));
  block* found = NULL;
  for (object* one = fake.objects; one && !found; one = one->next)
    if (one->kind == OBJECT_BLOCK && (uintptr_t)((block*)(void*)one)->memory == (uintptr_t)address)
      found = (block*)(void*)one;
  FAKE_NEED(found && fake_object_is(found->pool, OBJECT_POOL), CUDA_ERROR_INVALID_VALUE, "%s: no memory of a pool",
            name);
  fake.pool_bytes -= found->bytes;
  free(found->memory);
  fake_object_delete(found);
  return fake_end(injected);
}

CUresult cuMemHostAlloc(void** out_memory, size_t bytes, unsigned flags) {
  FAKE_CALL(cuMemHostAlloc);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(bytes > 0 && flags == (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP), CUDA_ERROR_INVALID_VALUE,
            "%s: %zu bytes, flags %u", name, bytes, flags);
  pinned* one = fake_object_new(OBJECT_PINNED, sizeof *one);
  if (one && !(one->memory = malloc(bytes))) {
    fake_object_delete(one);
    one = NULL;
  }
  if (!one) return fake_end(CUDA_ERROR_OUT_OF_MEMORY);
  *out_memory = one->memory;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuMemFreeHost(void* memory) {
  FAKE_CALL_ANYWAY(cuMemFreeHost);
  pinned* found = NULL;
  for (object* one = fake.objects; one && !found; one = one->next)
    if (one->kind == OBJECT_PINNED && ((pinned*)(void*)one)->memory == memory) found = (pinned*)(void*)one;
  FAKE_NEED(found, CUDA_ERROR_INVALID_VALUE, "%s: no pinned memory", name);
  free(found->memory);
  fake_object_delete(found);
  return fake_end(injected);
}

void* fake_cuda_pinned(void) {
  for (object* one = fake.objects; one; one = one->next)
    if (one->kind == OBJECT_PINNED) return ((pinned*)(void*)one)->memory;
  return NULL;
}

static CUresult put_copy(const char* name, CUstream stream) {
  if (!fake_context_is_current()) return fake_breach(CUDA_ERROR_INVALID_CONTEXT, "%s: no context is current", name);
  if (!fake_object_is(stream, OBJECT_STREAM)) return fake_breach(CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  if (fake_is_capturing(stream)) return fake_break_capture(stream, name);
  fake_put(stream, (fake_op){.kind = FAKE_OTHER});
  return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
  FAKE_CALL(cuMemsetD8Async);
  const CUresult result = put_copy(name, stream);
  if (result == CUDA_SUCCESS) memset((void*)(uintptr_t)address, value, bytes);
  return fake_end(result);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  FAKE_CALL(cuMemcpyHtoDAsync);
  const CUresult result = put_copy(name, stream);
  if (result == CUDA_SUCCESS) memcpy((void*)(uintptr_t)to, from, bytes);
  return fake_end(result);
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  FAKE_CALL(cuMemcpyDtoHAsync);
  const CUresult result = put_copy(name, stream);
  if (result == CUDA_SUCCESS) memcpy(to, (const void*)(uintptr_t)from, bytes);
  return fake_end(result);
}

/* ---- partitions ------------------------------------------------------------------------------------------------- */

static CUdevResource resource(unsigned query, unsigned first, unsigned count) {
  CUdevResource made = {.type = CU_DEV_RESOURCE_TYPE_SM,
                        .sm = {.smCount = count,
                               .minSmPartitionSize = (unsigned)fake.device.step,
                               .smCoscheduledAlignment = (unsigned)fake.device.step}};
  const unsigned words[2] = {first, query};
  memcpy(made._internal_padding, words, sizeof words);
  return made;
}

static unsigned padding(const CUdevResource* of, int index) {
  unsigned words[2];
  memcpy(words, of->_internal_padding, sizeof words);
  return words[index];
}

static unsigned first_sm(const CUdevResource* of) {
  return padding(of, 0);
}

static unsigned query_of(const CUdevResource* of) {
  return padding(of, 1);
}

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource* out_resource, CUdevResourceType type) {
  FAKE_CALL(cuDeviceGetDevResource);
  FAKE_NEED(device == 0, CUDA_ERROR_INVALID_VALUE, "%s: device %d", name, device);
  if (type == (CUdevResourceType)QUEUES && fake.device.work_queues) {
    const int queues[3] = {device, 8, 0};
    *out_resource = (CUdevResource){.type = type};
    memcpy(out_resource->_oversize, queues, sizeof queues);
    return fake_end(CUDA_SUCCESS);
  }
  if (type != CU_DEV_RESOURCE_TYPE_SM) return fake_end(CUDA_ERROR_INVALID_RESOURCE_TYPE);
  *out_resource = resource(++fake.queries, 0, (unsigned)fake.device.sms);
  return fake_end(CUDA_SUCCESS);
}

/* As measured (docs/peers.md): one group of `wanted` SMs rounded up to the step, and all that is left over. */
CUresult cuDevSmResourceSplitByCount(CUdevResource* out_groups, unsigned* in_out_groups, const CUdevResource* input,
                                     CUdevResource* out_rest, unsigned flags, unsigned wanted) {
  FAKE_CALL(cuDevSmResourceSplitByCount);
  FAKE_NEED(*in_out_groups == 1 && input->type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_VALUE, "%s: %u groups",
            name, *in_out_groups);
  const bool alone = (flags & CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING) != 0;
  const unsigned step = alone ? 2 : (unsigned)fake.device.step;
  const unsigned granted = wanted == 0 ? step : (wanted + step - 1) / step * step, first = first_sm(input);
  if (granted > input->sm.smCount) return fake_end(CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
  const unsigned left = input->sm.smCount - granted;
  *out_groups = resource(query_of(input), first, granted);
  if (out_rest) *out_rest = resource(query_of(input), first + granted, left);
  return fake_end(CUDA_SUCCESS);
}

CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* out_description, CUdevResource* resources, unsigned n) {
  FAKE_CALL(cuDevResourceGenerateDesc);
  int queues[3] = {0, 0, 0};
  FAKE_NEED((n == 1 || n == 2) && resources->type == CU_DEV_RESOURCE_TYPE_SM && resources->sm.smCount > 0,
            CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, "%s: %u resources", name, n);
  if (n == 2) {
    memcpy(queues, resources[1]._oversize, sizeof queues);
    FAKE_NEED(fake.device.work_queues && resources[1].type == (CUdevResourceType)QUEUES && queues[0] == 0 &&
                  queues[1] == 8 && queues[2] == 1,
              CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, "%s: work queues %d %d %d", name, queues[0], queues[1],
              queues[2]);
  }
  CUdevResourceDesc made = fake_object_new(OBJECT_DESC, sizeof *made); /* the driver has no way to give it back */
  made->query = query_of(resources);
  made->first = first_sm(resources);
  made->count = resources->sm.smCount;
  made->balanced = n == 2;
  *out_description = made;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuGreenCtxCreate(CUgreenCtx* out_green, CUdevResourceDesc description, CUdevice device, unsigned flags) {
  FAKE_CALL(cuGreenCtxCreate);
  FAKE_NEED(fake_object_is(description, OBJECT_DESC) && device == 0 && flags == CU_GREEN_CTX_DEFAULT_STREAM,
            CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  for (const object* one = fake.objects; one; one = one->next) {
    const struct CUgreenCtx_st* other = (const struct CUgreenCtx_st*)(const void*)one;
    FAKE_NEED(one->kind != OBJECT_GREEN || other->query != description->query ||
                  other->first + other->count <= description->first ||
                  description->first + description->count <= other->first,
              CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, "%s: SMs %u .. %u overlap another's", name, description->first,
              description->first + description->count - 1);
  }
  CUgreenCtx made = fake_object_new(OBJECT_GREEN, sizeof *made);
  made->query = description->query;
  made->first = description->first;
  made->count = description->count;
  made->balanced = description->balanced;
  fake.contexts++; /* it retains the primary context */
  *out_green = made;
  return fake_end(CUDA_SUCCESS);
}

int fake_cuda_balanced(void) {
  int n = 0;
  for (const object* one = fake.objects; one; one = one->next)
    n += one->kind == OBJECT_GREEN && ((const struct CUgreenCtx_st*)(const void*)one)->balanced;
  return n;
}

CUresult cuGreenCtxDestroy(CUgreenCtx green) {
  FAKE_CALL_ANYWAY(cuGreenCtxDestroy);
  FAKE_NEED(fake_object_is(green, OBJECT_GREEN), CUDA_ERROR_INVALID_CONTEXT, "%s: no green context", name);
  fake_object_delete(green);
  fake.contexts--;
  return fake_end(injected);
}

CUresult cuGreenCtxStreamCreate(CUstream* out_stream, CUgreenCtx green, unsigned flags, int priority) {
  FAKE_CALL(cuGreenCtxStreamCreate);
  FAKE_NEED(fake_object_is(green, OBJECT_GREEN) && flags == CU_STREAM_NON_BLOCKING && priority == 0,
            CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  fake_streams_new(out_stream, green);
  return fake_end(CUDA_SUCCESS);
}

fake_live fake_cuda_live(void) {
  pthread_mutex_lock(&fake.mutex);
  const fake_live live = {.contexts = fake.contexts,
                          .streams = fake_object_count(OBJECT_STREAM),
                          .events = fake_object_count(OBJECT_EVENT),
                          .pools = fake_object_count(OBJECT_POOL),
                          .libraries = fake_object_count(OBJECT_LIBRARY),
                          .greens = fake_object_count(OBJECT_GREEN),
                          .graphs = fake_object_count(OBJECT_GRAPH),
                          .execs = fake_object_count(OBJECT_EXEC),
                          .blocks = fake_object_count(OBJECT_BLOCK),
                          .pinned = fake_object_count(OBJECT_PINNED),
                          .bytes = fake.pool_bytes,
                          .pushed = n_pushed};
  pthread_mutex_unlock(&fake.mutex);
  return live;
}
