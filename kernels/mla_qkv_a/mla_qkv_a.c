#include "kernels/mla_qkv_a/mla_qkv_a.h"

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/gemm_fp8/gemm_fp8.h"
#include "kernels/mla_norm_write/mla_norm_write.h"
#include "kernels/mla_qkv_a/mla_qkv_a_sm90.h"
#include "kernels/ops.h"
#include "runtime/buffer.h"

#define OP "mla_qkv_a"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_mla_qkv_a_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, a, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, a_scale, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_mla_qkv_a_args, w),
    TDM_OPERAND(tdm_mla_qkv_a_args, w_scale, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_mla_qkv_a_args, q_weight),
    TDM_OPTIONAL_OPERAND(tdm_mla_qkv_a_args, out, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_qkv_a_args, out_q, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_qkv_a_args, out_scale, TDM_WRITE),
    TDM_OPERAND(tdm_mla_qkv_a_args, kv_weight, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, positions, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, cos_sin, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, slots, TDM_READ),
    TDM_OPERAND(tdm_mla_qkv_a_args, cache, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_qkv_a_args, out_kv, TDM_WRITE),
};

tdm_view tdm_mla_qkv_a_between(const tdm_mla_qkv_a_args* args, void* data, tdm_buffer* buffer) {
  const int64_t rows = args->a.shape[0], columns = args->w.shape[0];
  *buffer = (tdm_buffer){.data = data, .bytes = (size_t)(rows * columns * 2 + 255) / 256 * 256};
  return tdm_view_make(buffer, TDM_BF16, 2, (int64_t[]){rows, columns});
}

tdm_gemm_fp8_args tdm_mla_qkv_a_product(const tdm_mla_qkv_a_args* args, const tdm_view* qkv) {
  return (tdm_gemm_fp8_args){.size = sizeof(tdm_gemm_fp8_args),
                             .n_tokens = args->n_tokens,
                             .a = args->a,
                             .a_scale = args->a_scale,
                             .w = args->w,
                             .w_scale = args->w_scale,
                             .out = *qkv};
}

tdm_mla_norm_write_args tdm_mla_qkv_a_rows(const tdm_mla_qkv_a_args* args, const tdm_view* qkv) {
  const int64_t q_columns = qkv->shape[1] - TDM_MLA_CACHED;
  return (tdm_mla_norm_write_args){.size = sizeof(tdm_mla_norm_write_args),
                                   .n_tokens = args->n_tokens,
                                   .q = tdm_view_slice(*qkv, 1, 0, q_columns),
                                   .q_weight = args->q_weight,
                                   .out = args->out,
                                   .out_q = args->out_q,
                                   .out_scale = args->out_scale,
                                   .kv = tdm_view_slice(*qkv, 1, q_columns, TDM_MLA_CACHED),
                                   .kv_weight = args->kv_weight,
                                   .positions = args->positions,
                                   .cos_sin = args->cos_sin,
                                   .slots = args->slots,
                                   .cache = args->cache,
                                   .out_kv = args->out_kv,
                                   .eps = args->eps,
                                   .quant_eps = args->quant_eps,
                                   .pow2_scale = args->pow2_scale,
                                   .style = args->style};
}

static tdm_status check(void* void_args) {
  tdm_mla_qkv_a_args* args = void_args;
  const int64_t any[] = {TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_tensor(OP, "a", &args->a, TDM_DTYPES(TDM_E4M3), 2, any));
  TDM_TRY(tdm_check_tensor(OP, "w", &args->w, TDM_DTYPES(TDM_E4M3), 2, any));
  const long long q_rows = args->w.shape[0] - TDM_MLA_CACHED;
  if (q_rows <= 0 || q_rows % 8 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": w has %lld rows besides the %d of kv_a, not a multiple of 8", q_rows,
                    TDM_MLA_CACHED);
  }
  tdm_buffer buffer;
  const tdm_view qkv = tdm_mla_qkv_a_between(args, NULL, &buffer);
  const tdm_gemm_fp8_args product = tdm_mla_qkv_a_product(args, &qkv);
  tdm_mla_norm_write_args rows = tdm_mla_qkv_a_rows(args, &qkv);
  TDM_TRY(tdm_gemm_fp8_check(OP, &product));
  TDM_TRY(tdm_mla_norm_write_check(OP, &rows));
  args->eps = rows.eps;
  args->quant_eps = rows.quant_eps;
  return tdm_check_overlap(&tdm_op_mla_qkv_a, args, NULL, NULL);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_mla_qkv_a_args* args = void_args;
  tdm_buffer buffer;
  const tdm_view qkv = tdm_mla_qkv_a_between(args, NULL, &buffer);
  const tdm_gemm_fp8_args product = tdm_mla_qkv_a_product(args, &qkv);
  const tdm_mla_norm_write_args rows = tdm_mla_qkv_a_rows(args, &qkv);
  tdm_plan of_rows = {0};
  tdm_op_gemm_fp8.plan(&product, sms, out_plan);
  tdm_op_mla_norm_write.plan(&rows, sms, &of_rows);
  out_plan->flops += of_rows.flops; /* as the two ops count them */
  out_plan->bytes = tdm_traffic_all(&tdm_op_mla_qkv_a, args);
  if (sms == 0) {
    out_plan->scratch_bytes = buffer.bytes + of_rows.scratch_bytes;
    return;
  }
  tdm_mla_qkv_a_sm90_plan kernels;
  tdm_mla_qkv_a_sm90_make_plan(args, sms, &kernels);
  const tdm_gemm_fp8_sm90_plan* gemm = &kernels.product;
  tdm_plan_kernel(out_plan, &gemm->launch, gemm->segments,
                  kernels.product_bytes + (kernels.apart ? 0 : gemm->partial_bytes),
                  kernels.apart ? 0 : gemm->counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  return tdm_mla_qkv_a_sm90_encode(args, env, out_step);
}

const tdm_op tdm_op_mla_qkv_a = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_qkv_a_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_qkv_a_ref,
    .encode = encode,
};
