#include "kernels/gather_rows/gather_rows.h"

#include <string.h>

#include "kernels/common/check.h"

tdm_status tdm_gather_rows_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_gather_rows_args* args = args_;
  (void)plan;
  (void)scratch;
  const int32_t* rows = tdm_view_data(&args->rows);
  const char* x = tdm_view_data(&args->x);
  char* out = tdm_view_data(&args->out);
  int64_t element = (int64_t)tdm_dtype_bytes(args->x.dtype);
  int64_t live = 0;
  TDM_TRY(tdm_live_rows("gather_rows", &args->n_rows, args->rows.shape[0], &live));
  for (int64_t l = 0; l < live; l++) {
    if (rows[l] < 0 || rows[l] >= args->x.shape[0]) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "gather_rows: rows[%lld] is %d, x has %lld rows", (long long)l, rows[l],
                      (long long)args->x.shape[0]);
    }
    memcpy(out + l * args->out.stride[0] * element, x + rows[l] * args->x.stride[0] * element,
           (size_t)(args->x.shape[1] * element));
  }
  return TDM_OK;
}
