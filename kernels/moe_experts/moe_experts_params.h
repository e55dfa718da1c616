#ifndef KERNELS_MOE_EXPERTS_MOE_EXPERTS_PARAMS_H
#define KERNELS_MOE_EXPERTS_MOE_EXPERTS_PARAMS_H

#include "kernels/device/choices_params.h"

/* What CTAs of a launch count together; zero before it and after it. */
typedef struct tdm_moe_experts_state {
  uint32_t drawn; /* items */
  uint32_t done;  /* pieces of FC1 */
  uint32_t left;  /* CTAs */
  uint32_t padding;
} tdm_moe_experts_state;

/* Strides count elements. */
typedef struct tdm_moe_experts_params {
  tdm_tensor_map w13; /* e4m3 [H/128][E*2*I/128][128][128]: blocks along K, runs of gate or up rows, a run */
  tdm_tensor_map w2;  /* e4m3 [E*I/128][H][128], boxes of a stage */
  const uint8_t* x;   /* [M, H] */
  int64_t x_stride;
  const float* x_scale; /* [H/128, M] */
  int64_t x_scale_stride;
  const float* w13_scale; /* [E*2*I/128, H/128] */
  int64_t w13_scale_stride;
  const float* w2_scale; /* [ceil(H/128), E*I/128] */
  int64_t w2_scale_stride;
  const float* alpha; /* [M, E]; NULL: 1 everywhere */
  int64_t alpha_stride;
  tdm_choices_params choices;
  const int32_t* n_tokens; /* NULL: all rows are live */
  const void* addend;      /* [M, H], added last; NULL: none */
  int64_t addend_stride;
  void* out; /* [M, H] */
  int64_t out_stride;
  float* sums; /* [E*I/128][8 rows][gate, up][128], workspace */
  tdm_moe_experts_state* state;
  int32_t addend_dtype;
  int32_t out_dtype;
  int32_t m;
  int32_t n; /* H, as columns of the output */
  int32_t n_experts;
  int32_t k_blocks; /* of H */
  int32_t blocks;   /* of an expert: I/128 */
  int32_t segments; /* of FC2's sum, at most two */
  int32_t stages;
  int32_t stage_blocks; /* of w2 in a stage */
  int32_t pow2_scale;
  float swiglu_limit; /* 0: none */
  float quant_eps;
  int32_t padding[13];
} tdm_moe_experts_params;

static_assert(sizeof(tdm_moe_experts_params) == 512, "kernel ABI");

enum {
  TDM_MOE_EXPERTS_THREADS = 288, /* two engines that multiply, a warp that asks for weights */
  TDM_MOE_EXPERTS_TOKENS = 8,
  TDM_MOE_EXPERTS_COLUMNS = 64, /* of a tile of FC2 */
  TDM_MOE_EXPERTS_SEGMENTS = 2,
  TDM_MOE_EXPERTS_STAGE_BYTES = 16384,
  TDM_MOE_EXPERTS_LEAST_STAGES = 4, /* an engine has a stage and waits for its next one, so does the other */
  TDM_MOE_EXPERTS_MOST_STAGES = 10,
  TDM_MOE_EXPERTS_MOST_BLOCKS = 64 /* of H: a lane has two weight scales */
};

/* A piece of FC1: up to `rows` gate rows and their up rows. `pieces` of them make a tile of 128, as even as they come.
 * A block of a piece begins with a swizzle atom of 1024 bytes; a stage has as many blocks as find room. */
#define TDM_MOE_EXPERTS_PIECES(rows)       ((128 + (rows)-1) / (rows))
#define TDM_MOE_EXPERTS_BLOCK_BYTES(rows)  ((2 * (rows)*128 + 1023) / 1024 * 1024)
#define TDM_MOE_EXPERTS_STAGE_BLOCKS(rows) (TDM_MOE_EXPERTS_STAGE_BYTES / TDM_MOE_EXPERTS_BLOCK_BYTES(rows))
/* Blocks that a copy brings: those of a stage where no gaps lie between them. */
#define TDM_MOE_EXPERTS_COPY_BLOCKS(rows) ((2 * (rows)*128) % 1024 == 0 ? TDM_MOE_EXPERTS_STAGE_BLOCKS(rows) : 1)

/* Blocks of activations there is room for. The last stage of FC1 is multiplied as a whole, with what lies behind them.
 */
#define TDM_MOE_EXPERTS_BLOCKS(k_blocks) (((k_blocks) + 1) / 2 * 2)

/* Shared memory, in the order of Memory in the kernel. */
static inline uint32_t tdm_moe_experts_bytes(int32_t k_blocks, int32_t n_experts, int32_t stages) {
  const int32_t a_block = TDM_MOE_EXPERTS_TOKENS * (128 + 4) + 4;
  return (uint32_t)(stages * (TDM_MOE_EXPERTS_STAGE_BYTES + 2 * 8 + 4) + TDM_MOE_EXPERTS_BLOCKS(k_blocks) * a_block +
                    TDM_MOE_EXPERTS_TOKENS * TDM_MOE_EXPERTS_COLUMNS * 4 + 2 * 8 +
                    TDM_MOE_EXPERTS_MOST_BLOCKS * TDM_MOE_EXPERTS_TOKENS * 8 + 2 * 4 + n_experts * 4);
}

#endif
