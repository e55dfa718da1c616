#ifndef KERNELS_MLA_QKV_A_MLA_QKV_A_SM90_H
#define KERNELS_MLA_QKV_A_MLA_QKV_A_SM90_H

/* Planning of the Hopper kernels of mla_qkv_a. Pure functions, no GPU needed. */

#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "kernels/mla_qkv_a/mla_qkv_a_params.h"

typedef struct tdm_mla_qkv_a_sm90_plan {
  tdm_gemm_fp8_sm90_plan product;
  bool apart;           /* the product's segments are added up by what follows; else the two ops' kernels run */
  size_t product_bytes; /* of the workspace: its segments, or the product itself; what gemm_fp8 wants comes behind */
} tdm_mla_qkv_a_sm90_plan;

/* For checked args on `sms` SMs. */
void tdm_mla_qkv_a_sm90_make_plan(const tdm_mla_qkv_a_args* args, int32_t sms, tdm_mla_qkv_a_sm90_plan* out_plan);

/* Both launches. UNSUPPORTED as for gemm_fp8. */
tdm_status tdm_mla_qkv_a_sm90_encode(const tdm_mla_qkv_a_args* args, const tdm_encode_env* env,
                                     tdm_encoded_step* out_step);

#endif
