#include "kernels/moe_route/moe_route_sm90.h"

#include "runtime/op.h"

void tdm_moe_route_sm90_params(const tdm_moe_route_args* args, tdm_moe_route_params* out_params) {
  tdm_moe_route_params params = {.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                 .logits = tdm_view_data(&args->logits),
                                 .bias = tdm_view_data_or_null(&args->bias),
                                 .ids = tdm_view_data_or_null(&args->ids),
                                 .weights = tdm_view_data_or_null(&args->weights),
                                 .alpha = tdm_view_data_or_null(&args->alpha),
                                 .chosen = tdm_view_data_or_null(&args->chosen),
                                 .logits_stride = args->logits.stride[0],
                                 .ids_stride = tdm_view_stride_or_zero(&args->ids),
                                 .weights_stride = tdm_view_stride_or_zero(&args->weights),
                                 .alpha_stride = tdm_view_stride_or_zero(&args->alpha),
                                 .chosen_stride = tdm_view_stride_or_zero(&args->chosen),
                                 .rows = (int32_t)args->logits.shape[0],
                                 .experts = (int32_t)args->logits.shape[1],
                                 .top_k = args->top_k,
                                 .n_group = args->n_group,
                                 .topk_group = args->topk_group,
                                 .n_shared = args->n_shared,
                                 .norm_topk_prob = args->norm_topk_prob,
                                 .routed_scaling_factor = args->routed_scaling_factor};
  *out_params = params;
}

void tdm_moe_route_sm90_plan(const tdm_moe_route_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_moe_route_sm90", .block = 32 * TDM_MOE_ROUTE_WARPS, .admits_late = true};
  int32_t grid = (params->rows + TDM_MOE_ROUTE_WARPS - 1) / TDM_MOE_ROUTE_WARPS;
  launch.grid = (uint32_t)(grid < sms * 4 ? grid : sms * 4);
  launch.shared_bytes = (uint32_t)(TDM_MOE_ROUTE_WARPS * TDM_MOE_ROUTE_FLOATS(params->experts, params->n_group)) *
                        (uint32_t)sizeof(float);
  *out_launch = launch;
}

void tdm_moe_hits_sm90_plan(const tdm_moe_route_args* args, tdm_moe_hits_params* out_params,
                            tdm_kernel_launch* out_launch) {
  const int32_t experts = (int32_t)args->alpha.shape[1];
  *out_params = (tdm_moe_hits_params){.n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                      .alpha = tdm_view_data(&args->alpha),
                                      .alpha_stride = args->alpha.stride[0],
                                      .hits = tdm_view_data(&args->hits),
                                      .rows = (int32_t)args->alpha.shape[0],
                                      .experts = experts};
  *out_launch =
      (tdm_kernel_launch){.kernel = "tdm_moe_route_hits_sm90", .grid = 1, .block = (uint32_t)(experts + 31) / 32 * 32};
}
