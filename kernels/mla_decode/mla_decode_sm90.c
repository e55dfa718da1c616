#include "kernels/mla_decode/mla_decode_sm90.h"

#include "runtime/op.h"
#include "runtime/status.h"

void tdm_mla_decode_sm90_plan(int64_t rows, int64_t heads, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {
      .kernel = "tdm_mla_decode_sm90", .block = TDM_MLA_DECODE_THREADS, .shared_bytes = TDM_MLA_DECODE_SHARED};
  int64_t units = rows * ((heads + TDM_MLA_DECODE_HEADS - 1) / TDM_MLA_DECODE_HEADS);
  launch.grid = (uint32_t)(units < sms ? units : sms);
  *out_launch = launch;
}

/* [d0, d1, 576] bf16 in boxes of 64 rows by 64 values. */
static tdm_tensor_tile tile_of(const tdm_view* view) {
  return (tdm_tensor_tile){tdm_view_data(view),
                           TDM_BF16,
                           3,
                           {(uint64_t)view->shape[2], (uint64_t)view->shape[1], (uint64_t)view->shape[0]},
                           {(uint64_t)view->stride[1] * 2, (uint64_t)view->stride[0] * 2},
                           {64, 64, 1},
                           true};
}

tdm_status tdm_mla_decode_sm90_params(const tdm_mla_decode_args* args, tdm_tensor_map_fn encode, void* encode_ctx,
                                      tdm_mla_decode_params* out_params) {
  if (args->q.dtype != TDM_BF16 || args->cache.dtype != TDM_BF16)
    return TDM_FAIL(TDM_UNSUPPORTED, "mla_decode: %s queries over a %s cache need the host device",
                    tdm_dtype_name(args->q.dtype), tdm_dtype_name(args->cache.dtype));
  tdm_tensor_tile q_tile = tile_of(&args->q), cache_tile = tile_of(&args->cache);
  if (!tdm_tensor_tile_valid(&q_tile) || !tdm_tensor_tile_valid(&cache_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "mla_decode: strides of q (%lld, %lld) and cache (%lld, %lld) must be multiples of 8",
                    (long long)args->q.stride[0], (long long)args->q.stride[1], (long long)args->cache.stride[0],
                    (long long)args->cache.stride[1]);
  int64_t max_keys = args->block_table.shape[1] * TDM_PAGE_TOKENS;
  tdm_mla_decode_params params = {.n_seqs = tdm_view_data(&args->n_seqs),
                                  .block_table = tdm_view_data(&args->block_table),
                                  .seq_start = tdm_view_data(&args->seq_start),
                                  .kv_len = tdm_view_data(&args->kv_len),
                                  .seq_kind = tdm_view_data(&args->seq_kind),
                                  .out = tdm_view_data(&args->out),
                                  .block_table_stride = args->block_table.stride[0],
                                  .out_stride = args->out.stride[0],
                                  .out_head_stride = args->out.stride[1],
                                  .heads = (int32_t)args->q.shape[1],
                                  .max_seqs = (int32_t)args->block_table.shape[0],
                                  .max_keys = (int32_t)(max_keys < INT32_MAX ? max_keys : INT32_MAX),
                                  .out_dtype = (int32_t)args->out.dtype,
                                  .scale = args->scale};
  TDM_TRY(encode(encode_ctx, &q_tile, &params.q));
  TDM_TRY(encode(encode_ctx, &cache_tile, &params.cache));
  *out_params = params;
  return TDM_OK;
}
