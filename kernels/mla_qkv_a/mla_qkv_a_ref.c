#include "kernels/common/check.h"
#include "kernels/gemm_fp8/gemm_fp8.h"
#include "kernels/mla_kv_write/mla_kv_write.h"
#include "kernels/mla_norm_write/mla_norm_write.h"
#include "kernels/mla_qkv_a/mla_qkv_a.h"
#include "kernels/rope/rope.h"
#include "runtime/buffer.h"

tdm_status tdm_mla_qkv_a_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_mla_qkv_a_args* args = void_args;
  tdm_buffer buffer;
  const tdm_view qkv = tdm_mla_qkv_a_between(args, scratch, &buffer);
  const tdm_gemm_fp8_args product = tdm_mla_qkv_a_product(args, &qkv);
  const tdm_mla_norm_write_args rows = tdm_mla_qkv_a_rows(args, &qkv);
  int64_t live;
  /* Before anything is written. */
  TDM_TRY(tdm_live_rows("mla_qkv_a", &args->n_tokens, args->a.shape[0], &live));
  TDM_TRY(tdm_rope_check_positions("mla_qkv_a", &args->positions, &args->cos_sin, live));
  TDM_TRY(tdm_mla_kv_write_check_slots("mla_qkv_a", &args->slots, &args->cache, live));
  TDM_TRY(tdm_gemm_fp8_ref(&product, plan, NULL));
  return tdm_mla_norm_write_ref(&rows, plan, buffer.data + buffer.bytes);
}
