#include "kernels/common/check.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_norm_gate/moe_norm_gate.h"
#include "kernels/rmsnorm/rmsnorm.h"

tdm_status tdm_moe_norm_gate_ref(const void* args, const tdm_plan* plan, void* scratch) {
  const tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(args);
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(args);
  int64_t rows;
  TDM_TRY(tdm_live_rows("moe_norm_gate", &norm.n_tokens, norm.x.shape[0], &rows));
  TDM_TRY(tdm_rmsnorm_ref(&norm, plan, scratch));
  return tdm_moe_gate_ref(&gate, plan, scratch);
}
