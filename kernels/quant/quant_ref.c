#include "kernels/quant/quant.h"

#include "kernels/common/check.h"
#include "kernels/common/convert.h"

void tdm_quant_row(const float* values, const tdm_view* out_q, const tdm_view* out_scale, int64_t row, float eps,
                   bool pow2_scale) {
  uint8_t* q = (uint8_t*)tdm_view_data(out_q) + row * out_q->stride[0];
  float* scales = (float*)tdm_view_data(out_scale) + row;
  for (int64_t block = 0; block < out_scale->shape[0]; block++) {
    int64_t begin = block * TDM_QUANT_BLOCK;
    scales[block * out_scale->stride[0]] = tdm_quant_block(values + begin, q + begin, eps, pow2_scale);
  }
}

void tdm_quant_pad(const tdm_view* out_scale, int64_t rows) {
  float* scales = tdm_view_data(out_scale);
  for (int64_t block = 0; block < out_scale->shape[0]; block++) {
    for (int64_t m = rows; m < tdm_scale_stride(rows); m++) scales[block * out_scale->stride[0] + m] = 0.0f;
  }
}

tdm_status tdm_quant_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_quant_args* args = args_;
  (void)plan;
  const void* x = tdm_view_data(&args->x);
  float* values = scratch;
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("quant", &args->n_tokens, args->x.shape[0], &rows));
  for (int64_t m = 0; m < rows; m++) {
    tdm_load_f32_row(x, args->x.dtype, m * args->x.stride[0], 1, args->x.shape[1], values);
    tdm_quant_row(values, &args->out_q, &args->out_scale, m, args->quant_eps, args->pow2_scale);
  }
  tdm_quant_pad(&args->out_scale, rows);
  return TDM_OK;
}
