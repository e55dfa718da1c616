#include "kernels/moe_gate/moe_gate.h"

#include "kernels/common/check.h"
#include "kernels/moe_gate/moe_gate_sm90.h"
#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_route/moe_route_sm90.h"
#include "kernels/ops.h"
#include "kernels/router_gemm/router_gemm.h"
#include "kernels/router_gemm/router_gemm_sm90.h"

#define OP "moe_gate"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_moe_gate_args, x, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_moe_gate_args, w),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_gate_args, bias),
    TDM_OPERAND(tdm_moe_gate_args, logits, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, ids, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, weights, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, alpha, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, hits, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_gate_args, chosen, TDM_WRITE),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_gate_args, prefetch),
};

static bool known_experts(int64_t experts, int32_t n_group, int32_t topk_group) {
  const bool masks = n_group > 1 && topk_group != 0 && topk_group != n_group;
  return (experts == 256 || experts == 384) && (!masks || n_group * INT64_C(32) == experts);
}

bool tdm_moe_gate_supported(int64_t rows, int64_t experts, int32_t n_group, int32_t topk_group) {
  return rows <= TDM_MOE_GATE_ROWS && known_experts(experts, n_group, topk_group);
}

tdm_router_gemm_args tdm_moe_gate_router(const tdm_moe_gate_args* args) {
  return (tdm_router_gemm_args){.size = sizeof(tdm_router_gemm_args),
                                .n_tokens = args->n_tokens,
                                .x = args->x,
                                .w = args->w,
                                .logits = args->logits,
                                .prefetch = args->prefetch};
}

tdm_moe_route_args tdm_moe_gate_route(const tdm_moe_gate_args* args) {
  return (tdm_moe_route_args){.size = sizeof(tdm_moe_route_args),
                              .n_tokens = args->n_tokens,
                              .logits = args->logits,
                              .bias = args->bias,
                              .ids = args->ids,
                              .weights = args->weights,
                              .alpha = args->alpha,
                              .hits = args->hits,
                              .chosen = args->chosen,
                              .top_k = args->top_k,
                              .n_group = args->n_group,
                              .topk_group = args->topk_group,
                              .n_shared = args->n_shared,
                              .norm_topk_prob = args->norm_topk_prob,
                              .routed_scaling_factor = args->routed_scaling_factor};
}

static tdm_status check(void* void_args) {
  tdm_moe_gate_args* args = void_args;
  tdm_router_gemm_args router = tdm_moe_gate_router(args);
  tdm_moe_route_args route = tdm_moe_gate_route(args);
  TDM_TRY(tdm_router_gemm_check(OP, &router));
  TDM_TRY(tdm_moe_route_check(OP, &route));
  TDM_TRY(tdm_check_prefetch(OP, "prefetch", &args->prefetch));
  args->n_group = route.n_group;
  args->topk_group = route.topk_group;
  args->routed_scaling_factor = route.routed_scaling_factor;
  const int64_t rows = args->x.shape[0], experts = args->w.shape[0];
  if (rows > TDM_MOE_GATE_ROWS) {
    return TDM_FAIL(TDM_UNSUPPORTED, OP ": x has %lld rows, the limit is %d", (long long)rows, TDM_MOE_GATE_ROWS);
  }
  if (!known_experts(experts, args->n_group, args->topk_group)) {
    return TDM_FAIL(TDM_UNSUPPORTED,
                    OP ": %lld experts, %d of %d groups kept, not 256 or 384 in groups of 32 or in one",
                    (long long)experts, args->topk_group, args->n_group);
  }
  return tdm_check_overlap(&tdm_op_moe_gate, args, NULL, NULL);
}

static void plan_sm90(const tdm_moe_gate_args* args, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  tdm_moe_gate_sm90_make_plan(args->x.shape[0], args->w.shape[0], args->w.shape[1], sms, out_plan);
  if (tdm_view_present(&args->prefetch)) out_plan->launch.grid = (uint32_t)sms; /* all of them ask */
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_gate_args* args = void_args;
  const double m = (double)args->x.shape[0], k = (double)args->x.shape[1], experts = (double)args->w.shape[0];
  out_plan->flops = m * experts * (2.0 * k + 5 + args->top_k); /* as the two ops count them */
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_gate, args);
  if (tdm_view_present(&args->prefetch)) out_plan->bytes -= tdm_traffic(&args->prefetch);
  if (sms == 0) return;
  tdm_gemm_bf16_sm90_plan kernel;
  plan_sm90(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

tdm_status tdm_moe_gate_encode_route(const tdm_moe_gate_args* args, const float* partials, int32_t segments,
                                     int32_t sms, tdm_encoded_step* out_step) {
  const tdm_moe_route_args route = tdm_moe_gate_route(args);
  tdm_moe_gate_route_params params;
  tdm_moe_hits_params hits;
  tdm_kernel_launch launch;
  tdm_moe_gate_sm90_route(&route, partials, segments, sms, &params, &launch);
  TDM_TRY(tdm_encoded_step_add(out_step, &launch, &params, sizeof params));
  if (!tdm_view_present(&args->hits)) return TDM_OK;
  tdm_moe_hits_sm90_plan(&route, &hits, &launch);
  return tdm_encoded_step_add(out_step, &launch, &hits, sizeof hits);
}

static tdm_status encode(const void* void_args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const tdm_moe_gate_args* args = void_args;
  const tdm_router_gemm_args router = tdm_moe_gate_router(args);
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_router_gemm_params params;
  plan_sm90(args, env->sms, &kernel);
  TDM_TRY(
      tdm_router_gemm_sm90_params(&router, &kernel, env->scratch, NULL, env->tensor_map, env->tensor_map_ctx, &params));
  TDM_TRY(tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params));
  return tdm_moe_gate_encode_route(args, env->scratch, kernel.segments, env->sms, out_step);
}

const tdm_op tdm_op_moe_gate = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_gate_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_moe_gate_ref,
    .encode = encode,
};
