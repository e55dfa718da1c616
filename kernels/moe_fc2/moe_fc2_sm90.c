#include "kernels/moe_fc2/moe_fc2_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define FC2(tokens, stages) {tokens, TDM_GEMM_FP8_SWAP_SHARED(64, tokens, stages)},
#include "kernels/moe_fc2/moe_fc2_variants.inc"
#undef FC2
};

void tdm_moe_fc2_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, int32_t sms,
                                tdm_gemm_fp8_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan plan = {
      .swapped = true, .rows = 64, .tokens = tdm_gemm_token_tile(m), .granule = (int32_t)(intermediate / 128)};
  plan.segments = tdm_gemm_segments((hidden + 63) / 64, 64, n_experts * plan.granule, plan.granule);
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].tokens == plan.tokens) plan.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc2_t%d_sm90", plan.tokens);
  int64_t tiles = (m + plan.tokens - 1) / plan.tokens * ((hidden + 63) / 64), units = tiles * plan.segments;
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_FP8_THREADS;
  if (plan.segments > 1) {
    plan.partial_bytes = (size_t)(units * 64 * plan.tokens) * sizeof(float);
    plan.counter_bytes = (size_t)tiles * sizeof(uint32_t);
  }
  *out_plan = plan;
}

tdm_status tdm_moe_fc2_sm90_params(const tdm_moe_fc2_args* args, const tdm_gemm_fp8_sm90_plan* plan, void* partials,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_gemm_fp8_params* out_params) {
  if (args->x.dtype != TDM_E4M3 || args->w2.dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc2: %s times %s has no kernel yet; the host device computes it",
                    tdm_dtype_name(args->x.dtype), tdm_dtype_name(args->w2.dtype));
  bool has_alpha = tdm_view_present(&args->alpha), has_addend = tdm_view_present(&args->addend);
  tdm_gemm_fp8_params params = {.w_scale = tdm_view_data(&args->w2_scale),
                                .w_scale_stride = args->w2_scale.stride[0],
                                .n_tokens = tdm_view_present(&args->n_tokens) ? tdm_view_data(&args->n_tokens) : NULL,
                                .out = tdm_view_data(&args->out),
                                .out_stride = args->out.stride[0],
                                .partials = partials,
                                .counters = counters,
                                .x_scale_data = tdm_view_data(&args->x_scale),
                                .x_scale_stride = args->x_scale.stride[0],
                                .alpha = has_alpha ? tdm_view_data(&args->alpha) : NULL,
                                .alpha_stride = has_alpha ? args->alpha.stride[0] : 0,
                                .addend = has_addend ? tdm_view_data(&args->addend) : NULL,
                                .addend_stride = has_addend ? args->addend.stride[0] : 0,
                                .addend_dtype = (int32_t)args->addend.dtype,
                                .out_dtype = (int32_t)args->out.dtype,
                                .m = (int32_t)args->x.shape[0],
                                .n = (int32_t)args->w2.shape[0],
                                .k_blocks = (int32_t)(args->x.shape[1] / 128),
                                .segments = plan->segments,
                                .granule = plan->granule};
  TDM_TRY(tdm_gemm_fp8_sm90_encode("moe_fc2", &args->x, &args->x_scale, &args->w2, plan, encode, encode_ctx, &params));
  *out_params = params;
  return TDM_OK;
}
