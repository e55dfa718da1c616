#include "kernels/mla_kv_write/mla_kv_write.h"

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/mla_kv_write/mla_kv_write_sm90.h"
#include "kernels/ops.h"
#include "kernels/rope/rope.h"

#define OP "mla_kv_write"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_mla_kv_write_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, kv, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, norm_weight, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, positions, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, cos_sin, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, slots, TDM_READ),
    TDM_OPERAND(tdm_mla_kv_write_args, cache, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_mla_kv_write_args, out, TDM_WRITE),
};

static tdm_status check(void* void_args) {
  tdm_mla_kv_write_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(OP, "kv", &args->kv, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_MLA_CACHED}));
  int64_t rows = args->kv.shape[0];
  TDM_TRY(tdm_check_tensor(OP, "norm_weight", &args->norm_weight, TDM_BF16_OR_F32, 1, (int64_t[]){TDM_MLA_LATENT}));
  TDM_TRY(tdm_rope_check(OP, &args->positions, &args->cos_sin, args->style, rows));
  TDM_TRY(tdm_check_tensor(OP, "slots", &args->slots, TDM_DTYPES(TDM_I32), 1, (int64_t[]){rows}));
  TDM_TRY(tdm_check_tensor(OP, "cache", &args->cache, TDM_BF16_OR_F32, 3,
                           (int64_t[]){TDM_ANY, TDM_PAGE_TOKENS, TDM_MLA_CACHED}));
  if (tdm_view_present(&args->out)) {
    TDM_TRY(
        tdm_check_tensor(OP, "out", &args->out, TDM_DTYPES(args->cache.dtype), 2, (int64_t[]){rows, TDM_MLA_CACHED}));
  }
  TDM_TRY(tdm_check_eps(OP, "eps", &args->eps, 1e-6f));
  return tdm_check_overlap(&tdm_op_mla_kv_write, args, NULL, NULL);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_mla_kv_write_args* args = void_args;
  (void)sms;
  double rows = (double)args->kv.shape[0];
  out_plan->flops = rows * (TDM_MLA_LATENT * 4 + TDM_ROPE_DIM * 3);
  out_plan->bytes = tdm_traffic(&args->kv) + tdm_traffic(&args->norm_weight) + tdm_traffic(&args->positions) +
                    tdm_traffic(&args->slots) + rows * TDM_ROPE_DIM * sizeof(float) +
                    rows * TDM_MLA_CACHED * (double)tdm_dtype_bytes(args->cache.dtype) + tdm_traffic(&args->out);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_mla_kv_write_params params;
  tdm_kernel_launch launch;
  tdm_mla_kv_write_sm90_params(args, &params);
  tdm_mla_kv_write_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_mla_kv_write = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_kv_write_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_kv_write_ref,
    .encode = encode,
};
