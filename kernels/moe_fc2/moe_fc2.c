#include "kernels/moe_fc2/moe_fc2.h"

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/device/launch.h"
#include "kernels/moe_fc2/moe_fc2_bf16_sm90.h"
#include "kernels/moe_fc2/moe_fc2_grouped_sm90.h"
#include "kernels/moe_fc2/moe_fc2_sm90.h"
#include "kernels/ops.h"

#define OP "moe_fc2"

enum { LONG_SUM_BLOCKS = 256 };

static const tdm_operand operands[] = {
    /* clang-format off */
    TDM_OPTIONAL_AHEAD_OPERAND(tdm_moe_fc2_args, n_tokens),
    TDM_OPERAND(tdm_moe_fc2_args, x, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc2_args, x_scale, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_moe_fc2_args, w2),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc2_args, w2_scale, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc2_args, alpha, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc2_args, addend, TDM_READ),
    TDM_OPERAND(tdm_moe_fc2_args, out, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_fc2_args, hits, TDM_READ),
    TDM_OPTIONAL_AHEAD_OPERAND(tdm_moe_fc2_args, chosen),
    /* clang-format on */
};

static tdm_status check(void* void_args) {
  const unsigned any = TDM_BF16_OR_F32 | TDM_DTYPES(TDM_E4M3);
  tdm_moe_fc2_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(OP, "x", &args->x, any, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  int64_t rows = args->x.shape[0], depth = args->x.shape[1];
  if (args->n_experts < 1 || depth % args->n_experts != 0 || depth / args->n_experts % TDM_QUANT_BLOCK != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": x has %lld columns for n_experts %d, not a multiple of 128 each",
                    (long long)depth, args->n_experts);
  }
  TDM_TRY(tdm_check_tensor(OP, "w2", &args->w2, any, 2, (int64_t[]){TDM_ANY, depth}));
  int64_t hidden = args->w2.shape[0];
  TDM_TRY(tdm_check_product_dtypes(OP, "x", args->x.dtype, "w2", args->w2.dtype));
  TDM_TRY(tdm_check_act_scale(OP, "x_scale", &args->x_scale, "x", &args->x));
  TDM_TRY(tdm_check_weight_scale(OP, "w2_scale", &args->w2_scale, "w2", &args->w2));
  if (tdm_view_present(&args->alpha)) {
    TDM_TRY(tdm_check_tensor(OP, "alpha", &args->alpha, TDM_DTYPES(TDM_F32), 2, (int64_t[]){rows, args->n_experts}));
  }
  if (tdm_view_present(&args->addend)) {
    TDM_TRY(tdm_check_tensor(OP, "addend", &args->addend, TDM_BF16_OR_F32, 2, (int64_t[]){rows, hidden}));
  }
  TDM_TRY(tdm_check_selection(OP, &args->hits, &args->chosen, rows, args->n_experts));
  TDM_TRY(tdm_check_tensor(OP, "out", &args->out, TDM_BF16_OR_F32, 2, (int64_t[]){rows, hidden}));
  return tdm_check_overlap(&tdm_op_moe_fc2, args, NULL, NULL);
}

static int32_t segments_of(int64_t n_experts, int64_t hidden, int64_t intermediate) {
  int64_t blocks = intermediate / TDM_QUANT_BLOCK;
  return tdm_gemm_segments((hidden + 63) / 64, 64, n_experts * blocks, blocks);
}

bool tdm_moe_fc2_halves(int64_t n_experts, int64_t hidden, int64_t intermediate) {
  return n_experts > 1 && n_experts * (intermediate / TDM_QUANT_BLOCK) >= LONG_SUM_BLOCKS &&
         2 * ((hidden + 127) / 128) <= TDM_REFERENCE_SMS && segments_of(n_experts, hidden, intermediate) == 1;
}

int32_t tdm_moe_fc2_splits(int64_t n_experts, int64_t hidden, int64_t intermediate, bool fp8) {
  if (fp8 && tdm_moe_fc2_halves(n_experts, hidden, intermediate)) return 2;
  return segments_of(n_experts, hidden, intermediate);
}

int64_t tdm_moe_fc2_split_begin(int64_t n_experts, int32_t splits, int32_t s) {
  return n_experts * s / splits;
}

static void plan_sm90(const void* args_, int32_t sms, tdm_moe_fc2_sm90_plan* out_plan) {
  const tdm_moe_fc2_args* args = args_;
  tdm_moe_fc2_sm90_make_plan(args->x.shape[0], args->w2.shape[0], args->n_experts, args->x.shape[1] / args->n_experts,
                             tdm_view_present(&args->alpha), sms, out_plan);
}

static void plan_grouped(const void* args_, int32_t sms, tdm_moe_fc2_grouped_sm90_plan* out_plan) {
  const tdm_moe_fc2_args* args = args_;
  tdm_moe_fc2_grouped_sm90_make_plan(args->x.shape[0], args->w2.shape[0], args->n_experts,
                                     args->x.shape[1] / args->n_experts, sms, out_plan);
}

static void plan_bf16(const void* args_, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  const tdm_moe_fc2_args* args = args_;
  tdm_moe_fc2_bf16_sm90_make_plan(args->x.shape[0], args->w2.shape[0], args->n_experts,
                                  args->x.shape[1] / args->n_experts, sms, out_plan);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_fc2_args* args = void_args;
  int64_t hidden = args->w2.shape[0], depth = args->x.shape[1];
  out_plan->splits = tdm_moe_fc2_splits(args->n_experts, hidden, depth / args->n_experts, args->x.dtype == TDM_E4M3);
  out_plan->flops = 2 * (double)args->x.shape[0] * (double)hidden * (double)depth;
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_fc2, args);
  if (sms == 0) {
    out_plan->scratch_bytes = tdm_moe_fc2_ref_scratch_bytes(args);
    return;
  }
  if (args->x.dtype == TDM_BF16) {
    tdm_gemm_bf16_sm90_plan kernel;
    plan_bf16(void_args, sms, &kernel);
    tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
    return;
  }
  if (tdm_view_present(&args->chosen)) {
    tdm_moe_fc2_grouped_sm90_plan kernel;
    plan_grouped(void_args, sms, &kernel);
    tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
    return;
  }
  tdm_moe_fc2_sm90_plan kernels;
  plan_sm90(void_args, sms, &kernels);
  tdm_plan_kernel(out_plan, &kernels.gemm.launch, kernels.gemm.segments, kernels.scratch_bytes,
                  kernels.gemm.counter_bytes);
}

static tdm_status encode_bf16(const void* args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_moe_fc2_bf16_params params;
  TDM_TRY(tdm_refuse_chosen(OP, &((const tdm_moe_fc2_args*)args)->chosen));
  plan_bf16(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_fc2_bf16_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                       &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

static tdm_status encode_grouped(const void* args, const tdm_encode_env* env, tdm_encoded_step* out_step) {
  tdm_moe_fc2_grouped_sm90_plan kernel;
  tdm_moe_fc2_grouped_params params;
  plan_grouped(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_fc2_grouped_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                          &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

static tdm_status encode(const void* void_args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const tdm_moe_fc2_args* args = void_args;
  (void)plan_;
  if (args->x.dtype == TDM_BF16) return encode_bf16(args, env, out_step);
  if (tdm_view_present(&args->chosen)) return encode_grouped(args, env, out_step);
  tdm_moe_fc2_sm90_plan kernels;
  tdm_moe_fc2_fold_params fold;
  tdm_gemm_fp8_params params;
  plan_sm90(args, env->sms, &kernels);
  TDM_TRY(tdm_moe_fc2_sm90_params(args, &kernels, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx, &fold,
                                  &params));
  if (kernels.folds) TDM_TRY(tdm_encoded_step_add(out_step, &kernels.fold, &fold, sizeof fold));
  return tdm_encoded_step_add(out_step, &kernels.gemm.launch, &params, sizeof params);
}

const tdm_op tdm_op_moe_fc2 = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_fc2_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_moe_fc2_ref,
    .encode = encode,
};
