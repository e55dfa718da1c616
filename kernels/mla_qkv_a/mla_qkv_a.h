#ifndef KERNELS_MLA_QKV_A_MLA_QKV_A_H
#define KERNELS_MLA_QKV_A_MLA_QKV_A_H

/* gemm_fp8 of q_a and kv_a side by side and mla_norm_write of its result, as one op with the bits of both. */

#include "runtime/op.h"

/* The two ops' args, with the product [M, D + 576] in bf16 between them. */
tdm_gemm_fp8_args tdm_mla_qkv_a_product(const tdm_mla_qkv_a_args* args, const tdm_view* qkv);
tdm_mla_norm_write_args tdm_mla_qkv_a_rows(const tdm_mla_qkv_a_args* args, const tdm_view* qkv);

/* The product's view, in `buffer`, which gets its size and `data`. */
tdm_view tdm_mla_qkv_a_between(const tdm_mla_qkv_a_args* args, void* data, tdm_buffer* buffer);

tdm_status tdm_mla_qkv_a_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
