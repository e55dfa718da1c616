#ifndef KERNELS_GEMM_FP8_GEMM_FP8_PARAMS_H
#define KERNELS_GEMM_FP8_GEMM_FP8_PARAMS_H

#include "kernels/device/abi.h"

/* Shared by gemm_fp8 and moe_fc2, whose only differences are blocks to be skipped and the addend.
 * Blocks are 128 long along K, segments are runs of blocks that are summed apart and added in ascending order. */
typedef struct tdm_gemm_fp8_params {
  tdm_tensor_map w;       /* weights as e4m3 [K/128][N][128] */
  tdm_tensor_map x;       /* activations as e4m3 [K/128][M][128] */
  tdm_tensor_map x_scale; /* f32 [K/128][M]; moe_fc2: 0 skips the block, NaN in it or not */
  const float* w_scale;   /* [ceil(N/128), K/128] */
  int64_t w_scale_stride;
  const int32_t* n_tokens; /* NULL: all rows are live */
  void* out;               /* [M, N] bf16 or f32 */
  int64_t out_stride;
  float* partials;    /* workspace of tdm_gemm_fp8_sm90_plan; NULL where it is 0 bytes */
  uint32_t* counters; /* zero before the first launch; every launch leaves zeros */
  const void* addend; /* moe_fc2: [M, N], added last; NULL: none */
  int64_t addend_stride;
  int32_t addend_dtype;
  int32_t out_dtype;
  int32_t m;
  int32_t n;
  int32_t k_blocks;
  int32_t segments;
  int32_t granule; /* segments begin on multiples of so many blocks: 2; an expert's blocks for moe_fc2 */
  int32_t parts;   /* units that share the sum of a tile: `segments`, or 1, which goes through them in turn */
} tdm_gemm_fp8_params;

static_assert(sizeof(tdm_gemm_fp8_params) == 512, "kernel ABI");
static_assert(alignof(tdm_gemm_fp8_params) == 64, "kernel ABI");

enum {
  TDM_GEMM_FP8_THREADS = 384 /* a producer and two consumer warpgroups */
};

/* Launch sizes of the variants: what sizeof gives in the kernels, asserted there. */
#define TDM_GEMM_FP8_SCALE_BYTES(tokens) ((tokens)*8 < 128 ? 128 : ((tokens)*8 + 127) / 128 * 128)
#define TDM_GEMM_FP8_STAGED_ROWS(tokens) ((tokens) < 32 ? (tokens) : 32)
#define TDM_GEMM_FP8_ROUND(bytes)        (((bytes) + 1023) / 1024 * 1024)
/* Swapped form: weight rows a CTA tile, tokens a tile, stages of two blocks. */
#define TDM_GEMM_FP8_SWAP_SHARED(rows, tokens, stages)                                                                 \
  TDM_GEMM_FP8_ROUND((stages) * (256 * (rows) + 256 * (tokens) + TDM_GEMM_FP8_SCALE_BYTES(tokens) + 16) +              \
                     2 * 144 * TDM_GEMM_FP8_STAGED_ROWS(tokens) + 24)
/* Asked for at least in the swapped form: another of these kernels then finds no room beside this one, while a smaller
 * one does. Where a launch has fewer CTAs than SMs, the next one's would crowd on the idle SMs and share their copy
 * engines: o (7168 x 16384) in a row takes 31.4 us instead of 33.5 at one token, o_b 17.5 instead of 18.6; H200,
 * 2026-11-22. */
#define TDM_GEMM_FP8_ALONE_SHARED (120 * 1024)
/* Upright form: weight rows and tokens of a tile, stages of one block. */
#define TDM_GEMM_FP8_UPRIGHT_SHARED(rows, tokens, stages)                                                              \
  TDM_GEMM_FP8_ROUND((stages) * (128 * (rows) + 128 * (tokens) + 4 * (tokens) + 16) + 8 * 16 * 144 + 24)
/* Plain form: 128 tokens x 128 weight rows, stages of one block. */
#define TDM_GEMM_FP8_PLAIN_SHARED(stages) TDM_GEMM_FP8_ROUND((stages) * (2 * 16384 + 512 + 16) + 8 * 16 * 272)

#endif
