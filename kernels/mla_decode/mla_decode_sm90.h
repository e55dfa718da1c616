#ifndef KERNELS_MLA_DECODE_MLA_DECODE_SM90_H
#define KERNELS_MLA_DECODE_MLA_DECODE_SM90_H

/* Planning of the split-KV kernels of mla_decode. Pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/mla_decode/mla_decode_params.h"
#include "tandem/ops.h"

/* Into what the keys of a row are cut. Leaves, branches and groups follow from what a row of the block table reaches
 * and from the number of heads, never from the number of rows, the lengths or the lane: a row's bits depend on nothing
 * else. Splits are leaves, branches or groups. With more than 16 heads a branch is a leaf. */
typedef struct tdm_mla_decode_plan {
  int32_t head_tile;
  int32_t leaf_keys;
  int32_t branch_keys;
  int32_t split_keys;
  int32_t branch_splits;  /* splits of a branch; 1: they are branches or more */
  int32_t group_branches; /* branches of a group; 1: splits are groups */
  int32_t max_splits;     /* 1: nothing is merged and there is no second launch */
  size_t partial_bytes;   /* of scratch, not initialised */
  tdm_kernel_launch attend;
  tdm_kernel_launch merge;
} tdm_mla_decode_plan;

void tdm_mla_decode_sm90_make_plan(const tdm_mla_decode_args* args, int32_t sms, tdm_mla_decode_plan* out_plan);

/* Kernel parameters of checked args, the same for both launches. UNSUPPORTED for f32 q or cache and for strides that
 * the copy engine cannot take. */
tdm_status tdm_mla_decode_sm90_params(const tdm_mla_decode_args* args, const tdm_mla_decode_plan* plan, void* partials,
                                      tdm_tensor_map_fn encode, void* encode_ctx, tdm_mla_decode_params* out_params);

#endif
