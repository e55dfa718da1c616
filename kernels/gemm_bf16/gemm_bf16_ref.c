#include "kernels/gemm_bf16/gemm_bf16.h"

#include "kernels/common/check.h"
#include "kernels/common/matmul.h"

tdm_status tdm_gemm_bf16_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_gemm_bf16_args* args = args_;
  (void)plan;
  (void)scratch;
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("gemm_bf16", &args->n_tokens, args->a.shape[args->a.rank - 2], &rows));
  if (args->a.rank == 2) {
    tdm_matmul(&args->a, NULL, &args->w, NULL, &args->out, rows);
    return TDM_OK;
  }
  for (int64_t b = 0; b < args->a.shape[0]; b++) {
    tdm_view a = tdm_view_matrix(&args->a, b);
    tdm_view w = tdm_view_matrix(&args->w, b);
    tdm_view out = tdm_view_matrix(&args->out, b);
    tdm_matmul(&a, NULL, &w, NULL, &out, rows);
  }
  return TDM_OK;
}
