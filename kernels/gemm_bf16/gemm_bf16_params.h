#ifndef KERNELS_GEMM_BF16_GEMM_BF16_PARAMS_H
#define KERNELS_GEMM_BF16_GEMM_BF16_PARAMS_H

#include "kernels/device/abi.h"

/* Shared by gemm_bf16, router_gemm and, with additions, moe_fc2. Blocks are 64 long along K (128 bytes). */
typedef struct tdm_gemm_bf16_params {
  tdm_tensor_map w;        /* bf16 [B][N][K], or [B][K][N] for the MN-major variants */
  tdm_tensor_map x;        /* bf16 [B][M][K] */
  const int32_t* n_tokens; /* NULL: all rows are live */
  void* out;               /* [B, M, N] bf16 or f32 */
  int64_t out_stride;
  int64_t out_batch_stride;
  float* partials;    /* workspace of the plan; NULL where it is 0 bytes */
  uint32_t* counters; /* zero before the first launch; every launch leaves zeros */
  int32_t out_dtype;
  int32_t batch;
  int32_t m;
  int32_t n;
  int32_t k_blocks;
  int32_t segments;
  int32_t granule; /* segments begin on multiples of so many blocks: 2; an expert's blocks for moe_fc2 */
  int32_t padding[5];
} tdm_gemm_bf16_params;

static_assert(sizeof(tdm_gemm_bf16_params) == 384, "kernel ABI");

enum {
  TDM_GEMM_BF16_THREADS = 384 /* a producer and two consumer warpgroups */
};

/* Launch size of a variant: what sizeof gives in the kernel, asserted there. */
#define TDM_GEMM_BF16_STAGED_ROWS(tokens) ((tokens) < 32 ? (tokens) : 32)
#define TDM_GEMM_BF16_SHARED(rows, tokens, stages)                                                                     \
  (((stages) * (256 * (rows) + 256 * (tokens) + 16) + 2 * 144 * TDM_GEMM_BF16_STAGED_ROWS(tokens) + 24 + 1023) /       \
   1024 * 1024)

#endif
