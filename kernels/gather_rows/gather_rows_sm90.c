#include "kernels/gather_rows/gather_rows_sm90.h"

#include "runtime/op.h"

void tdm_gather_rows_sm90_params(const tdm_gather_rows_args* args, tdm_gather_rows_params* out_params) {
  int64_t element = (int64_t)tdm_dtype_bytes(args->x.dtype);
  tdm_gather_rows_params params = {.n_rows = tdm_view_data_or_null(&args->n_rows),
                                   .rows = tdm_view_data(&args->rows),
                                   .x = tdm_view_data(&args->x),
                                   .out = tdm_view_data(&args->out),
                                   .x_stride = args->x.stride[0] * element,
                                   .out_stride = args->out.stride[0] * element,
                                   .row_bytes = args->x.shape[1] * element,
                                   .x_rows = (int32_t)args->x.shape[0],
                                   .out_rows = (int32_t)args->out.shape[0]};
  params.vectors = (params.x_stride | params.out_stride | params.row_bytes) % 16 == 0;
  *out_params = params;
}

void tdm_gather_rows_sm90_plan(const tdm_gather_rows_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_gather_rows_sm90", .block = 256};
  /* A thread for 16 bytes, eight CTAs an SM. */
  int64_t grid = (params->out_rows * ((params->row_bytes + 15) / 16) + 255) / 256;
  launch.grid = (uint32_t)(grid < sms * 8 ? grid : sms * 8);
  *out_launch = launch;
}
