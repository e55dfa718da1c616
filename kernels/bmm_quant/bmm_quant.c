#include "kernels/bmm_quant/bmm_quant.h"

#include "kernels/bmm_quant/bmm_quant_sm90.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"

#define OP "bmm_quant"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_bmm_quant_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_bmm_quant_args, a, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_bmm_quant_args, w),
    TDM_OPERAND(tdm_bmm_quant_args, out_q, TDM_WRITE),
    TDM_OPERAND(tdm_bmm_quant_args, out_scale, TDM_WRITE),
};

/* bf16 [B, *, *] with contiguous rows. */
static tdm_status check_factor(const char* name, const tdm_view* view) {
  const int64_t any[] = {TDM_ANY, TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_strided(OP, name, view, TDM_DTYPES(TDM_BF16), 3, any));
  if (view->shape[2] != 1 && view->stride[2] != 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": %s has last stride %lld, not 1", name, (long long)view->stride[2]);
  return TDM_OK;
}

static tdm_status check(void* void_args) {
  tdm_bmm_quant_args* args = void_args;
  const tdm_view *a = &args->a, *w = &args->w;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(check_factor("a", a));
  TDM_TRY(check_factor("w", w));
  if (a->shape[0] != w->shape[0])
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld batches, w %lld", (long long)a->shape[0],
                    (long long)w->shape[0]);
  if (a->shape[2] != w->shape[2])
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": a has %lld columns, w %lld", (long long)a->shape[2],
                    (long long)w->shape[2]);
  if (w->shape[1] % TDM_QUANT_BLOCK != 0)
    return TDM_FAIL(TDM_UNSUPPORTED, OP ": w has %lld rows, not a multiple of 128: scales would span batches",
                    (long long)w->shape[1]);
  TDM_TRY(tdm_check_tensor(OP, "out_q", &args->out_q, TDM_DTYPES(TDM_E4M3), 2,
                           (int64_t[]){a->shape[1], w->shape[0] * w->shape[1]}));
  TDM_TRY(tdm_check_act_scale(OP, "out_scale", &args->out_scale, "out_q", &args->out_q));
  TDM_TRY(tdm_check_eps(OP, "quant_eps", &args->quant_eps, 1e-4f));
  return tdm_check_overlap(&tdm_op_bmm_quant, args, NULL, NULL);
}

static void plan_sm90(const tdm_bmm_quant_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_bmm_quant_sm90_make_plan(args->w.shape[0], args->a.shape[1], args->w.shape[1], sms, out_plan);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_bmm_quant_args* args = void_args;
  const double values = (double)args->out_q.shape[0] * (double)args->out_q.shape[1];
  out_plan->flops = 2.0 * values * (double)args->a.shape[2] + 2.0 * values; /* a comparison and a division */
  out_plan->bytes = tdm_traffic_all(&tdm_op_bmm_quant, args);
  if (sms == 0) {
    out_plan->scratch_bytes = tdm_bmm_quant_ref_scratch_bytes(args);
    return;
  }
  tdm_gemm_bf16_sm90_plan kernel;
  plan_sm90(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_bmm_quant_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(tdm_bmm_quant_sm90_params(args, &kernel, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_bmm_quant = {
    .name = OP,
    .args_bytes = sizeof(tdm_bmm_quant_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_bmm_quant_ref,
    .encode = encode,
};
