#include "kernels/moe_fc2/moe_fc2_grouped_sm90.h"

#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define GROUPED(tokens, stages) {tokens, TDM_MOE_FC2_GROUPED_SHARED(tokens, stages)},
#include "kernels/moe_fc2/moe_fc2_grouped_variants.inc"
#undef GROUPED
};

static uint32_t shared_bytes(size_t variant, int64_t m, int64_t n_experts) {
  const int64_t tokens = variants[variant].tokens;
  return variants[variant].shared_bytes + tdm_choices_bytes(n_experts, m < tokens ? m : tokens);
}

void tdm_moe_fc2_grouped_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                        tdm_moe_fc2_grouped_sm90_plan* out_plan) {
  size_t v = 0; /* the largest that there is room for, or one for all rows */
  while (v + 1 < sizeof variants / sizeof *variants && variants[v].tokens < m &&
         shared_bytes(v + 1, m, n_experts) <= TDM_SHARED_BYTES)
    v++;
  tdm_moe_fc2_grouped_sm90_plan plan = {.tokens = variants[v].tokens,
                                        .segments = tdm_moe_fc2_splits(n_experts, hidden, intermediate, true)};
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc2_grouped_t%d_sm90", plan.tokens);
  const int64_t tiles = (m + plan.tokens - 1) / plan.tokens * ((hidden + 127) / 128), units = tiles * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_MOE_FC2_GROUPED_THREADS;
  plan.launch.shared_bytes = shared_bytes(v, m, n_experts);
  if (plan.segments > 1) {
    plan.partial_bytes = (size_t)(units * 128 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

static void* data_or_null(const tdm_view* view) {
  return tdm_view_present(view) ? tdm_view_data(view) : NULL;
}

static int64_t stride_or_zero(const tdm_view* view) {
  return tdm_view_present(view) ? view->stride[0] : 0;
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
                            {128, 128, 1},
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
                                       .alpha = data_or_null(&args->alpha),
                                       .alpha_stride = stride_or_zero(&args->alpha),
                                       .choices = {tdm_view_data(&args->chosen), args->chosen.stride[0]},
                                       .n_tokens = data_or_null(&args->n_tokens),
                                       .addend = data_or_null(&args->addend),
                                       .addend_stride = stride_or_zero(&args->addend),
                                       .out = tdm_view_data(&args->out),
                                       .out_stride = args->out.stride[0],
                                       .partials = partials,
                                       .counters = counters,
                                       .addend_dtype = (int32_t)args->addend.dtype,
                                       .out_dtype = (int32_t)args->out.dtype,
                                       .m = (int32_t)rows,
                                       .n = (int32_t)w->shape[0],
                                       .n_experts = args->n_experts,
                                       .blocks = (int32_t)(x->shape[1] / 128 / args->n_experts),
                                       .segments = plan->segments};
  TDM_TRY(encode(encode_ctx, &w_tile, &params.w));
  *out_params = params;
  return TDM_OK;
}
