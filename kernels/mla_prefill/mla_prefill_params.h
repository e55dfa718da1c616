#ifndef KERNELS_MLA_PREFILL_MLA_PREFILL_PARAMS_H
#define KERNELS_MLA_PREFILL_MLA_PREFILL_PARAMS_H

#include "kernels/device/abi.h"

/* Strides count elements. */
typedef struct tdm_mla_prefill_params {
  tdm_tensor_map q_nope; /* bf16 [h][M][128] */
  tdm_tensor_map q_rope; /* bf16 [h][M][64] */
  tdm_tensor_map kv;     /* bf16 [h][M][256] */
  tdm_tensor_map k_rope; /* bf16 [M][64] */
  const int32_t* n_seqs;
  const int32_t* seq_start;
  const int32_t* seq_kind; /* tdm_seq_kind */
  void* out;               /* [M, h, 128] bf16 or f32 */
  int64_t out_stride;
  int64_t out_head_stride;
  int32_t heads;
  int32_t max_seqs;
  int32_t out_dtype;
  float log2_scale;
} tdm_mla_prefill_params;

static_assert(sizeof(tdm_mla_prefill_params) == 576, "kernel ABI");

enum {
  TDM_MLA_PREFILL_THREADS = 384, /* a producer and two consumer warpgroups */
  TDM_MLA_PREFILL_QUERIES = 128, /* of a unit */
  TDM_MLA_PREFILL_STAGES = 3,
  TDM_MLA_PREFILL_SHARED = ((6 + 5 * TDM_MLA_PREFILL_STAGES) * 64 * 128 + 8 * 16 * 64 * 4 + 8 * 4 +
                            (2 + 2 * TDM_MLA_PREFILL_STAGES) * 8 + 1023) /
                           1024 * 1024
};

#endif
