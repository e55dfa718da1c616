#include "tests/emulated/emulator.h"

#include "kernels/moe_experts/moe_experts_many_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
#undef MANY
#define MANY(tokens, stages, blocks)                                                                                   \
  {"tdm_moe_experts_many_t" #tokens "_b" #blocks "_sm90",                                                              \
   emulator::call<tdm_moe_experts_many_params, tdm_moe_experts_many_t##tokens##_b##blocks##_sm90>},
#include "kernels/moe_experts/moe_experts_many_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
