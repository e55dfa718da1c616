#include "kernels/moe_experts/moe_experts.h"

#include <math.h>

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_experts/moe_experts_many_sm90.h"
#include "kernels/moe_experts/moe_experts_sm90.h"
#include "kernels/moe_fc1/moe_fc1_sm90.h"
#include "kernels/moe_fc2/moe_fc2.h"
#include "kernels/ops.h"

#define OP "moe_experts"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_moe_experts_args, n_tokens, TDM_READ),
    TDM_AHEAD_OPERAND(tdm_moe_experts_args, x),
    TDM_AHEAD_OPERAND(tdm_moe_experts_args, x_scale),
    TDM_WEIGHT_OPERAND(tdm_moe_experts_args, w13),
    TDM_OPERAND(tdm_moe_experts_args, w13_scale, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_moe_experts_args, w2),
    TDM_OPERAND(tdm_moe_experts_args, w2_scale, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_experts_args, alpha, TDM_READ),
    TDM_OPERAND(tdm_moe_experts_args, chosen, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_experts_args, addend, TDM_READ),
    TDM_OPERAND(tdm_moe_experts_args, out, TDM_WRITE),
};

bool tdm_moe_experts_supported(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden) {
  if (tdm_moe_experts_many_suits(rows, n_experts, intermediate, hidden)) return true;
  return rows <= TDM_MOE_EXPERTS_TOKENS && n_experts <= TDM_CHOICES_EXPERTS &&
         hidden / 128 <= TDM_MOE_EXPERTS_MOST_BLOCKS && intermediate <= hidden &&
         tdm_moe_fc1_sm90_segments(n_experts * intermediate, hidden) == 1 &&
         tdm_moe_fc2_splits(n_experts, hidden, intermediate, true) <= TDM_MOE_EXPERTS_SEGMENTS &&
         tdm_moe_experts_sm90_stages(n_experts, hidden) >= TDM_MOE_EXPERTS_LEAST_STAGES;
}

tdm_moe_fc1_args tdm_moe_experts_fc1(const tdm_moe_experts_args* args, const tdm_view* values, const tdm_view* scales) {
  return (tdm_moe_fc1_args){.size = sizeof(tdm_moe_fc1_args),
                            .n_tokens = args->n_tokens,
                            .x = args->x,
                            .x_scale = args->x_scale,
                            .w13 = args->w13,
                            .w13_scale = args->w13_scale,
                            .chosen = args->chosen,
                            .out = *values,
                            .out_scale = *scales,
                            .swiglu_limit = args->swiglu_limit,
                            .quant_eps = args->quant_eps,
                            .pow2_scale = args->pow2_scale};
}

tdm_moe_fc2_args tdm_moe_experts_fc2(const tdm_moe_experts_args* args, const tdm_view* values, const tdm_view* scales) {
  return (tdm_moe_fc2_args){.size = sizeof(tdm_moe_fc2_args),
                            .n_tokens = args->n_tokens,
                            .x = *values,
                            .x_scale = *scales,
                            .w2 = args->w2,
                            .w2_scale = args->w2_scale,
                            .alpha = args->alpha,
                            .chosen = args->chosen,
                            .addend = args->addend,
                            .out = args->out,
                            .n_experts = (int32_t)args->w13.shape[0]};
}

static tdm_status check_weights(tdm_moe_experts_args* args) {
  const unsigned fp8 = TDM_DTYPES(TDM_E4M3);
  const int64_t hidden = args->x.shape[1];
  TDM_TRY(tdm_check_tensor(OP, "w13", &args->w13, fp8, 3, (int64_t[]){TDM_ANY, TDM_ANY, hidden}));
  const int64_t experts = args->w13.shape[0], gate_up = args->w13.shape[1];
  if (gate_up % (2 * TDM_QUANT_BLOCK) != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": w13 has %lld rows an expert, not a multiple of 256",
                    (long long)gate_up);
  }
  TDM_TRY(tdm_check_weight_scale(OP, "w13_scale", &args->w13_scale, "w13", &args->w13));
  TDM_TRY(tdm_check_tensor(OP, "w2", &args->w2, fp8, 2, (int64_t[]){hidden, experts * (gate_up / 2)}));
  return tdm_check_weight_scale(OP, "w2_scale", &args->w2_scale, "w2", &args->w2);
}

static tdm_status check(void* void_args) {
  tdm_moe_experts_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(OP, "x", &args->x, TDM_DTYPES(TDM_E4M3), 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  const int64_t rows = args->x.shape[0], hidden = args->x.shape[1];
  if (hidden % TDM_QUANT_BLOCK != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": x has %lld columns, not a multiple of 128", (long long)hidden);
  }
  TDM_TRY(tdm_check_act_scale(OP, "x_scale", &args->x_scale, "x", &args->x));
  TDM_TRY(check_weights(args));
  const int64_t experts = args->w13.shape[0], intermediate = args->w13.shape[1] / 2;
  if (tdm_view_present(&args->alpha))
    TDM_TRY(tdm_check_tensor(OP, "alpha", &args->alpha, TDM_DTYPES(TDM_F32), 2, (int64_t[]){rows, experts}));
  if (tdm_view_present(&args->addend))
    TDM_TRY(tdm_check_tensor(OP, "addend", &args->addend, TDM_BF16_OR_F32, 2, (int64_t[]){rows, hidden}));
  TDM_TRY(tdm_check_selection(OP, &(tdm_view){0}, &args->chosen, rows, experts));
  TDM_TRY(tdm_check_tensor(OP, "out", &args->out, TDM_BF16_OR_F32, 2, (int64_t[]){rows, hidden}));
  if (!isfinite(args->swiglu_limit) || args->swiglu_limit < 0.0f) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": swiglu_limit is %g, neither 0 (none) nor finite and above 0",
                    (double)args->swiglu_limit);
  }
  TDM_TRY(tdm_check_eps(OP, "quant_eps", &args->quant_eps, 1e-4f));
  if (!tdm_moe_experts_supported(rows, experts, intermediate, hidden)) {
    return TDM_FAIL(TDM_UNSUPPORTED,
                    OP ": %lld rows, %lld experts of %lld x %lld: not up to %d rows with FC1's sum whole and up to %d "
                       "experts; up to %d rows not %d columns, as wide experts and at most %d splits of FC2's sum",
                    (long long)rows, (long long)experts, (long long)intermediate, (long long)hidden,
                    TDM_MOE_EXPERTS_MANY_ROWS, TDM_CHOICES_EXPERTS, TDM_MOE_EXPERTS_TOKENS,
                    128 * TDM_MOE_EXPERTS_MOST_BLOCKS, TDM_MOE_EXPERTS_SEGMENTS);
  }
  return tdm_check_overlap(&tdm_op_moe_experts, args, NULL, NULL);
}

static void plan_sm90(const tdm_moe_experts_args* args, int32_t sms, tdm_moe_experts_sm90_plan* out_plan) {
  tdm_moe_experts_sm90_make_plan(args->x.shape[0], args->w13.shape[0], args->w13.shape[1] / 2, args->x.shape[1], sms,
                                 out_plan);
}

static bool is_many(const tdm_moe_experts_args* args) {
  return tdm_moe_experts_many_suits(args->x.shape[0], args->w13.shape[0], args->w13.shape[1] / 2, args->x.shape[1]);
}

static void plan_many(const tdm_moe_experts_args* args, int32_t sms, tdm_moe_experts_many_plan* out_plan) {
  tdm_moe_experts_many_make_plan(args->x.shape[0], args->w13.shape[0], args->w13.shape[1] / 2, args->x.shape[1], sms,
                                 out_plan);
}

static tdm_status encode_many(const tdm_moe_experts_args* args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  tdm_moe_experts_many_plan many;
  tdm_moe_experts_many_params params;
  plan_many(args, env->sms, &many);
  TDM_TRY(tdm_moe_experts_many_params_of(args, &many, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                         &params));
  return tdm_encoded_step_add(out_step, &many.launch, &params, sizeof params);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_experts_args* args = void_args;
  const double weights = (double)(args->w13.shape[0] * args->w13.shape[1]) * (double)args->w13.shape[2] +
                         (double)args->w2.shape[0] * (double)args->w2.shape[1];
  out_plan->splits = tdm_moe_fc2_splits(args->w13.shape[0], args->w2.shape[0], args->w13.shape[1] / 2, true);
  out_plan->flops = 2 * (double)args->x.shape[0] * weights; /* as the two ops count them */
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_experts, args);
  if (sms == 0) {
    out_plan->scratch_bytes = tdm_moe_experts_ref_scratch_bytes(args);
    return;
  }
  if (is_many(args)) {
    tdm_moe_experts_many_plan many;
    plan_many(args, sms, &many);
    tdm_plan_kernel(out_plan, &many.launch, many.fc2.segments, many.scratch_bytes, many.state_bytes);
    return;
  }
  tdm_moe_experts_sm90_plan kernel;
  plan_sm90(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.sum_bytes, sizeof(tdm_moe_experts_state));
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  if (is_many(args)) return encode_many(args, env, out_step);
  tdm_moe_experts_sm90_plan kernel;
  tdm_moe_experts_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_experts_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                      &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_moe_experts = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_experts_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_moe_experts_ref,
    .encode = encode,
};
