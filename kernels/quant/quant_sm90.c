#include "kernels/quant/quant_sm90.h"

#include "runtime/op.h"

void tdm_quant_sm90_params(const tdm_quant_args* args, tdm_quant_params* out_params) {
  tdm_quant_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                             .x = tdm_view_data(&args->x),
                             .out_q = tdm_view_data(&args->out_q),
                             .out_scale = tdm_view_data(&args->out_scale),
                             .x_stride = args->x.stride[0],
                             .out_q_stride = args->out_q.stride[0],
                             .out_scale_stride = args->out_scale.stride[0],
                             .rows = (int32_t)args->x.shape[0],
                             .cols = (int32_t)args->x.shape[1],
                             .x_dtype = (int32_t)args->x.dtype,
                             .quant_eps = args->quant_eps,
                             .pow2_scale = args->pow2_scale};
  params.vectors = (params.x_stride | params.out_q_stride) % 8 == 0;
  *out_params = params;
}

void tdm_quant_sm90_plan(const tdm_quant_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_quant_sm90", .block = 256};
  /* 16 threads a block of 128, eight CTAs an SM. */
  int64_t blocks = (int64_t)((params->rows + 3) / 4 * 4) * (params->cols / 128), grid = (blocks + 15) / 16;
  launch.grid = (uint32_t)(grid < sms * 8 ? grid : sms * 8);
  *out_launch = launch;
}
