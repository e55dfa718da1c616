#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8.h"

#include "kernels/common/check.h"
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_sm90.h"

#define OP "grouped_gemm_fp8"

static const tdm_operand operands[] = {
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, row_start, TDM_READ),
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, row_count, TDM_READ),
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, a, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_grouped_gemm_fp8_args, a_scale, TDM_READ),
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, w, TDM_READ),
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, w_scale, TDM_READ),
    TDM_OPERAND(tdm_grouped_gemm_fp8_args, out, TDM_WRITE),
};

static tdm_status check(void* args_) {
  tdm_grouped_gemm_fp8_args* args = args_;
  TDM_TRY(tdm_check_tensor(OP, "a", &args->a, TDM_DTYPES(TDM_E4M3) | TDM_DTYPES(TDM_F32), 2,
                           (int64_t[]){TDM_ANY, TDM_ANY}));
  int64_t rows = args->a.shape[0], k = args->a.shape[1];
  if (k % 128 != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld columns, not a multiple of 128", (long long)k);
  TDM_TRY(tdm_check_tensor(OP, "w", &args->w, TDM_DTYPES(TDM_E4M3), 3, (int64_t[]){TDM_ANY, TDM_ANY, k}));
  int64_t groups = args->w.shape[0];
  TDM_TRY(tdm_check_tensor(OP, "row_start", &args->row_start, TDM_DTYPES(TDM_I32), 1, &groups));
  TDM_TRY(tdm_check_tensor(OP, "row_count", &args->row_count, TDM_DTYPES(TDM_I32), 1, &groups));
  TDM_TRY(tdm_check_act_scale(OP, "a_scale", &args->a_scale, "a", &args->a));
  TDM_TRY(tdm_check_weight_scale(OP, "w_scale", &args->w_scale, "w", &args->w));
  TDM_TRY(tdm_check_tensor(OP, "out", &args->out, TDM_BF16_OR_F32, 2, (int64_t[]){rows, args->w.shape[1]}));
  if (args->max_rows == 0) args->max_rows = rows;
  if (args->max_rows < 0 || args->max_rows > rows)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": max_rows is %lld, neither 0 (all) nor 1 to the %lld rows of a",
                    (long long)args->max_rows, (long long)rows);
  return tdm_check_overlap(&tdm_op_grouped_gemm_fp8, args, NULL, NULL);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_grouped_gemm_fp8_args* args = args_;
  int64_t rows = args->a.shape[0], most = args->max_rows * args->w.shape[0];
  out_plan->flops = 2.0 * (double)(rows < most ? rows : most) * (double)args->a.shape[1] * (double)args->w.shape[1];
  out_plan->bytes = tdm_traffic_all(&tdm_op_grouped_gemm_fp8, args);
  if (sms == 0) return;
  tdm_grouped_gemm_fp8_sm90_plan kernel;
  tdm_grouped_gemm_fp8_sm90_make_plan(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, 1, 0, 0);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_grouped_gemm_fp8_sm90_plan kernel;
  tdm_grouped_gemm_fp8_params params;
  tdm_grouped_gemm_fp8_sm90_make_plan(args, env->sms, &kernel);
  TDM_TRY(tdm_grouped_gemm_fp8_sm90_params(args, &kernel, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_grouped_gemm_fp8 = {
    .name = OP,
    .args_bytes = sizeof(tdm_grouped_gemm_fp8_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_grouped_gemm_fp8_ref,
    .encode = encode,
};
