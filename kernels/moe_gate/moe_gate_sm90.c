#include "kernels/moe_gate/moe_gate_sm90.h"

#include <stdio.h>

#include "kernels/moe_route/moe_route_sm90.h"
#include "kernels/router_gemm/router_gemm_sm90.h"
#include "runtime/op.h"

void tdm_moe_gate_sm90_make_plan(int64_t m, int64_t n_experts, int64_t hidden, int32_t sms,
                                 tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_router_gemm_sm90_make_plan(m, n_experts, hidden, sms, out_plan);
  (void)snprintf(out_plan->launch.kernel, sizeof out_plan->launch.kernel, "tdm_moe_gate_router_t%d_sm90",
                 out_plan->tokens);
  out_plan->partial_bytes = (size_t)(out_plan->segments * m * n_experts) * sizeof(float);
  out_plan->counter_bytes = 0;
}

void tdm_moe_gate_sm90_route(const tdm_moe_route_args* args, const float* partials, int32_t segments, int32_t sms,
                             tdm_moe_gate_route_params* out_params, tdm_kernel_launch* out_launch) {
  const int64_t rows = args->logits.shape[0];
  *out_params =
      (tdm_moe_gate_route_params){.logits = tdm_view_data(&args->logits), .partials = partials, .segments = segments};
  tdm_moe_route_sm90_params(args, &out_params->route);
  *out_launch = (tdm_kernel_launch){.kernel = "tdm_moe_gate_route_sm90",
                                    .grid = (uint32_t)(rows < sms ? rows : sms),
                                    .block = TDM_MOE_GATE_ROUTE_THREADS,
                                    .admits_late = true};
}
