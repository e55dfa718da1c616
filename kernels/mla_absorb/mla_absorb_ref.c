#include "kernels/mla_absorb/mla_absorb.h"

#include "kernels/common/check.h"
#include "kernels/gemm_bf16/gemm_bf16.h"
#include "kernels/rope/rope.h"

tdm_status tdm_mla_absorb_ref(const void* args, const tdm_plan* plan, void* scratch) {
  const tdm_gemm_bf16_args gemm = tdm_mla_absorb_gemm(args);
  const tdm_rope_args rope = tdm_mla_absorb_rope(args);
  int64_t rows;
  TDM_TRY(tdm_live_rows("mla_absorb", &rope.n_tokens, rope.x.shape[0], &rows));
  TDM_TRY(tdm_rope_check_positions("mla_absorb", &rope.positions, &rope.cos_sin, rows));
  TDM_TRY(tdm_rope_ref(&rope, plan, scratch));
  return tdm_gemm_bf16_ref(&gemm, plan, scratch);
}
