#ifndef KERNELS_BMM_QUANT_BMM_QUANT_SM90_H
#define KERNELS_BMM_QUANT_BMM_QUANT_SM90_H

/* Planning of bmm_quant, which has the stages and products of gemm_bf16. Pure functions, no GPU needed. */

#include "kernels/bmm_quant/bmm_quant_params.h"
#include "kernels/gemm_bf16/gemm_bf16_sm90.h"

/* For up to m rows on `sms` SMs; n, of a batch, a multiple of 128. K is never cut. */
void tdm_bmm_quant_sm90_make_plan(int64_t batch, int64_t m, int64_t n, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED for strides that the copy engine cannot take. */
tdm_status tdm_bmm_quant_sm90_params(const tdm_bmm_quant_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                     tdm_tensor_map_fn encode, void* encode_ctx, tdm_bmm_quant_params* out_params);

#endif
