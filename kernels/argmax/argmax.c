#include "kernels/argmax/argmax.h"

#include "kernels/argmax/argmax_sm90.h"
#include "kernels/common/check.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_argmax_args, n_rows, TDM_READ),
    TDM_OPERAND(tdm_argmax_args, logits, TDM_READ),
    TDM_OPERAND(tdm_argmax_args, out, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_argmax_args* args = args_;
  const char* op = "argmax";
  TDM_TRY(tdm_check_count(op, "n_rows", &args->n_rows));
  TDM_TRY(tdm_check_tensor(op, "logits", &args->logits, TDM_DTYPES(TDM_F32), 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  if (args->logits.shape[1] > INT32_MAX) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "argmax: logits has %lld columns, more than an i32 can name",
                    (long long)args->logits.shape[1]);
  }
  TDM_TRY(tdm_check_tensor(op, "out", &args->out, TDM_DTYPES(TDM_I32), 1, (int64_t[]){args->logits.shape[0]}));
  return tdm_check_overlap(&tdm_op_argmax, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  (void)sms;
  out_plan->bytes = tdm_traffic_all(&tdm_op_argmax, args_);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_argmax_params params;
  tdm_kernel_launch launch;
  tdm_argmax_sm90_params(args, &params);
  tdm_argmax_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_argmax = {
    .name = "argmax",
    .args_bytes = sizeof(tdm_argmax_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_argmax_ref,
    .encode = encode,
};
