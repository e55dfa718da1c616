#include "kernels/embedding/embedding.h"

#include "kernels/common/check.h"
#include "kernels/common/convert.h"

tdm_status tdm_embedding_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_embedding_args* args = args_;
  (void)plan;
  (void)scratch;
  int64_t vocab = args->table.shape[0];
  int64_t hidden = args->table.shape[1];
  const int32_t* ids = tdm_view_data(&args->ids);
  const void* table = tdm_view_data(&args->table);
  void* out = tdm_view_data(&args->out);
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("embedding", &args->n_tokens, args->ids.shape[0], &rows));
  for (int64_t m = 0; m < rows; m++) {
    if (ids[m] < 0 || ids[m] >= vocab) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "embedding: ids[%lld] is %d, the table has %lld rows", (long long)m, ids[m],
                      (long long)vocab);
    }
    for (int64_t i = 0; i < hidden; i++) {
      float value = tdm_load_f32(table, args->table.dtype, ids[m] * args->table.stride[0] + i);
      tdm_store_f32(out, args->out.dtype, m * args->out.stride[0] + i, value);
    }
  }
  return TDM_OK;
}
