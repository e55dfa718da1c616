#ifndef KERNELS_MLA_ABSORB_MLA_ABSORB_H
#define KERNELS_MLA_ABSORB_MLA_ABSORB_H

/* gemm_bf16, batched over heads, and rope, into one tensor in one step and with the bits of both. */

#include "runtime/op.h"

/* The two ops' args in checked ones. */
tdm_gemm_bf16_args tdm_mla_absorb_gemm(const tdm_mla_absorb_args* args);
tdm_rope_args tdm_mla_absorb_rope(const tdm_mla_absorb_args* args);

/* A position or count that is out of range fails before anything is written. */
tdm_status tdm_mla_absorb_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
