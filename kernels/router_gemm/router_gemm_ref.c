#include "kernels/router_gemm/router_gemm.h"

#include "kernels/common/check.h"
#include "kernels/common/matmul.h"

tdm_status tdm_router_gemm_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_router_gemm_args* args = args_;
  (void)plan;
  (void)scratch;
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("router_gemm", &args->n_tokens, args->x.shape[0], &rows));
  tdm_matmul(&args->x, NULL, &args->w, NULL, &args->logits, rows);
  return TDM_OK;
}
