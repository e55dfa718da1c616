#include "kernels/gemm_fp8/gemm_fp8.h"

#include "kernels/common/check.h"
#include "kernels/gemm_fp8/gemm_fp8_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_gemm_fp8_args, n_tokens, TDM_READ), TDM_OPERAND(tdm_gemm_fp8_args, a, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_gemm_fp8_args, a_scale, TDM_READ),  TDM_WEIGHT_OPERAND(tdm_gemm_fp8_args, w),
    TDM_OPERAND(tdm_gemm_fp8_args, w_scale, TDM_READ),           TDM_OPERAND(tdm_gemm_fp8_args, out, TDM_WRITE),
};

tdm_status tdm_gemm_fp8_check(const char* op, const tdm_gemm_fp8_args* args) {
  const int64_t any[] = {TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "a", &args->a, TDM_DTYPES(TDM_E4M3) | TDM_DTYPES(TDM_F32), 2, any));
  TDM_TRY(tdm_check_tensor(op, "w", &args->w, TDM_DTYPES(TDM_E4M3), 2, any));
  if (args->a.shape[1] != args->w.shape[1]) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: a has %lld columns, w %lld", op, (long long)args->a.shape[1],
                    (long long)args->w.shape[1]);
  }
  if (args->a.shape[1] % 128 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: a has %lld columns, not a multiple of 128", op,
                    (long long)args->a.shape[1]);
  }
  TDM_TRY(tdm_check_act_scale(op, "a_scale", &args->a_scale, "a", &args->a));
  TDM_TRY(tdm_check_weight_scale(op, "w_scale", &args->w_scale, "w", &args->w));
  return tdm_check_tensor(op, "out", &args->out, TDM_BF16_OR_F32, 2, (int64_t[]){args->a.shape[0], args->w.shape[0]});
}

static tdm_status check(void* args) {
  TDM_TRY(tdm_gemm_fp8_check("gemm_fp8", args));
  return tdm_check_overlap(&tdm_op_gemm_fp8, args, NULL, NULL);
}

static void plan_sm90(const void* args_, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan) {
  const tdm_gemm_fp8_args* args = args_;
  tdm_gemm_fp8_sm90_make_plan(args->a.shape[0], args->w.shape[0], args->w.shape[1], sms, out_plan);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_gemm_fp8_args* args = args_;
  int64_t m = args->a.shape[0];
  int64_t k = args->a.shape[1];
  out_plan->flops = 2.0 * (double)m * (double)k * (double)args->w.shape[0];
  out_plan->bytes = tdm_traffic_all(&tdm_op_gemm_fp8, args);
  if (sms == 0) return;
  tdm_gemm_fp8_sm90_plan kernel;
  plan_sm90(args_, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_fp8_sm90_plan kernel;
  tdm_gemm_fp8_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(
      tdm_gemm_fp8_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_gemm_fp8 = {
    .name = "gemm_fp8",
    .args_bytes = sizeof(tdm_gemm_fp8_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_gemm_fp8_ref,
    .encode = encode,
};
