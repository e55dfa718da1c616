#include "kernels/sample/sample.h"

#include "kernels/common/check.h"
#include "kernels/sample/sample_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_sample_args, n_rows, TDM_READ),
    TDM_OPERAND(tdm_sample_args, logits, TDM_READ),
    TDM_OPERAND(tdm_sample_args, temperature, TDM_READ),
    TDM_OPERAND(tdm_sample_args, top_p, TDM_READ),
    TDM_OPERAND(tdm_sample_args, seeds, TDM_READ),
    TDM_OPERAND(tdm_sample_args, positions, TDM_READ),
    TDM_OPERAND(tdm_sample_args, out, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_sample_args* args = args_;
  const char* op = "sample";
  TDM_TRY(tdm_check_count(op, "n_rows", &args->n_rows));
  TDM_TRY(tdm_check_tensor(op, "logits", &args->logits, TDM_DTYPES(TDM_F32), 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  if (args->logits.shape[1] > INT32_MAX) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "sample: logits has %lld columns, more than an i32 can name",
                    (long long)args->logits.shape[1]);
  }
  const int64_t* rows = args->logits.shape;
  TDM_TRY(tdm_check_tensor(op, "temperature", &args->temperature, TDM_DTYPES(TDM_F32), 1, rows));
  TDM_TRY(tdm_check_tensor(op, "top_p", &args->top_p, TDM_DTYPES(TDM_F32), 1, rows));
  TDM_TRY(tdm_check_tensor(op, "seeds", &args->seeds, TDM_DTYPES(TDM_I64), 1, rows));
  TDM_TRY(tdm_check_tensor(op, "positions", &args->positions, TDM_DTYPES(TDM_I32), 1, rows));
  TDM_TRY(tdm_check_tensor(op, "out", &args->out, TDM_DTYPES(TDM_I32), 1, rows));
  return tdm_check_overlap(&tdm_op_sample, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_sample_args* args = args_;
  (void)sms;
  out_plan->bytes = tdm_traffic_all(&tdm_op_sample, args);
  out_plan->scratch_bytes = (size_t)args->logits.shape[1] * (sizeof(double) + sizeof(int32_t));
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_sample_params params;
  tdm_kernel_launch launch;
  tdm_sample_sm90_params(args, &params);
  tdm_sample_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_sample = {
    .name = "sample",
    .args_bytes = sizeof(tdm_sample_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_sample_ref,
    .encode = encode,
};
