#include "kernels/moe_norm_gate/moe_norm_gate.h"

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_norm_gate/moe_norm_gate_sm90.h"
#include "kernels/moe_route/moe_route.h"
#include "kernels/ops.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/router_gemm/router_gemm.h"

#define OP "moe_norm_gate"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_moe_norm_gate_args, x, TDM_READ),
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, delta, TDM_READ),
    TDM_OPTIONAL_SETTLED_OPERAND(tdm_moe_norm_gate_args, residual_out),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_norm_gate_args, weight),
    TDM_OPERAND(tdm_moe_norm_gate_args, out, TDM_WRITE),
    TDM_OPTIONAL_SETTLED_OPERAND(tdm_moe_norm_gate_args, out_q),
    TDM_OPTIONAL_SETTLED_OPERAND(tdm_moe_norm_gate_args, out_scale),
    TDM_WEIGHT_OPERAND(tdm_moe_norm_gate_args, w),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_norm_gate_args, bias),
    TDM_OPERAND(tdm_moe_norm_gate_args, logits, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, ids, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, weights, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, alpha, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_norm_gate_args, chosen, TDM_WRITE),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_norm_gate_args, prefetch[0]),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_norm_gate_args, prefetch[1]),
};

bool tdm_moe_norm_gate_supported(int64_t rows, int64_t hidden, int64_t experts, int32_t n_group, int32_t topk_group) {
  return rows <= TDM_MOE_NORM_GATE_ROWS && hidden % TDM_QUANT_BLOCK == 0 && hidden <= TDM_MOE_NORM_GATE_COLUMNS &&
         tdm_moe_gate_supported(rows, experts, n_group, topk_group);
}

tdm_rmsnorm_args tdm_moe_norm_gate_norm(const tdm_moe_norm_gate_args* args) {
  return (tdm_rmsnorm_args){.size = sizeof(tdm_rmsnorm_args),
                            .n_tokens = args->n_tokens,
                            .x = args->x,
                            .delta = args->delta,
                            .residual_out = args->residual_out,
                            .weight = args->weight,
                            .out = args->out,
                            .out_q = args->out_q,
                            .out_scale = args->out_scale,
                            .eps = args->eps,
                            .quant_eps = args->quant_eps,
                            .pow2_scale = args->pow2_scale};
}

tdm_moe_gate_args tdm_moe_norm_gate_gate(const tdm_moe_norm_gate_args* args) {
  return (tdm_moe_gate_args){.size = sizeof(tdm_moe_gate_args),
                             .n_tokens = args->n_tokens,
                             .x = args->out,
                             .w = args->w,
                             .bias = args->bias,
                             .logits = args->logits,
                             .ids = args->ids,
                             .weights = args->weights,
                             .alpha = args->alpha,
                             .chosen = args->chosen,
                             .top_k = args->top_k,
                             .n_group = args->n_group,
                             .topk_group = args->topk_group,
                             .n_shared = args->n_shared,
                             .norm_topk_prob = args->norm_topk_prob,
                             .routed_scaling_factor = args->routed_scaling_factor};
}

static tdm_status check(void* void_args) {
  tdm_moe_norm_gate_args* args = void_args;
  tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(args);
  if (!tdm_view_present(&args->out)) return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": out is absent");
  TDM_TRY(tdm_rmsnorm_check(OP, &norm));
  args->eps = norm.eps;
  args->quant_eps = norm.quant_eps;
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(args);
  const tdm_router_gemm_args router = tdm_moe_gate_router(&gate);
  tdm_moe_route_args route = tdm_moe_gate_route(&gate);
  TDM_TRY(tdm_router_gemm_check(OP, &router));
  TDM_TRY(tdm_moe_route_check(OP, &route));
  TDM_TRY(tdm_check_prefetch(OP, "prefetch[0]", &args->prefetch[0]));
  TDM_TRY(tdm_check_prefetch(OP, "prefetch[1]", &args->prefetch[1]));
  args->n_group = route.n_group;
  args->topk_group = route.topk_group;
  args->routed_scaling_factor = route.routed_scaling_factor;
  const int64_t rows = args->x.shape[0], hidden = args->x.shape[1], experts = args->w.shape[0];
  if (!tdm_moe_norm_gate_supported(rows, hidden, experts, args->n_group, args->topk_group)) {
    return TDM_FAIL(TDM_UNSUPPORTED,
                    OP
                    ": %lld rows of %lld columns, %lld experts, %d of %d groups kept: not up to %d rows of a multiple "
                    "of 128 up to %d, and 256 or 384 experts in groups of 32 or in one",
                    (long long)rows, (long long)hidden, (long long)experts, args->topk_group, args->n_group,
                    TDM_MOE_NORM_GATE_ROWS, TDM_MOE_NORM_GATE_COLUMNS);
  }
  return tdm_check_overlap(&tdm_op_moe_norm_gate, args, NULL, NULL);
}

static void plan_sm90(const tdm_moe_norm_gate_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_moe_norm_gate_sm90_make_plan(args->w.shape[0], args->w.shape[1], sms, out_plan);
  if (tdm_view_present(&args->prefetch[0]) || tdm_view_present(&args->prefetch[1]))
    out_plan->launch.grid = (uint32_t)sms; /* those without a unit ask, if there are any */
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_norm_gate_args* args = void_args;
  const tdm_rmsnorm_args norm = tdm_moe_norm_gate_norm(args);
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(args);
  tdm_plan of_gate = {0};
  tdm_op_rmsnorm.plan(&norm, 0, out_plan);
  tdm_op_moe_gate.plan(&gate, 0, &of_gate);
  out_plan->flops += of_gate.flops; /* as the two ops count them */
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_norm_gate, args);
  for (int i = 0; i < 2; i++)
    if (tdm_view_present(&args->prefetch[i])) out_plan->bytes -= tdm_traffic(&args->prefetch[i]);
  if (sms == 0) return;
  tdm_gemm_bf16_sm90_plan kernel;
  plan_sm90(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_moe_norm_gate_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(tdm_moe_norm_gate_sm90_params(args, &kernel, env->scratch, env->tensor_map, env->tensor_map_ctx, &params));
  TDM_TRY(tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params));
  const tdm_moe_gate_args gate = tdm_moe_norm_gate_gate(args);
  return tdm_moe_gate_encode_route(&gate, env->scratch, kernel.segments, env->sms, out_step);
}

const tdm_op tdm_op_moe_norm_gate = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_norm_gate_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_moe_norm_gate_ref,
    .encode = encode,
};
