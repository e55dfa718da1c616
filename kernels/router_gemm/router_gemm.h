#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_H
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_H

#include "kernels/ops.h"

tdm_status tdm_router_gemm_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
