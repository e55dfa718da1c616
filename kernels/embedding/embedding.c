#include "kernels/embedding/embedding.h"

#include "kernels/common/check.h"
#include "kernels/embedding/embedding_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_embedding_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_embedding_args, ids, TDM_READ),
    TDM_OPERAND(tdm_embedding_args, table, TDM_READ),
    TDM_OPERAND(tdm_embedding_args, out, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_embedding_args* args = args_;
  const char* op = "embedding";
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "ids", &args->ids, TDM_DTYPES(TDM_I32), 1, (int64_t[]){TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "table", &args->table, TDM_BF16_OR_F32, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  TDM_TRY(tdm_check_tensor(op, "out", &args->out, TDM_BF16_OR_F32, 2,
                           (int64_t[]){args->ids.shape[0], args->table.shape[1]}));
  return tdm_check_overlap(&tdm_op_embedding, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_embedding_args* args = args_;
  (void)sms;
  double table_bytes = (double)tdm_dtype_bytes(args->table.dtype);
  double read_values = (double)args->ids.shape[0] * (double)args->table.shape[1];
  out_plan->bytes = tdm_traffic(&args->ids) + read_values * table_bytes + tdm_traffic(&args->out);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_embedding_params params;
  tdm_kernel_launch launch;
  tdm_embedding_sm90_params(args, &params);
  tdm_embedding_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_embedding = {
    .name = "embedding",
    .args_bytes = sizeof(tdm_embedding_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_embedding_ref,
    .encode = encode,
};
