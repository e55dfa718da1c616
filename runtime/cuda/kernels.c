#include <string.h>

#include "runtime/cubins.h"
#include "runtime/cuda/cuda.h"

/* A kernel may use all the shared memory a block can have, less what it declares statically. */
static tdm_status allow_shared_memory(const tdm_cuda* cuda, CUkernel kernel) {
  int fixed = 0;
  TDM_TRY_CU(&cuda->driver, cuKernelGetAttribute, &fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel, cuda->device);
  TDM_TRY_CU(&cuda->driver, cuKernelSetAttribute, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
             cuda->shared_bytes - fixed, kernel, cuda->device);
  return TDM_OK;
}

static tdm_status add_kernel(tdm_runtime* runtime, tdm_cuda* cuda, CUkernel kernel) {
  tdm_cuda_kernels* all = &cuda->kernels;
  TDM_TRY(tdm_host_grow(runtime, (void**)&all->kernels, all->n_kernels, &all->capacity, sizeof *all->kernels));
  tdm_cuda_kernel entry = {.kernel = kernel};
  TDM_TRY_CU(&cuda->driver, cuKernelGetName, &entry.name, kernel);
  TDM_TRY(allow_shared_memory(cuda, kernel));
  all->kernels[all->n_kernels++] = entry;
  return TDM_OK;
}

static tdm_status add_library(tdm_runtime* runtime, tdm_cuda* cuda, const tdm_cubin* cubin) {
  tdm_cuda_kernels* all = &cuda->kernels;
  CUkernel kernels[64];
  unsigned count = 0;
  TDM_TRY_CU(&cuda->driver, cuLibraryLoadData, &all->libraries[all->n_libraries], cubin->data, NULL, NULL, 0, NULL,
             NULL, 0);
  const CUlibrary library = all->libraries[all->n_libraries++];
  TDM_TRY_CU(&cuda->driver, cuLibraryGetKernelCount, &count, library);
  if (count > sizeof kernels / sizeof *kernels)
    return TDM_FAIL(TDM_INTERNAL, "cubin %s has %u kernels, room is for %zu", cubin->name, count,
                    sizeof kernels / sizeof *kernels);
  TDM_TRY_CU(&cuda->driver, cuLibraryEnumerateKernels, kernels, count, library);
  for (unsigned i = 0; i < count; i++) TDM_TRY(add_kernel(runtime, cuda, kernels[i]));
  return TDM_OK;
}

tdm_status tdm_cuda_kernels_open(tdm_runtime* runtime, tdm_cuda* cuda) {
  cuda->kernels.libraries = tdm_host_alloc_array(runtime, tdm_cubin_count, sizeof *cuda->kernels.libraries);
  if (tdm_cubin_count && !cuda->kernels.libraries) return TDM_OUT_OF_MEMORY;
  for (int i = 0; i < tdm_cubin_count; i++) TDM_TRY(add_library(runtime, cuda, &tdm_cubins[i]));
  return TDM_OK;
}

void tdm_cuda_kernels_close(tdm_runtime* runtime, tdm_cuda* cuda) {
  tdm_cuda_kernels* all = &cuda->kernels;
  for (int32_t i = 0; i < all->n_libraries; i++) (void)cuda->driver.cuLibraryUnload(all->libraries[i]);
  tdm_host_free(runtime, all->libraries, (size_t)tdm_cubin_count * sizeof *all->libraries);
  tdm_host_free(runtime, all->kernels, (size_t)all->capacity * sizeof *all->kernels);
  *all = (tdm_cuda_kernels){0};
}

tdm_status tdm_cuda_kernels_find(const tdm_cuda* cuda, const char* name, CUkernel* out_kernel) {
  for (int64_t i = 0; i < cuda->kernels.n_kernels; i++) {
    if (strcmp(cuda->kernels.kernels[i].name, name) != 0) continue;
    *out_kernel = cuda->kernels.kernels[i].kernel;
    return TDM_OK;
  }
  return TDM_FAIL(TDM_UNSUPPORTED, "this build has no kernel %s", name);
}
