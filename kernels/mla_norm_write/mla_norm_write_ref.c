#include "kernels/mla_norm_write/mla_norm_write.h"

#include "kernels/common/check.h"
#include "kernels/mla_kv_write/mla_kv_write.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"

tdm_status tdm_mla_norm_write_ref(const void* args, const tdm_plan* plan, void* scratch) {
  const tdm_rmsnorm_args norm = tdm_mla_norm_write_norm(args);
  const tdm_mla_kv_write_args write = tdm_mla_norm_write_write(args);
  int64_t rows;
  TDM_TRY(tdm_live_rows("mla_norm_write", &write.n_tokens, write.kv.shape[0], &rows));
  TDM_TRY(tdm_rope_check_positions("mla_norm_write", &write.positions, &write.cos_sin, rows));
  TDM_TRY(tdm_mla_kv_write_check_slots("mla_norm_write", &write.slots, &write.cache, rows));
  TDM_TRY(tdm_mla_kv_write_ref(&write, plan, scratch));
  return tdm_rmsnorm_ref(&norm, plan, scratch);
}
