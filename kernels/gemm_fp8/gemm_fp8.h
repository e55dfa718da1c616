#ifndef KERNELS_GEMM_FP8_GEMM_FP8_H
#define KERNELS_GEMM_FP8_GEMM_FP8_H

#include "kernels/ops.h"

/* All but overlaps, in the name of `op`. */
tdm_status tdm_gemm_fp8_check(const char* op, const tdm_gemm_fp8_args* args);
tdm_status tdm_gemm_fp8_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
