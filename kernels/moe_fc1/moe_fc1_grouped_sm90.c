#include "kernels/moe_fc1/moe_fc1_grouped_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
  const char* name;
  bool segmented;
} variants[] = {
#define GROUPED(tokens, stages, name, segmented) {tokens, TDM_MOE_FC1_GROUPED_SHARED(tokens, stages), #name, segmented},
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
#undef GROUPED
};

/* Of so few rows an expert hardly has more than 16, and stages are smaller. */
enum { FEW_ROWS = 32 };

void tdm_moe_fc1_grouped_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k, int32_t sms,
                                        tdm_moe_fc1_sm90_plan* out_plan) {
  const int32_t segments = tdm_moe_fc1_sm90_segments(n_experts * intermediate, k);
  const int32_t tokens = segments > 1 || m > FEW_ROWS ? 32 : 16;
  size_t v = 0;
  while (variants[v].segmented != (segments > 1) || variants[v].tokens != tokens) v++;
  const int64_t rows = m < TDM_CHOICES_ROWS ? m : TDM_CHOICES_ROWS;
  const int64_t groups = (rows + variants[v].tokens - 1) / variants[v].tokens;
  const int64_t units = n_experts * (intermediate / 128) * groups; /* at most */
  tdm_moe_fc1_sm90_plan plan = {.tokens = variants[v].tokens, .segments = segments};
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc1_grouped_%s_sm90", variants[v].name);
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  if (segments == 1 && m <= TDM_CHOICES_ROWS) { /* CTAs share tiles */
    plan.partial_bytes = (size_t)plan.launch.grid * TDM_MOE_FC1_SUM_BYTES((size_t)plan.tokens);
    plan.counter_bytes = (1 + (size_t)plan.launch.grid) * sizeof(uint32_t);
  }
  plan.launch.block = TDM_MOE_FC1_THREADS;
  plan.launch.admits_late = true;
  const int64_t waves = (units + plan.launch.grid - 1) / plan.launch.grid;
  plan.launch.shared_bytes = variants[v].shared_bytes + tdm_choices_bytes(n_experts, rows);
  plan.launch.shared_bytes = tdm_gemm_shared_bytes(plan.launch.shared_bytes, waves * (k / 128) * 4);
  *out_plan = plan;
}

tdm_status tdm_moe_fc1_grouped_sm90_params(const tdm_moe_fc1_args* args, const tdm_moe_fc1_sm90_plan* plan,
                                           void* partials, void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                           tdm_moe_fc1_grouped_params* out_params) {
  const long long rows = args->x.shape[0], experts = args->w13.shape[0], stride = args->x.stride[0];
  if (plan->launch.shared_bytes > TDM_SHARED_BYTES || experts > TDM_CHOICES_EXPERTS)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc1: chosen of %lld experts needs %u bytes of shared memory, a CTA has %d",
                    experts, plan->launch.shared_bytes, TDM_SHARED_BYTES);
  if (rows * stride > UINT32_MAX)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc1: with chosen x (%lld rows, stride %lld) must be below 4 GB", rows,
                    stride);
  tdm_moe_fc1_grouped_params params = {.x = tdm_view_data(&args->x),
                                       .x_stride = stride,
                                       .x_scale = tdm_view_data(&args->x_scale),
                                       .x_scale_stride = args->x_scale.stride[0],
                                       .runs = 1};
  TDM_TRY(tdm_moe_fc1_sm90_params(args, plan, partials, counters, encode, encode_ctx, &params.fc1));
  *out_params = params;
  return TDM_OK;
}
