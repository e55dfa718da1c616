#include "kernels/mla_decode/mla_decode_sm90.h"

#include "kernels/common/mla.h"
#include "kernels/common/softmax.h"
#include "runtime/op.h"
#include "runtime/status.h"

/* Groups bound the scratch: h * groups * 2 KiB a row. */
enum {
  MAX_LEAF_HEADS = 4096,
  MAX_LEAVES = 256,
  MANY_SPLITS = 9,
  H16_BRANCH_KEYS = 256, /* at least; leaves are pages */
  H32_LEAF_KEYS = 512,
  H64_LEAF_KEYS = 1024,
  H16_GROUP_BRANCHES = 8,
  H64_GROUP_BRANCHES = 4,
  ROUNDS_OF_LEAVES = 2, /* at most: more parts cost more than SMs without any */
  MERGES_PER_CTA = TDM_MLA_DECODE_MERGE_THREADS / 32,
  MERGE_PIECES = TDM_MLA_LATENT / TDM_MLA_DECODE_MERGE_COLUMNS
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static size_t value_bytes(const tdm_mla_decode_args* args, const tdm_mla_decode_plan* plan) {
  return (size_t)(args->q.shape[0] * args->q.shape[1] * plan->max_splits * TDM_MLA_LATENT) * sizeof(float);
}

/* In whole pages; more for more heads, which keep more SMs busy. */
static int64_t branch_keys(int64_t heads, int64_t max_keys) {
  int64_t least = heads <= TDM_MLA_DECODE_H16_HEADS ? H16_BRANCH_KEYS : heads <= 32 ? H32_LEAF_KEYS : H64_LEAF_KEYS;
  int64_t leaves = heads < MAX_LEAF_HEADS ? MAX_LEAF_HEADS / heads : 1;
  if (leaves > MAX_LEAVES) leaves = MAX_LEAVES;
  int64_t keys = ceil_div(ceil_div(max_keys, leaves), TDM_PAGE_TOKENS) * TDM_PAGE_TOKENS;
  return keys > least ? keys : least;
}

void tdm_mla_decode_sm90_make_plan(const tdm_mla_decode_args* args, int32_t sms, tdm_mla_decode_plan* out_plan) {
  int64_t rows = args->q.shape[0], heads = args->q.shape[1];
  int64_t max_keys = args->block_table.shape[1] * TDM_PAGE_TOKENS;
  int64_t branch = branch_keys(heads, max_keys), leaf = branch, group_branches = H64_GROUP_BRANCHES, least_busy = 75;
  tdm_mla_decode_plan plan = {.attend = {.kernel = "tdm_mla_decode_h64_sm90",
                                         .block = TDM_MLA_DECODE_H64_THREADS,
                                         .shared_bytes = TDM_MLA_DECODE_H64_SHARED},
                              .merge = {.kernel = "tdm_mla_decode_merge_sm90", .block = TDM_MLA_DECODE_MERGE_THREADS},
                              .head_tile = TDM_MLA_DECODE_H64_HEADS,
                              .branch_keys = (int32_t)branch};
  if (heads <= TDM_MLA_DECODE_H16_HEADS) {
    plan.attend = (tdm_kernel_launch){.kernel = "tdm_mla_decode_h16_sm90",
                                      .block = TDM_MLA_DECODE_H16_THREADS,
                                      .shared_bytes = TDM_MLA_DECODE_H16_SHARED};
    plan.head_tile = TDM_MLA_DECODE_H16_HEADS;
    group_branches = H16_GROUP_BRANCHES;
    leaf = TDM_PAGE_TOKENS;
    least_busy = 60;
  }
  /* The largest splits that keep enough SMs busy, in percent. A page of 16 heads takes an SM 1.8 us by itself and 2.3
   * when all share the bandwidth (H200, 2026-11-22), so few heads need fewer of them. */
  int64_t tiles = rows * ceil_div(heads, plan.head_tile), group = branch * group_branches;
  const bool groups = tiles * ceil_div(max_keys, group) * 100 >= sms * least_busy;
  const bool branches = groups || tiles * ceil_div(max_keys, branch) * 100 >= sms * least_busy ||
                        tiles * ceil_div(max_keys, leaf) > ROUNDS_OF_LEAVES * sms;
  plan.leaf_keys = (int32_t)leaf;
  plan.split_keys = (int32_t)(groups ? group : branches ? branch : leaf);
  plan.branch_splits = branches ? 1 : (int32_t)(branch / leaf);
  plan.group_branches = groups ? 1 : (int32_t)group_branches;
  plan.max_splits = (int32_t)ceil_div(max_keys, plan.split_keys);
  int64_t units = tiles * plan.max_splits, merges = rows * heads * MERGE_PIECES;
  if (plan.max_splits < MANY_SPLITS && branches) {
    merges = ceil_div(merges, MERGES_PER_CTA);
  } else {
    const int32_t unit = plan.branch_splits > 1 ? plan.branch_splits : plan.group_branches;
    const uint32_t n_units = (uint32_t)ceil_div(plan.max_splits, unit), most = TDM_MLA_DECODE_MANY_THREADS / 32;
    plan.merge = (tdm_kernel_launch){.kernel = "tdm_mla_decode_merge_many_sm90",
                                     .block = 32 * (n_units < most ? n_units : most),
                                     .shared_bytes = n_units * 32 * TDM_MLA_DECODE_PART_BYTES};
  }
  plan.attend.grid = (uint32_t)(units < sms ? units : sms);
  plan.merge.grid = (uint32_t)(merges < sms * 8 ? merges : sms * 8);
  if (plan.max_splits > 1 || plan.split_keys > plan.branch_keys) {
    plan.partial_bytes = value_bytes(args, &plan) + (size_t)(rows * heads * plan.max_splits * 2) * sizeof(float) +
                         (size_t)rows * sizeof(int32_t);
    plan.partial_bytes = (plan.partial_bytes + 255) / 256 * 256;
  }
  *out_plan = plan;
}

/* [d0, d1, 576] bf16 in boxes of `rows` rows by 64 values. */
static tdm_tensor_tile tile_of(const tdm_view* view, int32_t rows) {
  return (tdm_tensor_tile){tdm_view_data(view),
                           TDM_BF16,
                           3,
                           {(uint64_t)view->shape[2], (uint64_t)view->shape[1], (uint64_t)view->shape[0]},
                           {(uint64_t)view->stride[1] * 2, (uint64_t)view->stride[0] * 2},
                           {64, (uint32_t)rows, 1},
                           true};
}

tdm_status tdm_mla_decode_sm90_params(const tdm_mla_decode_args* args, const tdm_mla_decode_plan* plan, void* partials,
                                      tdm_tensor_map_fn encode, void* encode_ctx, tdm_mla_decode_params* out_params) {
  if (args->q.dtype != TDM_BF16 || args->cache.dtype != TDM_BF16)
    return TDM_FAIL(TDM_UNSUPPORTED, "mla_decode: %s queries over a %s cache need the host device",
                    tdm_dtype_name(args->q.dtype), tdm_dtype_name(args->cache.dtype));
  tdm_tensor_tile q_tile = tile_of(&args->q, plan->head_tile), cache_tile = tile_of(&args->cache, TDM_PAGE_TOKENS);
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
                                  .branch_keys = plan->branch_keys,
                                  .leaf_keys = plan->leaf_keys,
                                  .branch_splits = plan->branch_splits,
                                  .group_branches = plan->group_branches,
                                  .max_splits = plan->max_splits,
                                  .out_dtype = (int32_t)args->out.dtype,
                                  .log2_scale = tdm_softmax_log2_scale(args->scale)};
  params.vectors = (params.out_stride | params.out_head_stride) % 8 == 0;
  if (plan->partial_bytes > 0) {
    params.values = partials;
    params.stats = (float*)(void*)((char*)partials + value_bytes(args, plan));
    params.splits = (int32_t*)(void*)(params.stats + args->q.shape[0] * args->q.shape[1] * plan->max_splits * 2);
  }
  TDM_TRY(encode(encode_ctx, &q_tile, &params.q));
  TDM_TRY(encode(encode_ctx, &cache_tile, &params.cache));
  *out_params = params;
  return TDM_OK;
}
