#include "kernels/bmm_fp8/bmm_fp8.h"

#include "kernels/common/check.h"
#include "kernels/common/matmul.h"

tdm_status tdm_bmm_fp8_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_bmm_fp8_args* args = void_args;
  (void)plan;
  (void)scratch;
  bool quantised = tdm_view_present(&args->a_scale);
  int64_t n = args->w.shape[1], rows = 0;
  TDM_TRY(tdm_live_rows("bmm_fp8", &args->n_tokens, args->a.shape[1], &rows));
  for (int64_t g = 0; g < args->a.shape[0]; g++) {
    tdm_view a = tdm_view_matrix(&args->a, g), a_scale = {0};
    tdm_view w = tdm_view_matrix(&args->w, g), w_scale = tdm_view_matrix(&args->w_scale, g);
    tdm_view out = tdm_view_slice(args->out, 1, g * n, n);
    if (quantised) a_scale = tdm_view_matrix(&args->a_scale, g);
    tdm_matmul(&a, quantised ? &a_scale : NULL, &w, &w_scale, &out, rows);
  }
  return TDM_OK;
}
