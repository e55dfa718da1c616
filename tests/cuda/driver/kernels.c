#include <string.h>

#include "tests/cuda/driver/cubin.h"
#include "tests/cuda/driver/fake.h"

enum { MOST_ENTRIES = 64, MOST_SHARED = 227 * 1024, DEFAULT_SHARED = 48 * 1024 };

struct CUkern_st {
  object base;
  CUlibrary library;
  fake_entry entry;
  unsigned dynamic_shared; /* allowed */
};

struct CUlib_st {
  object base;
  CUkernel kernels[MOST_ENTRIES];
  unsigned n;
};

CUresult cuLibraryLoadData(CUlibrary* out_library, const void* image, CUjit_option* jit_options, void** jit_values,
                           unsigned n_jit, CUlibraryOption* options, void** values, unsigned n_options) {
  FAKE_CALL(cuLibraryLoadData);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(n_jit == 0 && n_options == 0 && !jit_options && !jit_values && !options && !values,
            CUDA_ERROR_INVALID_VALUE, "%s: options", name);
  fake_entry entries[MOST_ENTRIES];
  const int n = fake_cubin_entries(image, entries, MOST_ENTRIES);
  FAKE_NEED(n >= 0 && n <= MOST_ENTRIES, CUDA_ERROR_INVALID_IMAGE, "%s: %d kernels", name, n);
  CUlibrary library = fake_object_new(OBJECT_LIBRARY, sizeof *library);
  for (int i = 0; i < n; i++) {
    CUkernel kernel = fake_object_new(OBJECT_KERNEL, sizeof *kernel);
    kernel->library = library;
    kernel->entry = entries[i];
    kernel->dynamic_shared = DEFAULT_SHARED - entries[i].fixed_shared_bytes;
    library->kernels[library->n++] = kernel;
  }
  *out_library = library;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuLibraryUnload(CUlibrary library) {
  FAKE_CALL_ANYWAY(cuLibraryUnload);
  FAKE_NEED(fake_object_is(library, OBJECT_LIBRARY), CUDA_ERROR_INVALID_HANDLE, "%s: no library", name);
  for (unsigned i = 0; i < library->n; i++) fake_object_delete(library->kernels[i]);
  fake_object_delete(library);
  return fake_end(injected);
}

CUresult cuLibraryGetKernelCount(unsigned* out_count, CUlibrary library) {
  FAKE_CALL(cuLibraryGetKernelCount);
  FAKE_NEED(fake_object_is(library, OBJECT_LIBRARY), CUDA_ERROR_INVALID_HANDLE, "%s: no library", name);
  *out_count = library->n;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuLibraryEnumerateKernels(CUkernel* kernels, unsigned n, CUlibrary library) {
  FAKE_CALL(cuLibraryEnumerateKernels);
  FAKE_NEED(fake_object_is(library, OBJECT_LIBRARY), CUDA_ERROR_INVALID_HANDLE, "%s: no library", name);
  for (unsigned i = 0; i < n && i < library->n; i++) kernels[i] = library->kernels[i];
  return fake_end(CUDA_SUCCESS);
}

CUresult cuKernelGetName(const char** out_name, CUkernel kernel) {
  FAKE_CALL(cuKernelGetName);
  FAKE_NEED(fake_object_is(kernel, OBJECT_KERNEL), CUDA_ERROR_INVALID_HANDLE, "%s: no kernel", name);
  *out_name = kernel->entry.name;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuKernelGetAttribute(int* out_value, CUfunction_attribute attribute, CUkernel kernel, CUdevice device) {
  FAKE_CALL(cuKernelGetAttribute);
  FAKE_NEED(fake_object_is(kernel, OBJECT_KERNEL), CUDA_ERROR_INVALID_HANDLE, "%s: no kernel", name);
  FAKE_NEED(device == 0 && attribute == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, CUDA_ERROR_INVALID_VALUE,
            "%s: attribute %d", name, (int)attribute);
  *out_value = (int)kernel->entry.fixed_shared_bytes;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
  FAKE_CALL(cuKernelSetAttribute);
  FAKE_NEED(fake_object_is(kernel, OBJECT_KERNEL), CUDA_ERROR_INVALID_HANDLE, "%s: no kernel", name);
  FAKE_NEED(device == 0 && attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value >= 0 &&
                (unsigned)value + kernel->entry.fixed_shared_bytes <= MOST_SHARED,
            CUDA_ERROR_INVALID_VALUE, "%s: attribute %d, value %d", name, (int)attribute, value);
  kernel->dynamic_shared = (unsigned)value;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
  FAKE_CALL(cuLaunchKernelEx);
  const CUkernel kernel = (CUkernel)(void*)function;
  const unsigned block = config->blockDimX * config->blockDimY * config->blockDimZ;
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(kernel, OBJECT_KERNEL), CUDA_ERROR_INVALID_HANDLE, "%s: no kernel", name);
  FAKE_NEED(fake_object_is(config->hStream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(config->gridDimX >= 1 && config->gridDimX <= INT32_MAX && config->gridDimY == 1 && config->gridDimZ == 1,
            CUDA_ERROR_INVALID_VALUE, "%s: %s, grid %u x %u x %u", name, kernel->entry.name, config->gridDimX,
            config->gridDimY, config->gridDimZ);
  FAKE_NEED(block >= 1 && block <= 1024 && (!kernel->entry.most_threads || block <= kernel->entry.most_threads),
            CUDA_ERROR_INVALID_VALUE, "%s: %s, %u threads of at most %u", name, kernel->entry.name, block,
            kernel->entry.most_threads);
  FAKE_NEED(config->sharedMemBytes <= kernel->dynamic_shared, CUDA_ERROR_INVALID_VALUE,
            "%s: %s, %u bytes of shared memory of at most %u", name, kernel->entry.name, config->sharedMemBytes,
            kernel->dynamic_shared);
  bool overlaps = false;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const CUlaunchAttribute* attribute = &config->attrs[i];
    const CUevent begun = attribute->value.launchCompletionEvent.event;
    const bool order = attribute->id == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT;
    FAKE_NEED(order || attribute->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, CUDA_ERROR_INVALID_VALUE,
              "%s: attribute %d", name, (int)attribute->id);
    FAKE_NEED(!order || (fake_object_is(begun, OBJECT_EVENT) && attribute->value.launchCompletionEvent.flags == 0),
              CUDA_ERROR_INVALID_HANDLE, "%s: no event for the start", name);
    /* Who waits for the start is behind what the kernel is behind, and not behind the kernel. */
    if (order) fake_put(config->hStream, (fake_op){.kind = FAKE_RECORD, .event = begun});
    overlaps = overlaps || !order;
  }
  FAKE_NEED(params && params[0] && !extra, CUDA_ERROR_INVALID_VALUE, "%s: %s without parameters", name,
            kernel->entry.name);
  const tdm_step_sync none = {0};
  fake_put(config->hStream, (fake_op){.kind = FAKE_LAUNCH,
                                      .kernel = kernel->entry.name,
                                      .grid = config->gridDimX,
                                      .block = block,
                                      .shared = config->sharedMemBytes,
                                      .overlaps = overlaps,
                                      .sync = kernel->entry.n_params > 1 ? *(const tdm_step_sync*)params[1] : none,
                                      .params_bytes = kernel->entry.params_bytes});
  return fake_end(CUDA_SUCCESS);
}

/* ---- tensor maps ------------------------------------------------------------------------------------------------ */

static unsigned element_bytes(CUtensorMapDataType type) {
  return type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2 : 4;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* out_map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  FAKE_CALL(cuTensorMapEncodeTiled);
  FAKE_NEED_CONTEXT();
  FAKE_NEED((uintptr_t)out_map % 64 == 0 && (uintptr_t)address % 16 == 0 && address, CUDA_ERROR_INVALID_VALUE,
            "%s: map at %p, tensor at %p", name, (void*)out_map, address);
  FAKE_NEED(rank >= 1 && rank <= 5, CUDA_ERROR_INVALID_VALUE, "%s: rank %u", name, rank);
  const unsigned row_bytes = box[0] * element_bytes(type);
  FAKE_NEED(row_bytes % 16 == 0 && (swizzle != CU_TENSOR_MAP_SWIZZLE_128B || row_bytes <= 128),
            CUDA_ERROR_INVALID_VALUE, "%s: %u bytes in a row of the box", name, row_bytes);
  for (cuuint32_t i = 0; i < rank; i++) {
    FAKE_NEED(dims[i] >= 1 && dims[i] <= (cuuint64_t)1 << 32 && box[i] >= 1 && box[i] <= 256 && element_strides[i] == 1,
              CUDA_ERROR_INVALID_VALUE, "%s: dimension %u has %llu elements, its box %u", name, i,
              (unsigned long long)dims[i], box[i]);
    if (i + 1 < rank)
      FAKE_NEED(strides[i] % 16 == 0 && strides[i] < (cuuint64_t)1 << 40, CUDA_ERROR_INVALID_VALUE,
                "%s: stride %u has %llu bytes", name, i, (unsigned long long)strides[i]);
  }
  memset(out_map, (int)interleave + (int)promotion + (int)fill, sizeof *out_map);
  return fake_end(CUDA_SUCCESS);
}
