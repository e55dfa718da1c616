#include "tests/emulated/emulator.h"

#include "kernels/moe_fc1/moe_fc1_grouped_sm90.cu"

#undef GROUPED

namespace {

const emulator::Kernel kernels[] = {
#define GROUPED(tokens, stages, name, segmented)                                                                       \
  {"tdm_moe_fc1_grouped_" #name "_sm90", emulator::call<tdm_moe_fc1_grouped_params, tdm_moe_fc1_grouped_##name##_sm90>},
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
