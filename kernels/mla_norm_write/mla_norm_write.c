#include "kernels/mla_norm_write/mla_norm_write.h"

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/mla_norm_write/mla_norm_write_sm90.h"
#include "kernels/ops.h"
#include "kernels/rope/rope.h"

#define OP "mla_norm_write"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_mla_norm_write_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, q, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_mla_norm_write_args, q_weight),
    TDM_OPTIONAL_OPERAND(tdm_mla_norm_write_args, out, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_norm_write_args, out_q, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_norm_write_args, out_scale, TDM_WRITE),
    TDM_OPERAND(tdm_mla_norm_write_args, kv, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, kv_weight, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, positions, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, cos_sin, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, slots, TDM_READ),
    TDM_OPERAND(tdm_mla_norm_write_args, cache, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_norm_write_args, out_kv, TDM_WRITE),
};

static tdm_status check_norm(const char* op, const tdm_mla_norm_write_args* args) {
  const int64_t* shape = args->q.shape;
  TDM_TRY(tdm_check_tensor(op, "q", &args->q, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "q_weight", &args->q_weight, TDM_BF16_OR_F32, 1, &shape[1]));
  const bool plain = tdm_view_present(&args->out), quantises = tdm_view_present(&args->out_q);
  if (!plain && !quantises) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: out and out_q are both absent", op);
  if (plain) TDM_TRY(tdm_check_tensor(op, "out", &args->out, TDM_BF16_OR_F32, 2, shape));
  if (quantises) {
    TDM_TRY(tdm_check_tensor(op, "out_q", &args->out_q, TDM_DTYPES(TDM_E4M3), 2, shape));
    TDM_TRY(tdm_check_act_scale(op, "out_scale", &args->out_scale, "out_q", &args->out_q));
  } else if (tdm_view_present(&args->out_scale)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: out_scale is given but out_q is absent", op);
  }
  return TDM_OK;
}

static tdm_status check_write(const char* op, const tdm_mla_norm_write_args* args) {
  const int64_t rows = args->q.shape[0];
  TDM_TRY(tdm_check_tensor(op, "kv", &args->kv, TDM_BF16_OR_F32, 2, (int64_t[]){rows, TDM_MLA_CACHED}));
  TDM_TRY(tdm_check_tensor(op, "kv_weight", &args->kv_weight, TDM_BF16_OR_F32, 1, (int64_t[]){TDM_MLA_LATENT}));
  TDM_TRY(tdm_rope_check(op, &args->positions, &args->cos_sin, args->style, rows));
  TDM_TRY(tdm_check_tensor(op, "slots", &args->slots, TDM_DTYPES(TDM_I32), 1, (int64_t[]){rows}));
  TDM_TRY(tdm_check_tensor(op, "cache", &args->cache, TDM_BF16_OR_F32, 3,
                           (int64_t[]){TDM_ANY, TDM_PAGE_TOKENS, TDM_MLA_CACHED}));
  if (!tdm_view_present(&args->out_kv)) return TDM_OK;
  return tdm_check_tensor(op, "out_kv", &args->out_kv, TDM_DTYPES(args->cache.dtype), 2,
                          (int64_t[]){rows, TDM_MLA_CACHED});
}

tdm_status tdm_mla_norm_write_check(const char* op, tdm_mla_norm_write_args* args) {
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(check_norm(op, args));
  TDM_TRY(check_write(op, args));
  TDM_TRY(tdm_check_eps(op, "eps", &args->eps, 1e-6f));
  return tdm_check_eps(op, "quant_eps", &args->quant_eps, 1e-4f);
}

static tdm_status check(void* args) {
  TDM_TRY(tdm_mla_norm_write_check(OP, args));
  return tdm_check_overlap(&tdm_op_mla_norm_write, args, NULL, NULL);
}

tdm_rmsnorm_args tdm_mla_norm_write_norm(const tdm_mla_norm_write_args* args) {
  return (tdm_rmsnorm_args){.size = sizeof(tdm_rmsnorm_args),
                            .n_tokens = args->n_tokens,
                            .x = args->q,
                            .weight = args->q_weight,
                            .out = args->out,
                            .out_q = args->out_q,
                            .out_scale = args->out_scale,
                            .eps = args->eps,
                            .quant_eps = args->quant_eps,
                            .pow2_scale = args->pow2_scale};
}

tdm_mla_kv_write_args tdm_mla_norm_write_write(const tdm_mla_norm_write_args* args) {
  return (tdm_mla_kv_write_args){.size = sizeof(tdm_mla_kv_write_args),
                                 .n_tokens = args->n_tokens,
                                 .kv = args->kv,
                                 .norm_weight = args->kv_weight,
                                 .positions = args->positions,
                                 .cos_sin = args->cos_sin,
                                 .slots = args->slots,
                                 .cache = args->cache,
                                 .out = args->out_kv,
                                 .eps = args->eps,
                                 .style = args->style};
}

static void plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  const tdm_rmsnorm_args norm = tdm_mla_norm_write_norm(args);
  const tdm_mla_kv_write_args write = tdm_mla_norm_write_write(args);
  tdm_plan of_write = {0};
  tdm_op_rmsnorm.plan(&norm, sms, out_plan);
  tdm_op_mla_kv_write.plan(&write, sms, &of_write);
  out_plan->flops += of_write.flops;
  out_plan->bytes += of_write.bytes;
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_mla_norm_write_params params;
  tdm_kernel_launch launch;
  tdm_mla_norm_write_sm90_launch(args, env->sms, &params, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_mla_norm_write = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_norm_write_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_norm_write_ref,
    .encode = encode,
};
