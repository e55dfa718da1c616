#include "kernels/moe_fc1/moe_fc1_few_sm90.h"

#include <stdio.h>

bool tdm_moe_fc1_few_sm90_suits(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k) {
  return m <= TDM_MOE_FC1_FEW_TOKENS && n_experts <= TDM_CHOICES_EXPERTS && k / 128 <= TDM_MOE_FC1_FEW_BLOCKS &&
         tdm_moe_fc1_sm90_segments(n_experts * intermediate, k) == 1;
}

void tdm_moe_fc1_few_sm90_make_plan(int64_t m, int64_t n_experts, int64_t intermediate, int64_t k, int32_t sms,
                                    tdm_moe_fc1_sm90_plan* out_plan) {
  const int64_t tiles = n_experts * (intermediate / 128);
  tdm_moe_fc1_sm90_plan plan = {.piece = m > 1 ? 32 : 16,
                                .tokens = TDM_MOE_FC1_FEW_TOKENS,
                                .x_blocks = (int32_t)(k / 128),
                                .segments = 1,
                                .partial_bytes = (size_t)tiles * TDM_MOE_FC1_FEW_SUM_BYTES,
                                .counter_bytes = (size_t)tiles * sizeof(uint32_t)};
  const int64_t units = tiles * (128 / plan.piece);
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_moe_fc1_few_n%d_sm90", plan.piece);
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_MOE_FC1_FEW_THREADS;
  plan.launch.admits_late = true;
  plan.launch.shared_bytes = TDM_MOE_FC1_FEW_SHARED((uint32_t)plan.x_blocks);
  *out_plan = plan;
}
