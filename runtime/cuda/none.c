#include "runtime/device.h"

/* The CUDA device of a build without the CUDA toolkit. */

static tdm_status device_open(tdm_runtime* runtime) {
  return TDM_FAIL(TDM_UNSUPPORTED,
                  "device cuda:%d: this tandem %s was built without CUDA; only the host device can be used",
                  runtime->config.device_ordinal, tdm_version());
}

static void device_close(tdm_runtime* runtime) {
  (void)runtime;
}

const tdm_device tdm_cuda_device = {.open = device_open, .close = device_close};
