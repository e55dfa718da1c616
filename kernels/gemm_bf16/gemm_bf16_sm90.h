#ifndef KERNELS_GEMM_BF16_GEMM_BF16_SM90_H
#define KERNELS_GEMM_BF16_GEMM_BF16_SM90_H

/* Planning of the Hopper kernels of gemm_bf16; router_gemm has the same main loop. Pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/gemm_bf16/gemm_bf16_params.h"
#include "tandem/ops.h"

typedef struct tdm_gemm_bf16_sm90_plan {
  tdm_kernel_launch launch;
  bool short_k;   /* the form of gemm_bf16_short.cuh */
  bool mn_major;  /* columns of w are contiguous */
  int32_t rows;   /* weight rows of a tile */
  int32_t tokens; /* tokens of a tile */
  int32_t segments;
  int32_t granule;
  size_t partial_bytes; /* workspace, any contents */
  size_t counter_bytes; /* memory that is zero before the first launch and belongs to this step alone; 0: none */
} tdm_gemm_bf16_sm90_plan;

void tdm_gemm_bf16_sm90_make_plan(int64_t batch, int64_t m, int64_t n, int64_t k, bool mn_major, int32_t sms,
                                  tdm_gemm_bf16_sm90_plan* out_plan);
/* Whether w's columns are contiguous and its rows are not. */
bool tdm_gemm_bf16_sm90_mn_major(const tdm_view* w);

/* Of a tensor [B, rows, cols], or [rows, cols] as B = 1, boxes in which dimension `inner` (of the two) is contiguous.
 */
tdm_tensor_tile tdm_gemm_bf16_sm90_tile(const tdm_view* view, int32_t inner, uint32_t box_inner, uint32_t box_outer);

/* Kernel parameters of checked args. UNSUPPORTED for f32 operands and for strides that the copy engine cannot take. */
tdm_status tdm_gemm_bf16_sm90_params(const tdm_gemm_bf16_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                     void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                     tdm_gemm_bf16_params* out_params);

/* What both ops need: `op` is for the sentence. */
tdm_status tdm_gemm_bf16_sm90_fill(const char* op, const tdm_view* n_tokens, const tdm_view* a, const tdm_view* w,
                                   const tdm_view* out, const tdm_gemm_bf16_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_gemm_bf16_params* out_params);

#endif
