#ifndef KERNELS_GEMM_BF16_GEMM_BF16_H
#define KERNELS_GEMM_BF16_GEMM_BF16_H

#include "kernels/ops.h"

tdm_status tdm_gemm_bf16_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
