#include "kernels/mla_kv_write/mla_kv_write_sm90.h"

#include "runtime/op.h"

void tdm_mla_kv_write_sm90_params(const tdm_mla_kv_write_args* args, tdm_mla_kv_write_params* out_params) {
  bool has_out = tdm_view_present(&args->out);
  int64_t n_slots = args->cache.shape[0] * TDM_PAGE_TOKENS;
  tdm_mla_kv_write_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                    .kv = tdm_view_data(&args->kv),
                                    .norm_weight = tdm_view_data(&args->norm_weight),
                                    .positions = tdm_view_data(&args->positions),
                                    .cos_sin = tdm_view_data(&args->cos_sin),
                                    .slots = tdm_view_data(&args->slots),
                                    .cache = tdm_view_data(&args->cache),
                                    .out = has_out ? tdm_view_data(&args->out) : NULL,
                                    .kv_stride = args->kv.stride[0],
                                    .cos_sin_stride = args->cos_sin.stride[0],
                                    .page_stride = args->cache.stride[0],
                                    .token_stride = args->cache.stride[1],
                                    .out_stride = has_out ? args->out.stride[0] : 0,
                                    .rows = (int32_t)args->kv.shape[0],
                                    .n_positions = (int32_t)args->cos_sin.shape[0],
                                    .n_slots = (int32_t)(n_slots < INT32_MAX ? n_slots : INT32_MAX),
                                    .kv_dtype = (int32_t)args->kv.dtype,
                                    .weight_dtype = (int32_t)args->norm_weight.dtype,
                                    .cache_dtype = (int32_t)args->cache.dtype,
                                    .style = (int32_t)args->style,
                                    .eps = args->eps};
  params.vectors = (params.kv_stride | params.page_stride | params.token_stride | params.out_stride) % 8 == 0;
  *out_params = params;
}

void tdm_mla_kv_write_sm90_plan(const tdm_mla_kv_write_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_mla_kv_write_sm90", .block = 128};
  int64_t grid = ((int64_t)params->rows + 3) / 4; /* a warp a token, eight CTAs an SM */
  launch.grid = (uint32_t)(grid < sms * 8 ? grid : sms * 8);
  *out_launch = launch;
}
