#include "kernels/mla_decode/mla_decode_sm90.h"

#include "kernels/common/mla.h"
#include "runtime/op.h"
#include "runtime/status.h"

/* 16 heads, 4096 keys; 1, 16, 64, 128 tokens: splits of 256 keys 23, 46, 131, 245 us, of 512 31, 36, 113, 214, whole
 * 157, 165, 176, 176 (H200, 2026-11-22). The number of splits bounds the scratch, h * splits * 2 KiB a row; with more
 * heads there are more CTAs anyway. */
enum {
  MIN_SPLIT_KEYS = 512,
  MAX_SPLIT_HEADS = 1024,
  MAX_SPLITS = 64,
  MERGES_PER_CTA = TDM_MLA_DECODE_MERGE_THREADS / 32
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static size_t value_bytes(const tdm_mla_decode_args* args, const tdm_mla_decode_plan* plan) {
  return (size_t)(args->q.shape[0] * args->q.shape[1] * plan->max_splits * TDM_MLA_LATENT) * sizeof(float);
}

void tdm_mla_decode_sm90_make_plan(const tdm_mla_decode_args* args, int32_t sms, tdm_mla_decode_plan* out_plan) {
  int64_t rows = args->q.shape[0], heads = args->q.shape[1];
  int64_t max_keys = args->block_table.shape[1] * TDM_PAGE_TOKENS, splits = MAX_SPLIT_HEADS / heads;
  if (splits > MAX_SPLITS) splits = MAX_SPLITS;
  if (splits < 1) splits = 1;
  int64_t split_keys = ceil_div(ceil_div(max_keys, splits), TDM_PAGE_TOKENS) * TDM_PAGE_TOKENS;
  if (split_keys < MIN_SPLIT_KEYS) split_keys = MIN_SPLIT_KEYS;
  tdm_mla_decode_plan plan = {.split_keys = (int32_t)split_keys,
                              .max_splits = (int32_t)ceil_div(max_keys, split_keys),
                              .attend = {.kernel = "tdm_mla_decode_sm90",
                                         .block = TDM_MLA_DECODE_THREADS,
                                         .shared_bytes = TDM_MLA_DECODE_SHARED},
                              .merge = {.kernel = "tdm_mla_decode_merge_sm90", .block = TDM_MLA_DECODE_MERGE_THREADS}};
  int64_t units = rows * ceil_div(heads, TDM_MLA_DECODE_HEADS) * plan.max_splits;
  int64_t merges = ceil_div(rows * heads, MERGES_PER_CTA);
  plan.attend.grid = (uint32_t)(units < sms ? units : sms);
  plan.merge.grid = (uint32_t)(merges < sms * 8 ? merges : sms * 8);
  if (plan.max_splits > 1) {
    plan.partial_bytes = value_bytes(args, &plan) + (size_t)(rows * heads * plan.max_splits * 2) * sizeof(float);
    plan.partial_bytes = (plan.partial_bytes + 255) / 256 * 256;
  }
  *out_plan = plan;
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

tdm_status tdm_mla_decode_sm90_params(const tdm_mla_decode_args* args, const tdm_mla_decode_plan* plan, void* partials,
                                      tdm_tensor_map_fn encode, void* encode_ctx, tdm_mla_decode_params* out_params) {
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
                                  .seq_start = tdm_view_data(&args->seq_start),
                                  .seq_kind = tdm_view_data(&args->seq_kind),
                                  .kv_len = tdm_view_data(&args->kv_len),
                                  .block_table = tdm_view_data(&args->block_table),
                                  .out = tdm_view_data(&args->out),
                                  .block_table_stride = args->block_table.stride[0],
                                  .out_stride = args->out.stride[0],
                                  .out_head_stride = args->out.stride[1],
                                  .rows = (int32_t)args->q.shape[0],
                                  .heads = (int32_t)args->q.shape[1],
                                  .seqs = (int32_t)args->seq_kind.shape[0],
                                  .max_keys = (int32_t)(max_keys < INT32_MAX ? max_keys : INT32_MAX),
                                  .split_keys = plan->split_keys,
                                  .max_splits = plan->max_splits,
                                  .out_dtype = (int32_t)args->out.dtype,
                                  .scale = args->scale};
  params.vectors = (params.out_stride | params.out_head_stride) % 8 == 0;
  if (plan->max_splits > 1) {
    params.values = partials;
    params.stats = (float*)(void*)((char*)partials + value_bytes(args, plan));
  }
  TDM_TRY(encode(encode_ctx, &q_tile, &params.q));
  TDM_TRY(encode(encode_ctx, &cache_tile, &params.cache));
  *out_params = params;
  return TDM_OK;
}
