#ifndef KERNELS_MOE_ROUTE_MOE_ROUTE_SM90_H
#define KERNELS_MOE_ROUTE_MOE_ROUTE_SM90_H

#include "kernels/device/launch.h"
#include "kernels/moe_route/moe_route_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_moe_route_sm90_params(const tdm_moe_route_args* args, tdm_moe_route_params* out_params);
/* Launch on `sms` SMs. */
void tdm_moe_route_sm90_plan(const tdm_moe_route_params* params, int32_t sms, tdm_kernel_launch* out_launch);
/* The second launch, where hits are wanted. */
void tdm_moe_hits_sm90_plan(const tdm_moe_route_args* args, tdm_moe_hits_params* out_params,
                            tdm_kernel_launch* out_launch);

#endif
