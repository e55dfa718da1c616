#include "kernels/gather_rows/gather_rows.h"

#include "kernels/common/check.h"
#include "kernels/gather_rows/gather_rows_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_gather_rows_args, n_rows, TDM_READ),
    TDM_OPERAND(tdm_gather_rows_args, x, TDM_READ),
    TDM_OPERAND(tdm_gather_rows_args, rows, TDM_READ),
    TDM_OPERAND(tdm_gather_rows_args, out, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_gather_rows_args* args = args_;
  const char* op = "gather_rows";
  TDM_TRY(tdm_check_count(op, "n_rows", &args->n_rows));
  TDM_TRY(tdm_check_tensor(op, "x", &args->x, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "rows", &args->rows, TDM_DTYPES(TDM_I32), 1, (int64_t[]){TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "out", &args->out, TDM_DTYPES(args->x.dtype), 2,
                           (int64_t[]){args->rows.shape[0], args->x.shape[1]}));
  return tdm_check_overlap(&tdm_op_gather_rows, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_gather_rows_args* args = args_;
  (void)sms;
  out_plan->bytes = tdm_traffic(&args->rows) + 2.0 * tdm_traffic(&args->out);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gather_rows_params params;
  tdm_kernel_launch launch;
  tdm_gather_rows_sm90_params(args, &params);
  tdm_gather_rows_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_gather_rows = {
    .name = "gather_rows",
    .args_bytes = sizeof(tdm_gather_rows_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_gather_rows_ref,
    .encode = encode,
};
