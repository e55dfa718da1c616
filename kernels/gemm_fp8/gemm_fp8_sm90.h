#ifndef KERNELS_GEMM_FP8_GEMM_FP8_SM90_H
#define KERNELS_GEMM_FP8_GEMM_FP8_SM90_H

/* Planning of the Hopper kernels of gemm_fp8; moe_fc2 runs on the same ones. Pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/gemm_fp8/gemm_fp8_params.h"
#include "tandem/ops.h"

typedef enum tdm_gemm_fp8_form {
  TDM_GEMM_FP8_SWAPPED = 1, /* weights on the 64-row side of the tensor cores: up to 32 tokens */
  TDM_GEMM_FP8_UPRIGHT = 2, /* tokens on it, few weight rows a tile: up to 128 */
  TDM_GEMM_FP8_PLAIN = 3    /* tokens on it, tiles of 128 x 128 */
} tdm_gemm_fp8_form;

typedef struct tdm_gemm_fp8_sm90_plan {
  tdm_kernel_launch launch;
  tdm_gemm_fp8_form form;
  int32_t rows;   /* weight rows of a tile */
  int32_t tokens; /* tokens of a tile */
  int32_t segments;
  int32_t parts; /* units that share a tile's sum: `segments`, or 1 */
  int32_t granule;
  size_t partial_bytes; /* workspace, 256-byte aligned, any contents */
  size_t counter_bytes; /* memory that is zero before the first launch and belongs to this step alone; 0: none */
} tdm_gemm_fp8_sm90_plan;

/* For up to m rows on `sms` SMs; k a multiple of 128. */
void tdm_gemm_fp8_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan);
/* The same with the tile given (rows 64 or 128 and a token tile of the variants, which decides the form; rows 0: the
 * plain form), for tuning. */
void tdm_gemm_fp8_sm90_make_plan_for(int64_t m, int64_t n, int64_t k, int32_t sms, int32_t rows, int32_t tokens,
                                     tdm_gemm_fp8_sm90_plan* out_plan);

/* Fills in segments, parts, grid, block, shared memory and the memory through which parts meet, from form, rows, tokens
 * and granule. Shared with moe_fc2. */
void tdm_gemm_fp8_sm90_divide(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* plan);
/* Whether K is cut in two although whole sums fill the SMs, so that at 128 tokens tiles can be twice as large. */
bool tdm_gemm_fp8_sm90_halved(int64_t n, int64_t k, int32_t granule);
/* Into how many segments K is cut: a function of the weights' shape. */
int32_t tdm_gemm_fp8_sm90_segments(int64_t n, int64_t k, int32_t granule);

/* Kernel parameters of checked args. UNSUPPORTED for f32 activations and for strides that the copy engine cannot take.
 */
tdm_status tdm_gemm_fp8_sm90_params(const tdm_gemm_fp8_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                    void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                    tdm_gemm_fp8_params* out_params);

/* The three tiles of w, x and x_scale (f32 [K/128][M], rows x_scale_stride apart) as the kernels of `plan` load them.
 * Shared with moe_fc2. */
tdm_status tdm_gemm_fp8_sm90_encode(const char* op, const tdm_view* x, const void* x_scale, int64_t x_scale_stride,
                                    const tdm_view* w, const tdm_gemm_fp8_sm90_plan* plan, tdm_tensor_map_fn encode,
                                    void* encode_ctx, tdm_gemm_fp8_params* params);

#endif
