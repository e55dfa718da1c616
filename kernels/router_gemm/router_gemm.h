#ifndef KERNELS_ROUTER_GEMM_ROUTER_GEMM_H
#define KERNELS_ROUTER_GEMM_ROUTER_GEMM_H

#include "kernels/ops.h"

/* All but overlaps, in the name of `op`. */
tdm_status tdm_router_gemm_check(const char* op, const tdm_router_gemm_args* args);
tdm_status tdm_router_gemm_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
