#include "kernels/moe_experts/moe_experts_many_sm90.h"

#include <stdio.h>

#include "kernels/common/convert.h"
#include "kernels/moe_experts/moe_experts.h"
#include "runtime/buffer.h"

enum { LEAST_ROWS = 9, SLOT_BYTES = 256 * 128 };

static const struct {
  int32_t tokens, stages;
} variants[] = {
#define MANY(tokens, stages, blocks) {tokens, stages},
#include "kernels/moe_experts/moe_experts_many_variants.inc"
#undef MANY
};

static int32_t stages_of(int32_t tokens) {
  size_t v = 0;
  while (variants[v].tokens != tokens) v++;
  return variants[v].stages;
}

static int64_t sum_bytes(const tdm_moe_fc2_grouped_sm90_plan* fc2) {
  return (int64_t)(fc2->tokens + fc2->group) * TDM_MOE_FC2_GROUPED_COLUMNS * 4;
}

bool tdm_moe_experts_many_suits(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden) {
  if (rows < LEAST_ROWS || rows > TDM_MOE_EXPERTS_MANY_ROWS || n_experts > TDM_CHOICES_EXPERTS) return false;
  tdm_moe_experts_many_plan plan;
  tdm_moe_experts_many_make_plan(rows, n_experts, intermediate, hidden, TDM_REFERENCE_SMS, &plan);
  const int32_t w_stages = TDM_MOE_EXPERTS_MANY_W_SLOTS * SLOT_BYTES / TDM_MOE_FC2_GROUPED_W_BYTES;
  return plan.fc1.segments == 1 && plan.fc2.group == 8 && plan.fc2.stages <= w_stages &&
         sum_bytes(&plan.fc2) <= (stages_of(plan.fc1.tokens) - TDM_MOE_EXPERTS_MANY_W_SLOTS) * SLOT_BYTES &&
         plan.launch.shared_bytes <= TDM_SHARED_BYTES;
}

static size_t place(size_t* end, size_t bytes) {
  const size_t at = *end;
  *end = at + (bytes + 255) / 256 * 256;
  return at;
}

void tdm_moe_experts_many_make_plan(int64_t rows, int64_t n_experts, int64_t intermediate, int64_t hidden, int32_t sms,
                                    tdm_moe_experts_many_plan* out_plan) {
  const int64_t depth = n_experts * intermediate;
  tdm_moe_experts_many_plan plan = {0};
  tdm_moe_fc1_sm90_plan* fc1 = &plan.fc1;
  tdm_moe_fc2_grouped_sm90_plan* fc2 = &plan.fc2;
  tdm_moe_fc1_grouped_sm90_make_plan(rows, n_experts, intermediate, hidden, sms, fc1);
  tdm_moe_fc2_grouped_sm90_make_plan(rows, hidden, n_experts, intermediate, sms, fc2);
  const uint32_t grid = fc1->launch.grid > fc2->launch.grid ? fc1->launch.grid : fc2->launch.grid;
  const size_t tiles = (size_t)((hidden + TDM_MOE_FC2_GROUPED_COLUMNS - 1) / TDM_MOE_FC2_GROUPED_COLUMNS);
  const size_t sums = (size_t)(fc2->tokens * TDM_MOE_FC2_GROUPED_COLUMNS) * sizeof(float);
  plan.values = place(&plan.scratch_bytes, (size_t)(rows * depth));
  plan.scales = place(&plan.scratch_bytes, (size_t)(depth / TDM_QUANT_BLOCK * tdm_scale_stride(rows)) * sizeof(float));
  fc1->partial_bytes = grid * TDM_MOE_FC1_SUM_BYTES((size_t)fc1->tokens);
  fc2->partial_bytes = sums * (grid + (fc2->segments > 1 ? tiles * (size_t)fc2->segments : 0));
  fc1->counter_bytes = (1 + (size_t)grid) * sizeof(uint32_t);
  fc2->counter_bytes = (1 + (size_t)grid + tiles) * sizeof(uint32_t);
  plan.fc1_partials = place(&plan.scratch_bytes, fc1->partial_bytes);
  plan.fc2_partials = place(&plan.scratch_bytes, fc2->partial_bytes);
  plan.fc1_counters = place(&plan.state_bytes, fc1->counter_bytes);
  plan.fc2_counters = place(&plan.state_bytes, fc2->counter_bytes);
  plan.done = place(&plan.state_bytes, (size_t)(n_experts + 1) * sizeof(uint32_t));
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_experts_many_t%d_b%d_sm90", fc1->tokens,
                 fc2->stage_blocks);
  plan.launch.grid = grid;
  plan.launch.block = TDM_MOE_EXPERTS_MANY_THREADS;
  plan.launch.shared_bytes =
      tdm_moe_experts_many_bytes(fc1->tokens, stages_of(fc1->tokens), (int32_t)n_experts, fc2->stages, fc2->x_stages) +
      tdm_choices_bytes(n_experts, rows);
  plan.launch.admits_late = true;
  *out_plan = plan;
}

tdm_status tdm_moe_experts_many_params_of(const tdm_moe_experts_args* args, const tdm_moe_experts_many_plan* plan,
                                          void* scratch, void* state, tdm_tensor_map_fn encode, void* encode_ctx,
                                          tdm_moe_experts_many_params* out_params) {
  const int64_t rows = args->x.shape[0], depth = args->w2.shape[1];
  uint8_t *const memory = scratch, *const counters = state;
  tdm_buffer value_buffer = {.data = memory + plan->values, .bytes = plan->scales - plan->values};
  tdm_buffer scale_buffer = {.data = memory + plan->scales, .bytes = plan->fc1_partials - plan->scales};
  const tdm_view values = tdm_view_make(&value_buffer, TDM_E4M3, 2, (int64_t[]){rows, depth});
  tdm_view scales = tdm_view_make(&scale_buffer, TDM_F32, 2, (int64_t[]){depth / TDM_QUANT_BLOCK, rows});
  scales.stride[0] = tdm_scale_stride(rows);
  const tdm_moe_fc1_args fc1 = tdm_moe_experts_fc1(args, &values, &scales);
  const tdm_moe_fc2_args fc2 = tdm_moe_experts_fc2(args, &values, &scales);
  tdm_moe_experts_many_params params = {0};
  TDM_TRY(tdm_moe_fc1_grouped_sm90_params(&fc1, &plan->fc1, memory + plan->fc1_partials, counters + plan->fc1_counters,
                                          encode, encode_ctx, &params.fc1));
  TDM_TRY(tdm_moe_fc2_grouped_sm90_params(&fc2, &plan->fc2, memory + plan->fc2_partials, counters + plan->fc2_counters,
                                          encode, encode_ctx, &params.fc2));
  params.fc1.done = (uint32_t*)(void*)(counters + plan->done);
  params.fc1.runs = plan->fc2.segments;
  *out_params = params;
  return TDM_OK;
}
