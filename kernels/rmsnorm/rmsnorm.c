#include "kernels/rmsnorm/rmsnorm.h"

#include "kernels/common/check.h"
#include "kernels/rmsnorm/rmsnorm_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_rmsnorm_args, x, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, delta, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, residual_out, TDM_WRITE),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_rmsnorm_args, weight),
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, out, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, out_q, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_rmsnorm_args, out_scale, TDM_WRITE),
};

static tdm_status check_optional(const char* op, const char* name, const tdm_view* view, unsigned dtypes, int32_t rank,
                                 const int64_t* shape) {
  return tdm_view_present(view) ? tdm_check_tensor(op, name, view, dtypes, rank, shape) : TDM_OK;
}

tdm_status tdm_rmsnorm_check(const char* op, tdm_rmsnorm_args* args) {
  const bool norms = tdm_view_present(&args->out) || tdm_view_present(&args->out_q);
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "x", &args->x, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  const int64_t* shape = args->x.shape;
  TDM_TRY(check_optional(op, "delta", &args->delta, TDM_BF16_OR_F32, 2, shape));
  TDM_TRY(check_optional(op, "residual_out", &args->residual_out, TDM_BF16_OR_F32, 2, shape));
  TDM_TRY(check_optional(op, "weight", &args->weight, TDM_BF16_OR_F32, 1, &shape[1]));
  TDM_TRY(check_optional(op, "out", &args->out, TDM_BF16_OR_F32, 2, shape));
  TDM_TRY(check_optional(op, "out_q", &args->out_q, TDM_DTYPES(TDM_E4M3), 2, shape));
  if (tdm_view_present(&args->out_q)) {
    TDM_TRY(tdm_check_act_scale(op, "out_scale", &args->out_scale, "out_q", &args->out_q));
  } else if (tdm_view_present(&args->out_scale)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: out_scale is given but out_q is absent", op);
  }
  if (!norms && !tdm_view_present(&args->residual_out)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: out, out_q and residual_out are all absent", op);
  }
  if (!norms && tdm_view_present(&args->weight)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: weight is given but out and out_q are absent", op);
  }
  TDM_TRY(tdm_check_eps(op, "eps", &args->eps, 1e-6f));
  return tdm_check_eps(op, "quant_eps", &args->quant_eps, 1e-4f);
}

static tdm_status check(void* args) {
  TDM_TRY(tdm_rmsnorm_check("rmsnorm", args));
  return tdm_check_overlap(&tdm_op_rmsnorm, args, "residual_out", "x");
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_rmsnorm_args* args = args_;
  (void)sms;
  double values = (double)args->x.shape[0] * (double)args->x.shape[1];
  bool norms = tdm_view_present(&args->out) || tdm_view_present(&args->out_q);
  if (tdm_view_present(&args->delta)) out_plan->flops += values;
  if (norms) out_plan->flops += 3.0 * values; /* square and add, times the reciprocal root */
  if (tdm_view_present(&args->weight)) out_plan->flops += values;
  if (tdm_view_present(&args->out_q)) out_plan->flops += 2.0 * values;
  out_plan->bytes = tdm_traffic_all(&tdm_op_rmsnorm, args);
  out_plan->scratch_bytes = 2 * (size_t)args->x.shape[1] * sizeof(float);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_rmsnorm_params params;
  tdm_kernel_launch launch;
  tdm_rmsnorm_sm90_params(args, &params);
  tdm_rmsnorm_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_rmsnorm = {
    .name = "rmsnorm",
    .args_bytes = sizeof(tdm_rmsnorm_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_rmsnorm_ref,
    .encode = encode,
};
