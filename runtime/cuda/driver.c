#include "runtime/cuda/driver.h"

#include <dlfcn.h>
#include <string.h>

/* One function of the table, under the name that cuda.h's macros make of it: cuMemcpyHtoDAsync_v2. */
typedef struct symbol {
  const char* name;
  size_t offset;
} symbol;

#define STRINGIZE_(x) #x
#define STRINGIZE(x)  STRINGIZE_(x)

static const symbol symbols[] = {
#define X(name) {STRINGIZE(name), offsetof(tdm_cuda_driver, name)},
    TDM_CUDA_FUNCTIONS(X)
#undef X
};

/* Looked up by exact names, whose signatures never change. cuGetProcAddress would choose for us: asked for
 * cuCtxSynchronize of CUDA 13 it answers a function that takes a context, while cuda.h declares that name without one.
 */
static tdm_status fill_table(tdm_cuda_driver* driver) {
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void* function = dlsym(driver->library, symbols[i].name);
    if (!function)
      return TDM_FAIL(TDM_UNSUPPORTED, "the CUDA driver has no %s of CUDA %d.%d, which this tandem was built with",
                      symbols[i].name, CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    memcpy((char*)driver + symbols[i].offset, &function, sizeof function); /* ISO C has no cast to function pointers */
  }
  return TDM_OK;
}

tdm_status tdm_cuda_driver_open(tdm_cuda_driver* out_driver) {
  *out_driver = (tdm_cuda_driver){0};
  out_driver->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!out_driver->library) return TDM_FAIL(TDM_UNSUPPORTED, "no CUDA driver: %s", dlerror());
  const tdm_status status = fill_table(out_driver);
  if (status != TDM_OK) tdm_cuda_driver_close(out_driver);
  return status;
}

void tdm_cuda_driver_close(tdm_cuda_driver* driver) {
  if (driver->library) dlclose(driver->library);
  *driver = (tdm_cuda_driver){0};
}

tdm_status tdm_cuda_fail(const tdm_cuda_driver* driver, CUresult result, const char* call, const char* file,
                         int32_t line) {
  const char *name = NULL, *text = NULL;
  driver->cuGetErrorName(result, &name);
  driver->cuGetErrorString(result, &text);
  const tdm_status status = result == CUDA_ERROR_OUT_OF_MEMORY ? TDM_OUT_OF_MEMORY : TDM_CUDA;
  return tdm_fail(status, (int32_t)result, file, line, "%s failed with %d %s: %s", call, (int)result, name ? name : "?",
                  text ? text : "unknown error");
}
