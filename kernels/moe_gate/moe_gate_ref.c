#include "kernels/common/check.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_route/moe_route.h"
#include "kernels/router_gemm/router_gemm.h"

tdm_status tdm_moe_gate_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_gate_args* args = void_args;
  const tdm_router_gemm_args router = tdm_moe_gate_router(args);
  const tdm_moe_route_args route = tdm_moe_gate_route(args);
  int64_t rows;
  TDM_TRY(tdm_live_rows("moe_gate", &args->n_tokens, args->x.shape[0], &rows));
  TDM_TRY(tdm_router_gemm_ref(&router, plan, scratch));
  return tdm_moe_route_ref(&route, plan, scratch);
}
