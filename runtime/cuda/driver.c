#include "runtime/cuda/driver.h"

#include <dlfcn.h>
#include <string.h>

typedef CUresult (*get_proc_address_fn)(const char* symbol, void** function, int version, cuuint64_t flags,
                                        CUdriverProcAddressQueryResult* result);

/* One function of the table. */
typedef struct symbol {
  const char* name;
  size_t offset;
} symbol;

static const symbol symbols[] = {
#define X(name) {#name, offsetof(tdm_cuda_driver, name)},
    TDM_CUDA_FUNCTIONS(X)
#undef X
};

static tdm_status fill_table(tdm_cuda_driver* driver) {
  void* address = dlsym(driver->library, "cuGetProcAddress_v2");
  if (!address)
    return TDM_FAIL(TDM_UNSUPPORTED, "libcuda.so.1 has no cuGetProcAddress_v2: the driver is older than CUDA 12");
  get_proc_address_fn get_proc_address;
  memcpy(&get_proc_address, &address, sizeof address); /* ISO C has no cast from object to function pointer */
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    CUdriverProcAddressQueryResult found;
    void* function = NULL;
    if (get_proc_address(symbols[i].name, &function, CUDA_VERSION, CU_GET_PROC_ADDRESS_DEFAULT, &found) !=
            CUDA_SUCCESS ||
        !function)
      return TDM_FAIL(TDM_UNSUPPORTED, "the CUDA driver has no %s of CUDA %d.%d, which this tandem was built with",
                      symbols[i].name, CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    memcpy((char*)driver + symbols[i].offset, &function, sizeof function);
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
