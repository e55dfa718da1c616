#include "tests/emulated/emulator.h"

#include "kernels/moe_fc2/moe_fc2_grouped_sm90.cu"

#undef GROUPED

namespace {

const emulator::Kernel kernels[] = {
#define GROUPED(blocks, group)                                                                                         \
  {"tdm_moe_fc2_grouped_b" #blocks "_t" #group "_sm90",                                                                \
   emulator::call<tdm_moe_fc2_grouped_params, tdm_moe_fc2_grouped_b##blocks##_t##group##_sm90>},
#include "kernels/moe_fc2/moe_fc2_grouped_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
