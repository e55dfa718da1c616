#ifndef KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_H
#define KERNELS_GROUPED_GEMM_FP8_GROUPED_GEMM_FP8_H

#include "kernels/ops.h"

tdm_status tdm_grouped_gemm_fp8_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
