#include "kernels/rope/rope_sm90.h"

#include "runtime/op.h"

void tdm_rope_sm90_params(const tdm_rope_args* args, tdm_rope_params* out_params) {
  tdm_rope_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                            .x = tdm_view_data(&args->x),
                            .positions = tdm_view_data(&args->positions),
                            .cos_sin = tdm_view_data(&args->cos_sin),
                            .out = tdm_view_data(&args->out),
                            .x_stride = args->x.stride[0],
                            .x_head_stride = args->x.stride[1],
                            .out_stride = args->out.stride[0],
                            .out_head_stride = args->out.stride[1],
                            .cos_sin_stride = args->cos_sin.stride[0],
                            .rows = (int32_t)args->x.shape[0],
                            .heads = (int32_t)args->x.shape[1],
                            .n_positions = (int32_t)args->cos_sin.shape[0],
                            .x_dtype = (int32_t)args->x.dtype,
                            .out_dtype = (int32_t)args->out.dtype,
                            .style = (int32_t)args->style,
                            .inverse = args->inverse};
  *out_params = params;
}

void tdm_rope_sm90_plan(const tdm_rope_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_rope_sm90", .block = 256};
  int64_t grid = ((int64_t)params->rows * params->heads + 7) / 8; /* a warp a head, eight CTAs an SM */
  launch.grid = (uint32_t)(grid < sms * 8 ? grid : sms * 8);
  *out_launch = launch;
}
