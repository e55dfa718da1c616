#include "runtime/kernel.h"

#include <string.h>

#include "runtime/cubins.h"
#include "runtime/hash.h"
#include "runtime/status.h"

uint64_t tdm_cubins_hash(void) {
  uint64_t hash = TDM_HASH_BEGIN;
  for (int i = 0; i < tdm_cubin_count; i++) {
    hash = tdm_hash(hash, tdm_cubins[i].name, strlen(tdm_cubins[i].name));
    hash = tdm_hash(hash, tdm_cubins[i].data, tdm_cubins[i].bytes);
  }
  return hash;
}

tdm_status tdm_encoded_step_add(tdm_encoded_step* step, const tdm_kernel_launch* launch, const void* params,
                                size_t params_bytes) {
  if (step->n_launches == TDM_STEP_LAUNCHES || params_bytes > TDM_KERNEL_PARAMS_BYTES)
    return TDM_FAIL(TDM_INTERNAL, "%s: launch %d with %zu bytes of parameters has no room", launch->kernel,
                    step->n_launches + 1, params_bytes);
  tdm_encoded_launch* one = &step->launches[step->n_launches++];
  one->launch = *launch;
  one->params_bytes = (uint32_t)params_bytes;
  memcpy(one->params, params, params_bytes);
  return TDM_OK;
}
