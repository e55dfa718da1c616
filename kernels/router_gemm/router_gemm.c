#include "kernels/router_gemm/router_gemm.h"

#include "kernels/common/check.h"
#include "kernels/router_gemm/router_gemm_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_router_gemm_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_router_gemm_args, x, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_router_gemm_args, w),
    TDM_OPERAND(tdm_router_gemm_args, logits, TDM_WRITE),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_router_gemm_args, prefetch),
};

tdm_status tdm_router_gemm_check(const char* op, const tdm_router_gemm_args* args) {
  const int64_t any[] = {TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "x", &args->x, TDM_BF16_OR_F32, 2, any));
  TDM_TRY(tdm_check_tensor(op, "w", &args->w, TDM_BF16_OR_F32, 2, any));
  if (args->x.shape[1] != args->w.shape[1]) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: x has %lld columns, w %lld", op, (long long)args->x.shape[1],
                    (long long)args->w.shape[1]);
  }
  return tdm_check_tensor(op, "logits", &args->logits, TDM_DTYPES(TDM_F32), 2,
                          (int64_t[]){args->x.shape[0], args->w.shape[0]});
}

static tdm_status check(void* args) {
  TDM_TRY(tdm_router_gemm_check("router_gemm", args));
  TDM_TRY(tdm_check_prefetch("router_gemm", "prefetch", &((const tdm_router_gemm_args*)args)->prefetch));
  return tdm_check_overlap(&tdm_op_router_gemm, args, NULL, NULL);
}

static void plan_sm90(const void* args_, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  const tdm_router_gemm_args* args = args_;
  tdm_router_gemm_sm90_make_plan(args->x.shape[0], args->w.shape[0], args->w.shape[1], sms, out_plan);
  if (tdm_view_present(&args->prefetch)) out_plan->launch.grid = (uint32_t)sms; /* all of them ask */
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_router_gemm_args* args = args_;
  int64_t m = args->x.shape[0];
  int64_t k = args->x.shape[1];
  out_plan->flops = 2.0 * (double)m * (double)k * (double)args->w.shape[0];
  out_plan->bytes = tdm_traffic_all(&tdm_op_router_gemm, args);
  if (tdm_view_present(&args->prefetch)) out_plan->bytes -= tdm_traffic(&args->prefetch);
  if (sms == 0) return;
  tdm_gemm_bf16_sm90_plan kernel;
  plan_sm90(args_, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_router_gemm_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(tdm_router_gemm_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                      &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_router_gemm = {
    .name = "router_gemm",
    .args_bytes = sizeof(tdm_router_gemm_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_router_gemm_ref,
    .encode = encode,
};
