#include "kernels/rmsnorm/rmsnorm_sm90.h"

#include "runtime/op.h"

void tdm_rmsnorm_sm90_params(const tdm_rmsnorm_args* args, tdm_rmsnorm_params* out_params) {
  tdm_rmsnorm_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                               .x = tdm_view_data(&args->x),
                               .delta = tdm_view_data_or_null(&args->delta),
                               .residual_out = tdm_view_data_or_null(&args->residual_out),
                               .weight = tdm_view_data_or_null(&args->weight),
                               .out = tdm_view_data_or_null(&args->out),
                               .out_q = tdm_view_data_or_null(&args->out_q),
                               .out_scale = tdm_view_data_or_null(&args->out_scale),
                               .x_stride = args->x.stride[0],
                               .delta_stride = tdm_view_stride_or_zero(&args->delta),
                               .residual_stride = tdm_view_stride_or_zero(&args->residual_out),
                               .out_stride = tdm_view_stride_or_zero(&args->out),
                               .out_q_stride = tdm_view_stride_or_zero(&args->out_q),
                               .out_scale_stride = tdm_view_stride_or_zero(&args->out_scale),
                               .rows = (int32_t)args->x.shape[0],
                               .cols = (int32_t)args->x.shape[1],
                               .x_dtype = (int32_t)args->x.dtype,
                               .delta_dtype = (int32_t)args->delta.dtype,
                               .residual_dtype = (int32_t)args->residual_out.dtype,
                               .weight_dtype = (int32_t)args->weight.dtype,
                               .out_dtype = (int32_t)args->out.dtype,
                               .eps = args->eps,
                               .quant_eps = args->quant_eps,
                               .pow2_scale = args->pow2_scale};
  params.vectors = (params.cols | params.x_stride | params.delta_stride | params.residual_stride | params.out_stride |
                    params.out_q_stride) %
                       8 ==
                   0;
  *out_params = params;
}

void tdm_rmsnorm_sm90_plan(const tdm_rmsnorm_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_rmsnorm_sm90"};
  int32_t threads = (params->cols / 8 + 127) / 128 * 128;
  if (threads < 128) threads = 128;
  if (threads > 1024) threads = 1024;
  /* 64 registers a thread, so 1024 threads an SM. Further rows follow in the same CTA, whose next row is under way. */
  int32_t rows = (params->rows + 3) / 4 * 4, resident = sms * (1024 / threads);
  launch.block = (uint32_t)threads;
  launch.grid = (uint32_t)(rows < resident ? rows : resident);
  launch.shared_bytes = (uint32_t)params->cols * (uint32_t)sizeof(float);
  *out_launch = launch;
}
