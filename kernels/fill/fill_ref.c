#include "kernels/fill/fill.h"

#include "kernels/common/convert.h"
#include "kernels/fill/fill_hash.h"

tdm_status tdm_fill_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_fill_args* args = args_;
  (void)plan;
  (void)scratch;
  int64_t count = 1;
  for (int32_t dim = 0; dim < args->out.rank; dim++) count *= args->out.shape[dim];
  uint8_t* data = tdm_view_data(&args->out);
  for (int64_t i = 0; i < count; i++) {
    const float random = (float)tdm_fill_hash(args->seed, (uint64_t)i) * (1.0f / 32768.0f);
    const float scaled = args->amplitude * random;
    const float value = args->offset + scaled;
    if (args->out.dtype == TDM_E4M3)
      data[i] = tdm_f32_to_e4m3(value);
    else
      tdm_store_f32(data, args->out.dtype, i, value);
  }
  return TDM_OK;
}
