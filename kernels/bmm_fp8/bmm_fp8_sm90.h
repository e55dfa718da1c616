#ifndef KERNELS_BMM_FP8_BMM_FP8_SM90_H
#define KERNELS_BMM_FP8_BMM_FP8_SM90_H

/* Planning of bmm_fp8, which runs on the swapped kernels of gemm_fp8: weights and output are those of one linear with
 * G*N rows, and the activations follow the tile's group. Pure functions, no GPU needed. */

#include "kernels/gemm_fp8/gemm_fp8_sm90.h"

/* For up to m rows on `sms` SMs; n weight rows a group, k a multiple of 128. */
void tdm_bmm_fp8_sm90_make_plan(int64_t groups, int64_t m, int64_t n, int64_t k, int32_t sms,
                                tdm_gemm_fp8_sm90_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED for f32 activations, for N that 128 does not divide, for an odd number
 * of blocks along K, and for strides that the copy engine cannot take. */
tdm_status tdm_bmm_fp8_sm90_params(const tdm_bmm_fp8_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_gemm_fp8_params* out_params);

#endif
