#ifndef KERNELS_MLA_ABSORB_MLA_ABSORB_SM90_H
#define KERNELS_MLA_ABSORB_MLA_ABSORB_SM90_H

/* Planning of the Hopper kernels: gemm_bf16's plan for the heads as batch, with another kernel. Pure functions. */

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/mla_absorb/mla_absorb_params.h"

void tdm_mla_absorb_sm90_plan(const tdm_mla_absorb_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan);

/* Kernel parameters of checked args. UNSUPPORTED as for gemm_bf16. */
tdm_status tdm_mla_absorb_sm90_params(const tdm_mla_absorb_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                      const tdm_encode_env* env, tdm_mla_absorb_params* out_params);
/* Of a plan whose GEMM has the form for few tokens. */
tdm_status tdm_mla_absorb_short_sm90_params(const tdm_mla_absorb_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                            const tdm_encode_env* env, tdm_mla_absorb_short_params* out_params);

#endif
