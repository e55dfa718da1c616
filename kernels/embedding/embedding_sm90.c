#include "kernels/embedding/embedding_sm90.h"

#include "runtime/op.h"

void tdm_embedding_sm90_params(const tdm_embedding_args* args, tdm_embedding_params* out_params) {
  tdm_embedding_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                 .ids = tdm_view_data(&args->ids),
                                 .table = tdm_view_data(&args->table),
                                 .out = tdm_view_data(&args->out),
                                 .table_stride = args->table.stride[0],
                                 .out_stride = args->out.stride[0],
                                 .vocab = args->table.shape[0],
                                 .rows = (int32_t)args->out.shape[0],
                                 .cols = (int32_t)args->out.shape[1],
                                 .table_dtype = (int32_t)args->table.dtype,
                                 .out_dtype = (int32_t)args->out.dtype};
  params.vectors = (params.cols | params.table_stride | params.out_stride) % 8 == 0;
  *out_params = params;
}

void tdm_embedding_sm90_plan(const tdm_embedding_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_embedding_sm90", .block = 256};
  /* A thread for 8 columns, eight CTAs an SM. */
  int64_t grid = ((int64_t)params->rows * ((params->cols + 7) / 8) + 255) / 256;
  launch.grid = (uint32_t)(grid < sms * 8 ? grid : sms * 8);
  *out_launch = launch;
}
