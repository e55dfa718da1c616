#include "kernels/moe_experts/moe_experts_sm90.h"

#include <stdio.h>

#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/op.h"
#include "runtime/status.h"

int32_t tdm_moe_experts_sm90_stages(int64_t n_experts, int64_t hidden) {
  int32_t stages = TDM_MOE_EXPERTS_MOST_STAGES;
  while (stages > 0 &&
         tdm_moe_experts_bytes((int32_t)(hidden / 128), (int32_t)n_experts, stages) > (uint32_t)TDM_SHARED_BYTES)
    stages--;
  return stages;
}

void tdm_moe_experts_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t hidden, int32_t sms,
                                    tdm_moe_experts_sm90_plan* out_plan) {
  const int64_t tiles = n_experts * (intermediate / 128);
  tdm_moe_experts_sm90_plan plan = {
      .piece = m > 2 ? 32 : 19, /* one row has 9 experts of 2 tiles: 126 pieces of 19, 144 of 16, for 132 SMs */
      .stages = tdm_moe_experts_sm90_stages(n_experts, hidden),
      .stage_blocks = intermediate / 128 % 2 == 0 ? 2 : 1,
      .segments = tdm_moe_fc2_splits(n_experts, hidden, intermediate, true),
      .sum_bytes = (size_t)(tiles * TDM_MOE_EXPERTS_TOKENS * 256) * sizeof(float)};
  const int64_t items =
      tiles * TDM_MOE_EXPERTS_PIECES(plan.piece) + (hidden + TDM_MOE_EXPERTS_COLUMNS - 1) / TDM_MOE_EXPERTS_COLUMNS;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_experts_n%d_sm90", plan.piece);
  plan.launch.grid = (uint32_t)(items < sms ? items : sms);
  plan.launch.block = TDM_MOE_EXPERTS_THREADS;
  plan.launch.shared_bytes = tdm_moe_experts_bytes((int32_t)(hidden / 128), (int32_t)n_experts, plan.stages);
  *out_plan = plan;
}

tdm_status tdm_moe_experts_sm90_params(const tdm_moe_experts_args* args, const tdm_moe_experts_sm90_plan* plan,
                                       void* sums, void* state, tdm_tensor_map_fn encode, void* encode_ctx,
                                       tdm_moe_experts_params* out_params) {
  const tdm_view *x = &args->x, *x_scale = &args->x_scale, *w13 = &args->w13, *w2 = &args->w2;
  const tdm_view* w13_scale = &args->w13_scale;
  const int64_t experts = w13->shape[0], rows = w13->shape[1];
  if (experts > 1 &&
      (w13->stride[0] != rows * w13->stride[1] || w13_scale->stride[0] != rows / 128 * w13_scale->stride[1]))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_experts: experts of w13 (stride %lld) and w13_scale (stride %lld) must follow each other",
                    (long long)w13->stride[0], (long long)w13_scale->stride[0]);
  const uint64_t k_blocks = (uint64_t)x->shape[1] / 128;
  const uint32_t piece = (uint32_t)plan->piece;
  const uint32_t piece_blocks = TDM_MOE_EXPERTS_COPY_BLOCKS(piece);
  const tdm_tensor_tile w13_tile = {tdm_view_data(w13),
                                    TDM_E4M3,
                                    4,
                                    {128, 128, (uint64_t)(experts * rows) / 128, k_blocks},
                                    {(uint64_t)w13->stride[1], 128 * (uint64_t)w13->stride[1], 128},
                                    {128, piece, 2, piece_blocks},
                                    true};
  const tdm_tensor_tile w2_tile = {tdm_view_data(w2),
                                   TDM_E4M3,
                                   3,
                                   {128, (uint64_t)w2->shape[0], (uint64_t)w2->shape[1] / 128},
                                   {(uint64_t)w2->stride[0], 128},
                                   {128, TDM_MOE_EXPERTS_COLUMNS, (uint32_t)plan->stage_blocks},
                                   true};
  if (!tdm_tensor_tile_valid(&w13_tile) || !tdm_tensor_tile_valid(&w2_tile) || x->stride[0] % 16 != 0)
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "moe_experts: data and row strides of x (%lld), w13 (%lld) and w2 (%lld) must be multiples of 16",
                    (long long)x->stride[0], (long long)w13->stride[1], (long long)w2->stride[0]);
  tdm_moe_experts_params params = {.x = tdm_view_data(x),
                                   .x_stride = x->stride[0],
                                   .x_scale = tdm_view_data(x_scale),
                                   .x_scale_stride = x_scale->stride[0],
                                   .w13_scale = tdm_view_data(w13_scale),
                                   .w13_scale_stride = w13_scale->stride[1],
                                   .w2_scale = tdm_view_data(&args->w2_scale),
                                   .w2_scale_stride = args->w2_scale.stride[0],
                                   .alpha = tdm_view_data_or_null(&args->alpha),
                                   .alpha_stride = tdm_view_stride_or_zero(&args->alpha),
                                   .choices = {tdm_view_data(&args->chosen), args->chosen.stride[0]},
                                   .n_tokens = tdm_view_data_or_null(&args->n_tokens),
                                   .addend = tdm_view_data_or_null(&args->addend),
                                   .addend_stride = tdm_view_stride_or_zero(&args->addend),
                                   .out = tdm_view_data(&args->out),
                                   .out_stride = args->out.stride[0],
                                   .sums = sums,
                                   .state = state,
                                   .addend_dtype = (int32_t)args->addend.dtype,
                                   .out_dtype = (int32_t)args->out.dtype,
                                   .m = (int32_t)x->shape[0],
                                   .n = (int32_t)w2->shape[0],
                                   .n_experts = (int32_t)experts,
                                   .k_blocks = (int32_t)k_blocks,
                                   .blocks = (int32_t)(rows / 256),
                                   .segments = plan->segments,
                                   .stages = plan->stages,
                                   .stage_blocks = plan->stage_blocks,
                                   .pow2_scale = args->pow2_scale,
                                   .swiglu_limit = args->swiglu_limit,
                                   .quant_eps = args->quant_eps};
  TDM_TRY(encode(encode_ctx, &w13_tile, &params.w13));
  TDM_TRY(encode(encode_ctx, &w2_tile, &params.w2));
  *out_params = params;
  return TDM_OK;
}
