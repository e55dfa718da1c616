#ifndef KERNELS_GEMM_BF16_GEMM_BF16_SHORT_PARAMS_H
#define KERNELS_GEMM_BF16_GEMM_BF16_SHORT_PARAMS_H

#include "kernels/device/abi.h"

/* The form for a short K; with additions, mla_absorb's too. */
typedef struct tdm_gemm_bf16_short_params {
  tdm_tensor_map w;        /* bf16 [B][K][N], boxes of 128 x 64 */
  tdm_tensor_map x;        /* bf16 [B][M][K], boxes of all tokens x 64 */
  tdm_tensor_map out;      /* bf16 [B][M][N], boxes of TDM_GEMM_BF16_SHORT_BOX tokens x 64 */
  const int32_t* n_tokens; /* NULL: all rows are live */
  void* out_data;
  int64_t out_stride;
  int64_t out_batch_stride;
  int32_t m;
  int32_t n_tiles; /* of a batch */
  int32_t units;   /* tiles of all batches */
  int32_t padding[5];
} tdm_gemm_bf16_short_params;

static_assert(sizeof(tdm_gemm_bf16_short_params) == 448, "kernel ABI");

enum {
  TDM_GEMM_BF16_SHORT_K = 128,      /* K at most */
  TDM_GEMM_BF16_SHORT_THREADS = 288 /* two consumer warpgroups and a producer warp */
};

/* Tokens that one store of the copy engine takes. */
#define TDM_GEMM_BF16_SHORT_BOX(tokens) ((tokens) < 32 ? (tokens) : 32)

/* Launch size of a variant: what sizeof gives in the kernel, asserted there. */
#define TDM_GEMM_BF16_SHORT_SHARED(rows, tokens) (256 * (rows) + 256 * (tokens) + 1024)

/* CTAs that an SM has room for. */
#define TDM_GEMM_BF16_SHORT_CTAS(tokens) ((tokens) <= 32 ? 3 : 2)

#endif
