#include "kernels/mla_prefill/mla_prefill_sm90.h"

#include "kernels/common/softmax.h"
#include "runtime/op.h"
#include "runtime/status.h"

void tdm_mla_prefill_sm90_plan(int64_t rows, int64_t heads, int64_t seqs, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {
      .kernel = "tdm_mla_prefill_sm90", .block = TDM_MLA_PREFILL_THREADS, .shared_bytes = TDM_MLA_PREFILL_SHARED};
  int64_t units = (rows / TDM_MLA_PREFILL_QUERIES + seqs) * heads;
  launch.grid = (uint32_t)(units < sms ? units : sms);
  *out_launch = launch;
}

/* [M, h, d] bf16 as [h][M][d] in boxes of `rows` tokens by 64 values. */
static tdm_tensor_tile tile_of(const tdm_view* view, uint32_t rows) {
  return (tdm_tensor_tile){tdm_view_data(view),
                           TDM_BF16,
                           3,
                           {(uint64_t)view->shape[2], (uint64_t)view->shape[0], (uint64_t)view->shape[1]},
                           {(uint64_t)view->stride[0] * 2, (uint64_t)view->stride[1] * 2},
                           {64, rows, 1},
                           true};
}

tdm_status tdm_mla_prefill_sm90_params(const tdm_mla_prefill_args* args, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_mla_prefill_params* out_params) {
  if (args->q_nope.dtype != TDM_BF16 || args->q_rope.dtype != TDM_BF16 || args->kv.dtype != TDM_BF16 ||
      args->k_rope.dtype != TDM_BF16)
    return TDM_FAIL(TDM_UNSUPPORTED, "mla_prefill: operands other than bf16 need the host device");
  tdm_tensor_tile q_nope = tile_of(&args->q_nope, TDM_MLA_PREFILL_QUERIES), kv = tile_of(&args->kv, 64);
  tdm_tensor_tile q_rope = tile_of(&args->q_rope, TDM_MLA_PREFILL_QUERIES);
  tdm_tensor_tile k_rope = {
      tdm_view_data(&args->k_rope),           TDM_BF16, 2,   {64, (uint64_t)args->k_rope.shape[0]},
      {(uint64_t)args->k_rope.stride[0] * 2}, {64, 64}, true};
  if (!tdm_tensor_tile_valid(&q_nope) || !tdm_tensor_tile_valid(&q_rope) || !tdm_tensor_tile_valid(&kv) ||
      !tdm_tensor_tile_valid(&k_rope))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "mla_prefill: data and strides of q_nope, q_rope, kv and k_rope must be multiples of 16 bytes");
  tdm_mla_prefill_params params = {.n_seqs = tdm_view_data(&args->n_seqs),
                                   .seq_start = tdm_view_data(&args->seq_start),
                                   .seq_kind = tdm_view_data(&args->seq_kind),
                                   .out = tdm_view_data(&args->out),
                                   .out_stride = args->out.stride[0],
                                   .out_head_stride = args->out.stride[1],
                                   .heads = (int32_t)args->q_nope.shape[1],
                                   .max_seqs = (int32_t)args->seq_kind.shape[0],
                                   .out_dtype = (int32_t)args->out.dtype,
                                   .log2_scale = tdm_softmax_log2_scale(args->scale)};
  TDM_TRY(encode(encode_ctx, &q_nope, &params.q_nope));
  TDM_TRY(encode(encode_ctx, &q_rope, &params.q_rope));
  TDM_TRY(encode(encode_ctx, &kv, &params.kv));
  TDM_TRY(encode(encode_ctx, &k_rope, &params.k_rope));
  *out_params = params;
  return TDM_OK;
}
