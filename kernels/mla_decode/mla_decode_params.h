#ifndef KERNELS_MLA_DECODE_MLA_DECODE_PARAMS_H
#define KERNELS_MLA_DECODE_MLA_DECODE_PARAMS_H

#include "kernels/device/abi.h"

enum {
  TDM_MLA_DECODE_PAGE_BYTES = 64 * 576 * 2,
  TDM_MLA_DECODE_H64_THREADS = 512, /* producers, a warpgroup for scores, two for values */
  TDM_MLA_DECODE_H64_HEADS = 64,    /* of a tile */
  TDM_MLA_DECODE_H64_STAGES = 2,
  TDM_MLA_DECODE_H64_SHARED = ((1 + TDM_MLA_DECODE_H64_STAGES) * TDM_MLA_DECODE_PAGE_BYTES + 64 * 64 * 2 + 9 * 64 * 4 +
                               64 + (4 + 2 * TDM_MLA_DECODE_H64_STAGES) * 8 + 1023) /
                              1024 * 1024,
  TDM_MLA_DECODE_H16_THREADS = 192, /* a warpgroup, a warp for pages, one for q */
  TDM_MLA_DECODE_H16_HEADS = 16,    /* the most that this kernel takes */
  TDM_MLA_DECODE_H16_SLOTS = 8,     /* thirds of a page */
  TDM_MLA_DECODE_H16_SHARED =
      (TDM_MLA_DECODE_H16_HEADS * 576 * 2 + TDM_MLA_DECODE_H16_HEADS * 128 +
       TDM_MLA_DECODE_H16_SLOTS * TDM_MLA_DECODE_PAGE_BYTES / 3 + 2 * 4 * TDM_MLA_DECODE_H16_HEADS * 4 + 2 * 32 +
       (4 + 2 * TDM_MLA_DECODE_H16_SLOTS) * 8 + 1023) /
      1024 * 1024,
  TDM_MLA_DECODE_MERGE_THREADS = 256,
  TDM_MLA_DECODE_MANY_THREADS = 512,  /* for a row of many splits */
  TDM_MLA_DECODE_MERGE_COLUMNS = 128, /* of a head, by one warp, or by all of a CTA for a row of many splits */
  TDM_MLA_DECODE_PART_BYTES = 24      /* of a lane, for a group, there */
};

/* Strides count elements. */
typedef struct tdm_mla_decode_params {
  tdm_tensor_map q;     /* bf16 [M][h][576] */
  tdm_tensor_map cache; /* bf16 [n_pages][64][576] */
  const int32_t* n_seqs;
  const int32_t* seq_start;
  const int32_t* seq_kind;
  const int32_t* kv_len;
  const int32_t* block_table;
  void* out;       /* [M, h, 512] bf16 or f32 */
  float* values;   /* [M][h][max_splits][512]: sums of p v, relative to the split's own base */
  float* stats;    /* [M][h][max_splits][2]: that base and the sum of p */
  int32_t* splits; /* [M]: parts that the merge finds of a row */
  int64_t block_table_stride;
  int64_t out_stride;
  int64_t out_head_stride;
  int32_t rows;
  int32_t heads;
  int32_t seqs;
  int32_t max_keys; /* what a row of the block table reaches */
  int32_t split_keys;
  int32_t branch_keys;    /* h16: pages of so many are summed up before they join their group */
  int32_t leaf_keys;      /* h64: what is summed up before it joins its group; divides split_keys */
  int32_t branch_splits;  /* that the merge sums up by themselves first; 1: splits are branches or more */
  int32_t group_branches; /* of which the merge makes groups; 1: splits are groups */
  int32_t max_splits;
  int32_t out_dtype;
  int32_t vectors; /* 1: strides of out divide by 8 */
  float log2_scale;
} tdm_mla_decode_params;

static_assert(sizeof(tdm_mla_decode_params) == 448, "kernel ABI");

#endif
