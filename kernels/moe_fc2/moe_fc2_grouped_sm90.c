#include "kernels/moe_fc2/moe_fc2_grouped_sm90.h"

#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/op.h"
#include "runtime/status.h"

enum {
  FEW = 8,         /* tokens that leave a CTA so little to do that sharing tiles costs more */
  EIGHTS = 128,    /* up to so many tokens an expert rarely has more than eight of them */
  MOST_STAGES = 6, /* more only wait longer: 16, 64 tokens take 2 us more with ten (H200, 2026-11-22) */
  X_STAGES = 8
};

static uint32_t shared_bytes(const tdm_moe_fc2_grouped_sm90_plan* plan, int64_t m, int64_t n_experts, int32_t stages) {
  return tdm_moe_fc2_grouped_bytes(plan->tokens, plan->group, stages, plan->x_stages) +
         tdm_choices_bytes(n_experts, m < plan->tokens ? m : plan->tokens);
}

/* As many as fit in, at least one. */
static void choose_stages(tdm_moe_fc2_grouped_sm90_plan* plan, int64_t m, int64_t n_experts) {
  for (plan->stages = 1; plan->stages < MOST_STAGES; plan->stages++)
    if (shared_bytes(plan, m, n_experts, plan->stages + 1) > TDM_SHARED_BYTES) break;
  plan->launch.shared_bytes = shared_bytes(plan, m, n_experts, plan->stages);
}

void tdm_moe_fc2_grouped_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                        tdm_moe_fc2_grouped_sm90_plan* out_plan) {
  const int64_t most = TDM_MOE_FC2_GROUPED_TOKENS, columns = TDM_MOE_FC2_GROUPED_COLUMNS;
  const int64_t tiles = (hidden + columns - 1) / columns, rows = m < most ? (m + 7) / 8 * 8 : most;
  const int64_t passes = (m + rows - 1) / rows;
  tdm_moe_fc2_grouped_sm90_plan plan = {.tokens = (int32_t)rows,
                                        .group = m <= EIGHTS ? 8 : 16,
                                        .x_stages = X_STAGES,
                                        .stage_blocks = intermediate / 128 % 2 == 0 ? 2 : 1,
                                        .segments = tdm_moe_fc2_splits(n_experts, hidden, intermediate, true)};
  const bool shares = passes == 1 && (m > FEW || tiles < sms / 2);
  const int64_t units = shares ? tiles * plan.segments : tiles * passes;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc2_grouped_b%d_t%d_sm90", plan.stage_blocks,
                 plan.group);
  plan.launch.block = (uint32_t)(TDM_MOE_FC2_GROUPED_THREADS(plan.group));
  choose_stages(&plan, m, n_experts);
  const size_t sums_bytes = (size_t)(rows * columns) * sizeof(float);
  if (shares) {
    plan.partial_bytes = sums_bytes * (plan.launch.grid + (plan.segments > 1 ? (size_t)units : 0));
    plan.counter_bytes = (1 + plan.launch.grid + (size_t)tiles) * sizeof(uint32_t);
  } else if (plan.segments > 1) {
    plan.partial_bytes = sums_bytes * plan.launch.grid * (size_t)plan.segments;
  }
  *out_plan = plan;
}

tdm_status tdm_moe_fc2_grouped_sm90_params(const tdm_moe_fc2_args* args, const tdm_moe_fc2_grouped_sm90_plan* plan,
                                           void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_moe_fc2_grouped_params* out_params) {
  const tdm_view *x = &args->x, *w = &args->w2;
  const long long rows = x->shape[0], stride = x->stride[0];
  if (x->dtype != TDM_E4M3 || w->dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc2: with chosen %s times %s needs the host device", tdm_dtype_name(x->dtype),
                    tdm_dtype_name(w->dtype));
  if (plan->launch.shared_bytes > TDM_SHARED_BYTES || args->n_experts > TDM_CHOICES_EXPERTS)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc2: chosen of %d experts needs %u bytes of shared memory, a CTA has %d",
                    args->n_experts, plan->launch.shared_bytes, TDM_SHARED_BYTES);
  if (rows * stride > UINT32_MAX)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc2: with chosen x (%lld rows, stride %lld) must be below 4 GB", rows,
                    stride);
  tdm_tensor_tile w_tile = {tdm_view_data(w),
                            TDM_E4M3,
                            3,
                            {128, (uint64_t)w->shape[0], (uint64_t)w->shape[1] / 128},
                            {(uint64_t)w->stride[0], 128},
                            {128, TDM_MOE_FC2_GROUPED_COLUMNS, (uint32_t)plan->stage_blocks},
                            true};
  if (stride % 16 != 0 || !tdm_tensor_tile_valid(&w_tile))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_fc2: data and row strides of x (%lld) and w2 (%lld) must be multiples of 16 bytes", stride,
                    (long long)w->stride[0]);
  tdm_moe_fc2_grouped_params params = {.x = tdm_view_data(x),
                                       .x_stride = stride,
                                       .x_scale = tdm_view_data(&args->x_scale),
                                       .x_scale_stride = args->x_scale.stride[0],
                                       .w_scale = tdm_view_data(&args->w2_scale),
                                       .w_scale_stride = args->w2_scale.stride[0],
                                       .alpha = tdm_view_data_or_null(&args->alpha),
                                       .alpha_stride = tdm_view_stride_or_zero(&args->alpha),
                                       .choices = {tdm_view_data(&args->chosen), args->chosen.stride[0]},
                                       .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                       .addend = tdm_view_data_or_null(&args->addend),
                                       .addend_stride = tdm_view_stride_or_zero(&args->addend),
                                       .out = tdm_view_data(&args->out),
                                       .out_stride = args->out.stride[0],
                                       .partials = partials,
                                       .counters = plan->counter_bytes > 0 ? counters : NULL,
                                       .addend_dtype = (int32_t)args->addend.dtype,
                                       .out_dtype = (int32_t)args->out.dtype,
                                       .m = (int32_t)rows,
                                       .n = (int32_t)w->shape[0],
                                       .n_experts = args->n_experts,
                                       .blocks = (int32_t)(x->shape[1] / 128 / args->n_experts),
                                       .segments = plan->segments,
                                       .tokens = plan->tokens,
                                       .stages = plan->stages,
                                       .x_stages = plan->x_stages};
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  *out_params = params;
  return TDM_OK;
}
