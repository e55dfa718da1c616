#ifndef KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_SM90_H
#define KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_SM90_H

/* Planning of the Hopper kernels of grouped_gemm_fp8: pure functions, no GPU needed. */

#include "kernels/device/launch.h"
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_params.h"
#include "tandem/ops.h"

typedef struct tdm_grouped_gemm_fp8_sm90_plan {
  tdm_kernel_launch launch;
  int32_t tokens; /* rows of a tile */
  int32_t x_rows; /* rows that are fetched for it */
  int32_t x_box;  /* and by one CTA */
} tdm_grouped_gemm_fp8_sm90_plan;

/* Of checked args. */
void tdm_grouped_gemm_fp8_sm90_make_plan(const tdm_grouped_gemm_fp8_args* args, int32_t sms,
                                         tdm_grouped_gemm_fp8_sm90_plan* out_plan);
/* The same with tiles of 64, 128 or 192 rows, for tuning. */
void tdm_grouped_gemm_fp8_sm90_make_plan_for(const tdm_grouped_gemm_fp8_args* args, int32_t sms, int32_t tokens,
                                             tdm_grouped_gemm_fp8_sm90_plan* out_plan);

/* UNSUPPORTED for f32 activations, for strides that the copy engine cannot take and for more than 512 groups. */
tdm_status tdm_grouped_gemm_fp8_sm90_params(const tdm_grouped_gemm_fp8_args* args,
                                            const tdm_grouped_gemm_fp8_sm90_plan* plan, tdm_tensor_map_fn encode,
                                            void* encode_ctx, tdm_grouped_gemm_fp8_params* out_params);

#endif
