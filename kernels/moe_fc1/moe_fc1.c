#include "kernels/moe_fc1/moe_fc1.h"

#include <math.h>

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_fc1/moe_fc1_bf16_sm90.h"
#include "kernels/moe_fc1/moe_fc1_few_sm90.h"
#include "kernels/moe_fc1/moe_fc1_grouped_sm90.h"
#include "kernels/moe_fc1/moe_fc1_sm90.h"
#include "kernels/ops.h"

#define OP "moe_fc1"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_moe_fc1_args, n_tokens, TDM_READ),
    TDM_AHEAD_OPERAND(tdm_moe_fc1_args, x),
    TDM_OPTIONAL_AHEAD_OPERAND(tdm_moe_fc1_args, x_scale),
    TDM_WEIGHT_OPERAND(tdm_moe_fc1_args, w13),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc1_args, w13_scale, TDM_READ),
    TDM_OPERAND(tdm_moe_fc1_args, out, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc1_args, out_scale, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc1_args, hits, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc1_args, chosen, TDM_READ),
};

static tdm_status check(void* void_args) {
  const unsigned any = TDM_BF16_OR_F32 | TDM_DTYPES(TDM_E4M3);
  tdm_moe_fc1_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(OP, "x", &args->x, any, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  int64_t rows = args->x.shape[0], hidden = args->x.shape[1];
  if (hidden % TDM_QUANT_BLOCK != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": x has %lld columns, not a multiple of 128", (long long)hidden);
  }
  TDM_TRY(tdm_check_tensor(OP, "w13", &args->w13, any, 3, (int64_t[]){TDM_ANY, TDM_ANY, hidden}));
  int64_t experts = args->w13.shape[0], gate_up = args->w13.shape[1];
  if (gate_up % (2 * TDM_QUANT_BLOCK) != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": w13 has %lld rows an expert, not a multiple of 256",
                    (long long)gate_up);
  }
  TDM_TRY(tdm_check_product_dtypes(OP, "x", args->x.dtype, "w13", args->w13.dtype));
  TDM_TRY(tdm_check_act_scale(OP, "x_scale", &args->x_scale, "x", &args->x));
  TDM_TRY(tdm_check_weight_scale(OP, "w13_scale", &args->w13_scale, "w13", &args->w13));
  TDM_TRY(tdm_check_tensor(OP, "out", &args->out, TDM_DTYPES(args->x.dtype), 2,
                           (int64_t[]){rows, experts * (gate_up / 2)}));
  TDM_TRY(tdm_check_act_scale(OP, "out_scale", &args->out_scale, "out", &args->out));
  if (!isfinite(args->swiglu_limit) || args->swiglu_limit < 0.0f) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": swiglu_limit is %g, neither 0 (none) nor finite and above 0",
                    (double)args->swiglu_limit);
  }
  TDM_TRY(tdm_check_selection(OP, &args->hits, &args->chosen, rows, experts));
  TDM_TRY(tdm_check_eps(OP, "quant_eps", &args->quant_eps, 1e-4f));
  return tdm_check_overlap(&tdm_op_moe_fc1, args, NULL, NULL);
}

static bool chosen_by_few(const tdm_moe_fc1_args* args) {
  return tdm_view_present(&args->chosen) &&
         tdm_moe_fc1_few_sm90_suits(args->x.shape[0], args->w13.shape[0], args->w13.shape[1] / 2, args->x.shape[1]);
}

/* Whether a kernel gathers the rows that chose an expert. */
static bool gathers(const tdm_moe_fc1_args* args) {
  return tdm_view_present(&args->chosen) && !chosen_by_few(args);
}

static void plan_sm90(const void* args_, int32_t sms, tdm_moe_fc1_sm90_plan* out_plan) {
  const tdm_moe_fc1_args* args = args_;
  const int64_t rows = args->x.shape[0], hidden = args->x.shape[1], experts = args->w13.shape[0];
  const int64_t intermediate = args->w13.shape[1] / 2;
  if (chosen_by_few(args))
    tdm_moe_fc1_few_sm90_make_plan(rows, experts, intermediate, hidden, sms, out_plan);
  else if (gathers(args))
    tdm_moe_fc1_grouped_sm90_make_plan(rows, experts, intermediate, hidden, sms, out_plan);
  else
    tdm_moe_fc1_sm90_make_plan(rows, args->out.shape[1], hidden, sms, tdm_view_present(&args->hits), out_plan);
}

static void plan_bf16(const void* args_, int32_t sms, tdm_moe_fc1_bf16_sm90_plan* out_plan) {
  const tdm_moe_fc1_args* args = args_;
  tdm_moe_fc1_bf16_sm90_make_plan(args->x.shape[0], args->out.shape[1], args->x.shape[1], sms, out_plan);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_fc1_args* args = void_args;
  double columns = (double)args->w13.shape[0] * (double)args->w13.shape[1];
  out_plan->flops = 2 * (double)args->x.shape[0] * columns * (double)args->x.shape[1];
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_fc1, args);
  if (sms == 0) {
    out_plan->scratch_bytes = tdm_moe_fc1_ref_scratch_bytes(args);
    return;
  }
  if (args->x.dtype == TDM_BF16) {
    tdm_moe_fc1_bf16_sm90_plan kernel;
    plan_bf16(void_args, sms, &kernel);
    tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
    return;
  }
  tdm_moe_fc1_sm90_plan kernel;
  plan_sm90(void_args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode_bf16(const void* args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  tdm_moe_fc1_bf16_sm90_plan kernel;
  tdm_moe_fc1_bf16_params params;
  TDM_TRY(tdm_refuse_chosen(OP, &((const tdm_moe_fc1_args*)args)->chosen));
  plan_bf16(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_fc1_bf16_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                       &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

static tdm_status encode_grouped(const void* args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  tdm_moe_fc1_sm90_plan kernel;
  tdm_moe_fc1_grouped_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_fc1_grouped_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                          &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

static tdm_status encode(const void* void_args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const tdm_moe_fc1_args* args = void_args;
  (void)plan_;
  if (args->x.dtype == TDM_BF16) return encode_bf16(args, env, out_step);
  if (gathers(args)) return encode_grouped(args, env, out_step);
  tdm_moe_fc1_sm90_plan kernel;
  tdm_moe_fc1_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(
      tdm_moe_fc1_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_moe_fc1 = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_fc1_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_moe_fc1_ref,
    .encode = encode,
};
