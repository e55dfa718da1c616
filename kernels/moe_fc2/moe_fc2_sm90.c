#include "kernels/moe_fc2/moe_fc2_sm90.h"

#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t rows, tokens;
  uint32_t shared_bytes;
} variants[] = {
#define Swap                            TDM_GEMM_FP8_SWAP_SHARED
#define Upright                         TDM_GEMM_FP8_UPRIGHT_SHARED
#define FC2(form, rows, tokens, stages) {rows, tokens, form(rows, tokens, stages)},
#include "kernels/moe_fc2/moe_fc2_variants.inc"
#undef FC2
#undef Swap
#undef Upright
};

/* Of the folded scales within the scratch. */
static size_t folded_offset(const tdm_gemm_fp8_sm90_plan* gemm) {
  return (gemm->partial_bytes + 255) / 256 * 256;
}

static void make_fold_plan(int64_t m, int64_t n_experts, int32_t sms, tdm_moe_fc2_sm90_plan* plan) {
  int64_t m_tiles = (m + TDM_MOE_FC2_FOLD_TOKENS - 1) / TDM_MOE_FC2_FOLD_TOKENS;
  int64_t tiles = m_tiles * ((n_experts + TDM_MOE_FC2_FOLD_EXPERTS - 1) / TDM_MOE_FC2_FOLD_EXPERTS);
  plan->fold = (tdm_kernel_launch){.kernel = "tdm_moe_fc2_fold_sm90",
                                   .grid = (uint32_t)(tiles < sms * 8 ? tiles : sms * 8),
                                   .block = TDM_MOE_FC2_FOLD_THREADS};
  plan->folded_stride = tdm_scale_stride(m);
  size_t folded_bytes = (size_t)(n_experts * plan->gemm.granule * plan->folded_stride) * sizeof(float);
  plan->scratch_bytes = folded_offset(&plan->gemm) + (folded_bytes + 255) / 256 * 256;
}

void tdm_moe_fc2_sm90_make_plan(int64_t m, int64_t hidden, int64_t n_experts, int64_t intermediate, bool routed,
                                int32_t sms, tdm_moe_fc2_sm90_plan* out_plan) {
  tdm_gemm_fp8_sm90_plan gemm = {
      .rows = 64, .tokens = tdm_gemm_token_tile(m), .granule = (int32_t)(intermediate / 128)};
  gemm.swapped = gemm.tokens <= 32;
  gemm.upright = !gemm.swapped;
  gemm.x_rows = (int32_t)tdm_gemm_loaded_rows(m, gemm.tokens);
  gemm.segments = tdm_moe_fc2_splits(n_experts, hidden, intermediate, true);
  const bool halves = tdm_moe_fc2_halves(n_experts, hidden, intermediate);
  if (halves && gemm.tokens == 128) gemm.rows = 128;
  gemm.split = gemm.segments > 1 && (!halves || gemm.rows == 128);
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
    if (variants[i].rows == gemm.rows && variants[i].tokens == gemm.tokens)
      gemm.launch.shared_bytes = variants[i].shared_bytes;
  (void)snprintf(gemm.launch.kernel, sizeof gemm.launch.kernel, "tdm_moe_fc2_n%dt%d_sm90", gemm.rows, gemm.tokens);
  const int32_t pieces = gemm.split ? gemm.segments : 1;
  int64_t tiles = (m + gemm.tokens - 1) / gemm.tokens * ((hidden + gemm.rows - 1) / gemm.rows), units = tiles * pieces;
  gemm.launch.grid = (uint32_t)(units < sms ? units : sms);
  gemm.launch.block = TDM_GEMM_FP8_THREADS;
  int64_t parts_a_tile = gemm.tokens == 128 ? 2 : 1; /* upright: each consumer has its own tokens */
  int64_t waves = (units + gemm.launch.grid - 1) / gemm.launch.grid;
  if (gemm.swapped)
    gemm.launch.shared_bytes =
        tdm_gemm_shared_bytes(gemm.launch.shared_bytes, waves * n_experts * gemm.granule / pieces);
  if (gemm.split) {
    gemm.partial_bytes = (size_t)(units * gemm.rows * gemm.tokens) * sizeof(float);
    gemm.counter_bytes = (size_t)(tiles * parts_a_tile) * sizeof(uint32_t);
  }
  *out_plan = (tdm_moe_fc2_sm90_plan){.gemm = gemm, .folds = routed, .scratch_bytes = gemm.partial_bytes};
  if (routed) make_fold_plan(m, n_experts, sms, out_plan);
}

tdm_status tdm_moe_fc2_sm90_params(const tdm_moe_fc2_args* args, const tdm_moe_fc2_sm90_plan* plan, void* scratch,
                                   void* counters, tdm_tensor_map_fn encode, void* encode_ctx,
                                   tdm_moe_fc2_fold_params* out_fold, tdm_gemm_fp8_params* out_params) {
  if (args->x.dtype != TDM_E4M3 || args->w2.dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "moe_fc2: %s times %s needs the host device", tdm_dtype_name(args->x.dtype),
                    tdm_dtype_name(args->w2.dtype));
  bool has_addend = tdm_view_present(&args->addend);
  const float* x_scale = tdm_view_data(&args->x_scale);
  int64_t x_scale_stride = args->x_scale.stride[0];
  tdm_gemm_fp8_params params = {.w_scale = tdm_view_data(&args->w2_scale),
                                .w_scale_stride = args->w2_scale.stride[0],
                                .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                .out = tdm_view_data(&args->out),
                                .out_stride = args->out.stride[0],
                                .partials = scratch,
                                .counters = counters,
                                .addend = has_addend ? tdm_view_data(&args->addend) : NULL,
                                .addend_stride = has_addend ? args->addend.stride[0] : 0,
                                .addend_dtype = (int32_t)args->addend.dtype,
                                .out_dtype = (int32_t)args->out.dtype,
                                .m = (int32_t)args->x.shape[0],
                                .n = (int32_t)args->w2.shape[0],
                                .k_blocks = (int32_t)(args->x.shape[1] / 128),
                                .segments = plan->gemm.segments,
                                .split = plan->gemm.split,
                                .granule = plan->gemm.granule,
                                .hits = tdm_view_data_or_null(&args->hits),
                                .n_experts = args->n_experts};
  if (plan->folds) {
    float* folded = (float*)(void*)((char*)scratch + folded_offset(&plan->gemm));
    *out_fold = (tdm_moe_fc2_fold_params){.x_scale = x_scale,
                                          .x_scale_stride = x_scale_stride,
                                          .alpha = tdm_view_data(&args->alpha),
                                          .alpha_stride = args->alpha.stride[0],
                                          .out = folded,
                                          .out_stride = plan->folded_stride,
                                          .n_tokens = params.n_tokens,
                                          .m = params.m,
                                          .n_experts = args->n_experts,
                                          .blocks = plan->gemm.granule};
    x_scale = folded;
    x_scale_stride = plan->folded_stride;
  }
  TDM_TRY(tdm_gemm_fp8_sm90_encode("moe_fc2", &args->x, x_scale, x_scale_stride, &args->w2, &plan->gemm, encode,
                                   encode_ctx, &params));
  *out_params = params;
  return TDM_OK;
}
