#ifndef KERNELS_GEMM_FP8_GEMM_FP8_SM90_H
#define KERNELS_GEMM_FP8_GEMM_FP8_SM90_H

/* Planning of the Hopper kernels of gemm_fp8; moe_fc2 runs on the same ones. Pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/gemm_fp8/gemm_fp8_params.h"
#include "tandem/ops.h"

typedef struct tdm_gemm_fp8_sm90_plan {
  tdm_kernel_launch launch;
  bool swapped;
  bool upright;   /* few tokens on the 64-row side of the tensor cores; neither: plain */
  int32_t rows;   /* weight rows of a tile */
  int32_t tokens; /* tokens of a tile */
  int32_t x_rows; /* plain and upright: tokens that one copy brings */
  int32_t segments;
  bool split; /* plain form and moe_fc2: segments are units of their own */
  int32_t granule;
  size_t partial_bytes; /* workspace, 256-byte aligned, any contents */
  size_t counter_bytes; /* memory that is zero before the first launch and belongs to this step alone; 0: none */
} tdm_gemm_fp8_sm90_plan;

/* For up to m rows on `sms` SMs; k a multiple of 128. */
void tdm_gemm_fp8_sm90_make_plan(int64_t m, int64_t n, int64_t k, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan);
/* The same with the tile given: rows 64 or 128 and a token tile of the swapped variants, or rows 0 and a token tile of
 * the plain ones, which is 128 where the sum is cut. */
void tdm_gemm_fp8_sm90_make_plan_for(int64_t m, int64_t n, int64_t k, int32_t sms, int32_t rows, int32_t tokens,
                                     tdm_gemm_fp8_sm90_plan* out_plan);

/* Whether the upright form takes so many tokens and rows; its tiles have 64 weight rows, or 128 where there is one for
 * most SMs. Shared with bmm_fp8. */
bool tdm_gemm_fp8_sm90_is_upright(int64_t m, int64_t n, int32_t sms);
void tdm_gemm_fp8_sm90_make_upright_plan(int64_t m, int64_t n, int64_t k, int32_t sms,
                                         tdm_gemm_fp8_sm90_plan* out_plan);

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

/* The output of a plain form, for stores by the copy engine where it can address it. */
tdm_status tdm_gemm_fp8_sm90_encode_out(const tdm_view* out, tdm_tensor_map_fn encode, void* encode_ctx,
                                        tdm_gemm_fp8_params* params);

#endif
