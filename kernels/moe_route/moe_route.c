#include "kernels/moe_route/moe_route.h"

#include <math.h>

#include "kernels/common/check.h"
#include "kernels/moe_route/moe_route_sm90.h"
#include "kernels/ops.h"

#define OP "moe_route"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_moe_route_args, logits, TDM_READ),
    TDM_OPTIONAL_WEIGHT_OPERAND(tdm_moe_route_args, bias),
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, ids, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, weights, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, alpha, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, hits, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(tdm_moe_route_args, chosen, TDM_WRITE),
};

static tdm_status check_numbers(const char* op, tdm_moe_route_args* args, int64_t experts) {
  if (experts > TDM_ROUTE_MAX_EXPERTS) {
    return TDM_FAIL(TDM_UNSUPPORTED, "%s: logits have %lld experts, the limit is %d", op, (long long)experts,
                    TDM_ROUTE_MAX_EXPERTS);
  }
  if (args->n_group == 0) args->n_group = 1;
  if (args->topk_group == 0) args->topk_group = args->n_group;
  if (args->routed_scaling_factor == 0.0f) args->routed_scaling_factor = 1.0f;
  if (args->n_group < 1 || experts % args->n_group != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: n_group %d does not divide %lld experts", op, args->n_group,
                    (long long)experts);
  }
  if (args->topk_group < 1 || args->topk_group > args->n_group) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: topk_group is %d, not in 1..n_group (%d)", op, args->topk_group,
                    args->n_group);
  }
  int64_t candidates = args->topk_group * (experts / args->n_group);
  if (args->top_k < 1 || args->top_k > candidates) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: top_k is %d, not in 1..%lld (the experts of %d groups)", op, args->top_k,
                    (long long)candidates, args->topk_group);
  }
  if (args->top_k > TDM_ROUTE_MAX_TOP_K) {
    return TDM_FAIL(TDM_UNSUPPORTED, "%s: top_k is %d, the limit is %d", op, args->top_k, TDM_ROUTE_MAX_TOP_K);
  }
  if (args->n_shared < 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: n_shared is %d, less than 0", op, args->n_shared);
  }
  if (!isfinite(args->routed_scaling_factor) || args->routed_scaling_factor < 0.0f) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: routed_scaling_factor is %g, not finite and above 0", op,
                    (double)args->routed_scaling_factor);
  }
  return TDM_OK;
}

tdm_status tdm_moe_route_check(const char* op, tdm_moe_route_args* args) {
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_tensor(op, "logits", &args->logits, TDM_DTYPES(TDM_F32), 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  int64_t rows = args->logits.shape[0], experts = args->logits.shape[1];
  TDM_TRY(check_numbers(op, args, experts));
  if (tdm_view_present(&args->bias)) {
    TDM_TRY(tdm_check_tensor(op, "bias", &args->bias, TDM_DTYPES(TDM_F32), 1, (int64_t[]){experts}));
  }
  if (!tdm_view_present(&args->ids) && !tdm_view_present(&args->weights) && !tdm_view_present(&args->alpha)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: ids, weights and alpha are all absent", op);
  }
  if (tdm_view_present(&args->ids)) {
    TDM_TRY(tdm_check_tensor(op, "ids", &args->ids, TDM_DTYPES(TDM_I32), 2, (int64_t[]){rows, args->top_k}));
  }
  if (tdm_view_present(&args->weights)) {
    TDM_TRY(tdm_check_tensor(op, "weights", &args->weights, TDM_DTYPES(TDM_F32), 2, (int64_t[]){rows, args->top_k}));
  }
  if (tdm_view_present(&args->alpha)) {
    TDM_TRY(tdm_check_tensor(op, "alpha", &args->alpha, TDM_DTYPES(TDM_F32), 2,
                             (int64_t[]){rows, experts + args->n_shared}));
  }
  if (tdm_view_present(&args->hits)) {
    if (!tdm_view_present(&args->alpha)) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits without alpha", op);
    TDM_TRY(tdm_check_hits(op, &args->hits, experts + args->n_shared));
  }
  if (tdm_view_present(&args->chosen)) {
    if (!tdm_view_present(&args->alpha)) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: chosen without alpha", op);
    TDM_TRY(tdm_check_chosen(op, &args->chosen, rows, experts + args->n_shared));
  }
  return TDM_OK;
}

static tdm_status check(void* args) {
  TDM_TRY(tdm_moe_route_check(OP, args));
  return tdm_check_overlap(&tdm_op_moe_route, args, NULL, NULL);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_moe_route_args* args = void_args;
  (void)sms;
  /* A sigmoid counted as four operations, a choice as a comparison with every expert. */
  out_plan->flops = (double)args->logits.shape[0] * (double)args->logits.shape[1] * (5 + args->top_k);
  out_plan->bytes = tdm_traffic_all(&tdm_op_moe_route, args);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  TDM_TRY(tdm_refuse_chosen(OP, &((const tdm_moe_route_args*)args)->chosen));
  tdm_moe_route_params params;
  tdm_kernel_launch launch;
  tdm_moe_route_sm90_params(args, &params);
  tdm_moe_route_sm90_plan(&params, env->sms, &launch);
  TDM_TRY(tdm_encoded_step_add(out_step, &launch, &params, sizeof params));
  if (!tdm_view_present(&((const tdm_moe_route_args*)args)->hits)) return TDM_OK;
  tdm_moe_hits_params hits;
  tdm_moe_hits_sm90_plan(args, &hits, &launch);
  return tdm_encoded_step_add(out_step, &launch, &hits, sizeof hits);
}

const tdm_op tdm_op_moe_route = {
    .name = OP,
    .args_bytes = sizeof(tdm_moe_route_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_moe_route_ref,
    .encode = encode,
};
