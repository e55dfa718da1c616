#include "kernels/common/check.h"
#include "kernels/common/matmul.h"
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8.h"

/* Element `index` of a view's first dimension. */
static tdm_view select_first(const tdm_view* view, int64_t index) {
  tdm_view slice = tdm_view_slice(*view, 0, index, 1);
  slice.rank--;
  for (int32_t i = 0; i < slice.rank; i++) {
    slice.shape[i] = slice.shape[i + 1];
    slice.stride[i] = slice.stride[i + 1];
  }
  return slice;
}

tdm_status tdm_grouped_gemm_fp8_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_grouped_gemm_fp8_args* args = args_;
  (void)plan;
  (void)scratch;
  const int32_t* start = tdm_view_data(&args->row_start);
  const int32_t* count = tdm_view_data(&args->row_count);
  int64_t rows = args->a.shape[0];
  for (int64_t g = 0; g < args->w.shape[0]; g++) {
    if (start[g] < 0 || count[g] < 0 || count[g] > args->max_rows || (int64_t)start[g] + count[g] > rows)
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "grouped_gemm_fp8: group %lld has %d rows from %d; a has %lld rows, and a group at most %lld",
                      (long long)g, count[g], start[g], (long long)rows, (long long)args->max_rows);
    if (count[g] == 0) continue;
    tdm_view a = tdm_view_slice(args->a, 0, start[g], count[g]), out = tdm_view_slice(args->out, 0, start[g], count[g]);
    tdm_view w = select_first(&args->w, g), w_scale = select_first(&args->w_scale, g), a_scale = args->a_scale;
    bool scaled = tdm_view_present(&a_scale);
    if (scaled) a_scale = tdm_view_slice(a_scale, 1, start[g], count[g]);
    tdm_matmul(&a, scaled ? &a_scale : NULL, &w, &w_scale, &out, count[g]);
  }
  return TDM_OK;
}
