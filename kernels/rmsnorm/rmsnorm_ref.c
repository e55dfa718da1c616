#include "kernels/rmsnorm/rmsnorm.h"

#include <math.h>

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/quant/quant.h"

void tdm_rmsnorm_row(float* values, const float* weight, int64_t count, float eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; i++) sum += (double)values[i] * (double)values[i];
  float inverse = (float)(1.0 / sqrt(sum / (double)count + (double)eps));
  for (int64_t i = 0; i < count; i++) values[i] *= inverse;
  if (weight == NULL) return;
  for (int64_t i = 0; i < count; i++) values[i] *= weight[i];
}

tdm_status tdm_rmsnorm_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_rmsnorm_args* args = args_;
  (void)plan;
  int64_t width = args->x.shape[1];
  float* row = scratch;
  float* weight = NULL;
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("rmsnorm", &args->n_tokens, args->x.shape[0], &rows));
  if (tdm_view_present(&args->weight)) {
    weight = row + width;
    tdm_load_f32_row(tdm_view_data(&args->weight), args->weight.dtype, 0, 1, width, weight);
  }
  for (int64_t m = 0; m < rows; m++) {
    tdm_load_f32_row(tdm_view_data(&args->x), args->x.dtype, m * args->x.stride[0], 1, width, row);
    if (tdm_view_present(&args->delta)) {
      const void* delta = tdm_view_data(&args->delta);
      int64_t first = m * args->delta.stride[0];
      for (int64_t i = 0; i < width; i++) row[i] += tdm_load_f32(delta, args->delta.dtype, first + i);
    }
    if (tdm_view_present(&args->residual_out)) {
      /* The norm continues from what is stored, as a separate norm of the stored residual would. */
      void* residual = tdm_view_data(&args->residual_out);
      int64_t first = m * args->residual_out.stride[0];
      tdm_store_f32_row(residual, args->residual_out.dtype, first, width, row);
      tdm_load_f32_row(residual, args->residual_out.dtype, first, 1, width, row);
    }
    tdm_rmsnorm_row(row, weight, width, args->eps);
    if (tdm_view_present(&args->out)) {
      tdm_store_f32_row(tdm_view_data(&args->out), args->out.dtype, m * args->out.stride[0], width, row);
    }
    if (tdm_view_present(&args->out_q)) {
      tdm_quant_row(row, &args->out_q, &args->out_scale, m, args->quant_eps, args->pow2_scale);
    }
  }
  if (tdm_view_present(&args->out_q)) tdm_quant_pad(&args->out_scale, rows);
  return TDM_OK;
}
