#ifndef RUNTIME_CUDA_DRIVER_H
#define RUNTIME_CUDA_DRIVER_H

/* The CUDA driver, found at run time: tandem loads on machines without one. */

#include <cuda.h>

#include "runtime/runtime.h"

/* Every driver function in use, once. */
#define TDM_CUDA_FUNCTIONS(X)                                                                                          \
  X(cuInit)                                                                                                            \
  X(cuDriverGetVersion)                                                                                                \
  X(cuGetErrorName)                                                                                                    \
  X(cuGetErrorString)                                                                                                  \
  X(cuDeviceGetCount)                                                                                                  \
  X(cuDeviceGet)                                                                                                       \
  X(cuDeviceGetName)                                                                                                   \
  X(cuDeviceGetAttribute)                                                                                              \
  X(cuDevicePrimaryCtxRetain)                                                                                          \
  X(cuDevicePrimaryCtxRelease)                                                                                         \
  X(cuCtxPushCurrent)                                                                                                  \
  X(cuCtxPopCurrent)                                                                                                   \
  X(cuMemPoolCreate)                                                                                                   \
  X(cuMemPoolDestroy)                                                                                                  \
  X(cuMemAllocFromPoolAsync)                                                                                           \
  X(cuMemFreeAsync)                                                                                                    \
  X(cuMemHostAlloc)                                                                                                    \
  X(cuMemFreeHost)                                                                                                     \
  X(cuMemsetD8Async)                                                                                                   \
  X(cuMemcpyHtoDAsync)                                                                                                 \
  X(cuMemcpyDtoHAsync)                                                                                                 \
  X(cuStreamCreate)                                                                                                    \
  X(cuStreamDestroy)                                                                                                   \
  X(cuStreamSynchronize)                                                                                               \
  X(cuStreamWaitEvent)                                                                                                 \
  X(cuStreamBeginCapture)                                                                                              \
  X(cuStreamEndCapture)                                                                                                \
  X(cuEventCreate)                                                                                                     \
  X(cuEventDestroy)                                                                                                    \
  X(cuEventRecord)                                                                                                     \
  X(cuEventSynchronize)                                                                                                \
  X(cuGraphInstantiateWithFlags)                                                                                       \
  X(cuGraphLaunch)                                                                                                     \
  X(cuGraphDestroy)                                                                                                    \
  X(cuGraphExecDestroy)                                                                                                \
  X(cuLibraryLoadData)                                                                                                 \
  X(cuLibraryUnload)                                                                                                   \
  X(cuLibraryGetKernelCount)                                                                                           \
  X(cuLibraryEnumerateKernels)                                                                                         \
  X(cuKernelGetName)                                                                                                   \
  X(cuKernelGetAttribute)                                                                                              \
  X(cuKernelSetAttribute)                                                                                              \
  X(cuLaunchKernelEx)                                                                                                  \
  X(cuTensorMapEncodeTiled)                                                                                            \
  X(cuDeviceGetDevResource)                                                                                            \
  X(cuDevSmResourceSplitByCount)                                                                                       \
  X(cuDevResourceGenerateDesc)                                                                                         \
  X(cuGreenCtxCreate)                                                                                                  \
  X(cuGreenCtxDestroy)                                                                                                 \
  X(cuGreenCtxStreamCreate)

/* Members are named as cuda.h's macros name the functions (cuMemAlloc_v2), which is also how they are called. */
typedef struct tdm_cuda_driver {
#define X(name) __typeof__(name)* name;
  TDM_CUDA_FUNCTIONS(X)
#undef X
  void* library;
} tdm_cuda_driver;

/* Opens libcuda.so.1 and fills the table. UNSUPPORTED with what is missing. */
tdm_status tdm_cuda_driver_open(tdm_cuda_driver* out_driver);
void tdm_cuda_driver_close(tdm_cuda_driver* driver);

/* Records a failing driver call; out of memory becomes TDM_OUT_OF_MEMORY. */
tdm_status tdm_cuda_fail(const tdm_cuda_driver* driver, CUresult result, const char* call, const char* file,
                         int32_t line);

/* TDM_TRY_CU(driver, cuStreamSynchronize, stream): leaves the function when the call fails. */
#define TDM_TRY_CU(driver, function, ...)                                                                              \
  do {                                                                                                                 \
    const CUresult try_result_ = (driver)->function(__VA_ARGS__);                                                      \
    if (try_result_ != CUDA_SUCCESS) return tdm_cuda_fail((driver), try_result_, #function, __FILE__, __LINE__);       \
  } while (0)

#endif
