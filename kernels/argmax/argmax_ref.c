#include "kernels/argmax/argmax.h"

#include <math.h>

#include "kernels/common/check.h"

int32_t tdm_argmax_row(const float* values, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; i++) {
    if (!isnan(values[i]) && (best < 0 || values[i] > values[best])) best = i;
  }
  return best < 0 ? 0 : (int32_t)best;
}

tdm_status tdm_argmax_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_argmax_args* args = args_;
  (void)plan;
  (void)scratch;
  const float* logits = tdm_view_data(&args->logits);
  int32_t* out = tdm_view_data(&args->out);
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("argmax", &args->n_rows, args->logits.shape[0], &rows));
  for (int64_t l = 0; l < rows; l++) {
    out[l] = tdm_argmax_row(logits + l * args->logits.stride[0], args->logits.shape[1]);
  }
  return TDM_OK;
}
