#include "kernels/bmm_fp8/bmm_fp8.h"

#include "kernels/bmm_fp8/bmm_fp8_sm90.h"
#include "kernels/common/check.h"

#define OP "bmm_fp8"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_bmm_fp8_args, n_tokens, TDM_READ), TDM_OPERAND(tdm_bmm_fp8_args, a, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_bmm_fp8_args, a_scale, TDM_READ),  TDM_WEIGHT_OPERAND(tdm_bmm_fp8_args, w),
    TDM_OPERAND(tdm_bmm_fp8_args, w_scale, TDM_READ),           TDM_OPERAND(tdm_bmm_fp8_args, out, TDM_WRITE),
};

static tdm_status check(void* void_args) {
  tdm_bmm_fp8_args* args = void_args;
  const tdm_view *a = &args->a, *w = &args->w;
  const int64_t any[] = {TDM_ANY, TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(OP, "a", a, TDM_DTYPES(TDM_E4M3) | TDM_DTYPES(TDM_F32), 3, any));
  TDM_TRY(tdm_check_tensor(OP, "w", w, TDM_DTYPES(TDM_E4M3), 3, any));
  if (a->shape[0] != w->shape[0])
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld groups, w %lld", (long long)a->shape[0],
                    (long long)w->shape[0]);
  if (a->shape[2] != w->shape[2])
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld columns, w %lld", (long long)a->shape[2],
                    (long long)w->shape[2]);
  if (a->shape[2] % 128 != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld columns, not a multiple of 128", (long long)a->shape[2]);
  TDM_TRY(tdm_check_act_scale(OP, "a_scale", &args->a_scale, "a", a));
  TDM_TRY(tdm_check_weight_scale(OP, "w_scale", &args->w_scale, "w", w));
  TDM_TRY(
      tdm_check_tensor(OP, "out", &args->out, TDM_BF16_OR_F32, 2, (int64_t[]){a->shape[1], w->shape[0] * w->shape[1]}));
  return tdm_check_overlap(&tdm_op_bmm_fp8, args, NULL, NULL);
}

static void plan_sm90(const tdm_bmm_fp8_args* args, int32_t sms, tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_bmm_fp8_sm90_make_plan(args->w.shape[0], args->a.shape[1], args->w.shape[1], args->w.shape[2], sms, out_plan);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_bmm_fp8_args* args = void_args;
  const int64_t* a = args->a.shape;
  out_plan->flops = 2.0 * (double)a[0] * (double)a[1] * (double)a[2] * (double)args->w.shape[1];
  out_plan->bytes = tdm_traffic_all(&tdm_op_bmm_fp8, args);
  if (sms == 0) return;
  tdm_gemm_fp8_sm90_plan kernel;
  plan_sm90(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_fp8_sm90_plan kernel;
  tdm_gemm_fp8_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(
      tdm_bmm_fp8_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_bmm_fp8 = {
    .name = OP,
    .args_bytes = sizeof(tdm_bmm_fp8_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_bmm_fp8_ref,
    .encode = encode,
};
