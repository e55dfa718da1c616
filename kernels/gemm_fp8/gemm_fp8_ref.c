#include "kernels/gemm_fp8/gemm_fp8.h"

#include "kernels/common/check.h"
#include "kernels/common/matmul.h"

tdm_status tdm_gemm_fp8_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_gemm_fp8_args* args = args_;
  (void)plan;
  (void)scratch;
  const tdm_view* a_scale = tdm_view_present(&args->a_scale) ? &args->a_scale : NULL;
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("gemm_fp8", &args->n_tokens, args->a.shape[0], &rows));
  tdm_matmul(&args->a, a_scale, &args->w, &args->w_scale, &args->out, rows);
  return TDM_OK;
}
