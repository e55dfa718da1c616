#ifndef KERNELS_GEMM_FP8_GEMM_FP8_PARAMS_H
#define KERNELS_GEMM_FP8_GEMM_FP8_PARAMS_H

#include "kernels/device/abi.h"

/* Shared by gemm_fp8, bmm_fp8 and moe_fc2. bmm_fp8: w has the rows of all groups one after the other, and so has out
 * its columns; x and x_scale are found by the group. moe_fc2: blocks to be skipped and the addend. Blocks are 128 long
 * along K, segments are runs of blocks that are summed apart and added in ascending order. */
typedef struct tdm_gemm_fp8_params {
  tdm_tensor_map w;       /* weights as e4m3 [K/128][N][128] */
  tdm_tensor_map x;       /* activations as e4m3 [K/128][M][128] */
  tdm_tensor_map x_scale; /* f32 [K/128][M]; moe_fc2: 0 skips the block, NaN in it or not */
  tdm_tensor_map out_map; /* plain form, where store_boxes: bf16 [M, N] */
  const float* w_scale;   /* [ceil(N/128), K/128] */
  int64_t w_scale_stride;
  const int32_t* n_tokens; /* NULL: all rows are live */
  void* out;               /* [M, N] bf16 or f32 */
  int64_t out_stride;
  float* partials;     /* workspace of tdm_gemm_fp8_sm90_plan; NULL where it is 0 bytes */
  uint32_t* counters;  /* zero before the first launch; every launch leaves zeros */
  const int32_t* hits; /* moe_fc2: [1 + n_experts] how many experts, then which, ascending; NULL: all */
  const void* addend;  /* moe_fc2: [M, N], added last; NULL: none */
  int64_t addend_stride;
  int32_t addend_dtype;
  int32_t out_dtype;
  int32_t m;
  int32_t n;
  int32_t k_blocks;
  int32_t segments;
  int32_t granule;          /* segments begin on multiples of so many blocks: 2; an expert's blocks for moe_fc2 */
  int32_t n_experts;        /* moe_fc2: k_blocks / granule */
  int32_t group_n;          /* bmm_fp8: weight rows of a group, a multiple of 128; 0: there is but one group */
  int32_t group_rows;       /* rows of x from one group to the next */
  int32_t group_scale_rows; /* and of x_scale */
  int32_t store_boxes;      /* plain form: whether out can be written through its map */
  int32_t split;            /* plain form and moe_fc2, with segments: whether each of them is a unit of its own */
  int32_t apart;            /* swapped and upright forms, with segments: they stay apart, partials are f32 rows
                               [segment][M][N] for who adds them up, and there is no out */
} tdm_gemm_fp8_params;

static_assert(sizeof(tdm_gemm_fp8_params) == 704, "kernel ABI");
static_assert(alignof(tdm_gemm_fp8_params) == 64, "kernel ABI");

/* Rows of a grouped GEMM: group g has rows row_start[g] .. row_start[g] + row_count[g] of x and out, weight rows g * n
 * and on, and scale rows g * ceil(n / 128) and on. */
typedef struct tdm_gemm_fp8_groups {
  const int32_t* row_start;
  const int32_t* row_count;
  int32_t n_groups;
  int32_t max_rows; /* of a group; what a count exceeds it by is left out */
  int32_t x_rows;   /* rows that a copy of x brings: a tile's, or fewer where max_rows is less */
  int32_t padding;
} tdm_gemm_fp8_groups;

enum {
  TDM_GEMM_FP8_MAX_GROUPS = 512,
  TDM_GEMM_FP8_THREADS = 384 /* a producer and two consumer warpgroups */
};

/* Launch sizes of the variants: what sizeof gives in the kernels, asserted there. Scales count twice: device/gemm.cuh,
 * Ring. */
#define TDM_GEMM_FP8_SCALE_BYTES(tokens) ((tokens)*8 < 128 ? 128 : ((tokens)*8 + 127) / 128 * 128)
#define TDM_GEMM_FP8_STAGED_ROWS(tokens) ((tokens) < 32 ? (tokens) : 32)
#define TDM_GEMM_FP8_ROUND(bytes)        (((bytes) + 1023) / 1024 * 1024)
/* Swapped form: weight rows a CTA tile, tokens a tile, stages of two blocks. */
#define TDM_GEMM_FP8_SWAP_SHARED(rows, tokens, stages)                                                                 \
  TDM_GEMM_FP8_ROUND((stages) * (256 * (rows) + 256 * (tokens) + 2 * TDM_GEMM_FP8_SCALE_BYTES(tokens) + 16) +          \
                     2 * 144 * TDM_GEMM_FP8_STAGED_ROWS(tokens) + 24)
/* Upright form: weight rows and tokens of a tile, stages of one block. */
#define TDM_GEMM_FP8_UPRIGHT_SHARED(rows, tokens, stages)                                                              \
  TDM_GEMM_FP8_ROUND((stages) * (128 * (rows) + 128 * (tokens) + 8 * (tokens) + 16) + 8 * 16 * 144 + 24)
/* Plain form: consumer warpgroups, pieces of 64 tokens each of them has, stages of one block. */
#define TDM_GEMM_FP8_PLAIN_SHARED(groups, pieces, stages)                                                              \
  TDM_GEMM_FP8_ROUND((stages) * (64 * (groups) * (pieces)*136 + 128 * 128 + 16) + (groups) * (pieces)*16384 + 16)
/* The same with 32 more scales a stage and the table of a grouped GEMM. */
#define TDM_GEMM_FP8_GROUPED_SHARED(groups, pieces, stages)                                                            \
  (TDM_GEMM_FP8_ROUND((stages) * (64 * (groups) * (pieces)*136 + 128 * 130 + 16) + (groups) * (pieces)*16384 + 16) +   \
   TDM_GEMM_FP8_ROUND(12 * TDM_GEMM_FP8_MAX_GROUPS + 4))

#endif
