#include "kernels/quant/quant.h"

#include "kernels/common/check.h"
#include "kernels/quant/quant_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_quant_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_quant_args, x, TDM_READ),
    TDM_OPERAND(tdm_quant_args, out_q, TDM_WRITE),
    TDM_OPERAND(tdm_quant_args, out_scale, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_quant_args* args = args_;
  const char* op = "quant";
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "x", &args->x, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "out_q", &args->out_q, TDM_DTYPES(TDM_E4M3), 2, args->x.shape));
  TDM_TRY(tdm_check_act_scale(op, "out_scale", &args->out_scale, "out_q", &args->out_q));
  TDM_TRY(tdm_check_eps(op, "quant_eps", &args->quant_eps, 1e-4f));
  return tdm_check_overlap(&tdm_op_quant, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_quant_args* args = args_;
  (void)sms;
  out_plan->flops = 2.0 * (double)args->x.shape[0] * (double)args->x.shape[1]; /* a comparison and a division */
  out_plan->bytes = tdm_traffic_all(&tdm_op_quant, args);
  out_plan->scratch_bytes = (size_t)args->x.shape[1] * sizeof(float);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_quant_params params;
  tdm_kernel_launch launch;
  tdm_quant_sm90_params(args, &params);
  tdm_quant_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_quant = {
    .name = "quant",
    .args_bytes = sizeof(tdm_quant_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_quant_ref,
    .encode = encode,
};
