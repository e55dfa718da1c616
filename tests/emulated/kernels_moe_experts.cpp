#include "tests/emulated/emulator.h"

#include "kernels/moe_experts/moe_experts_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_moe_experts_n19_sm90", emulator::call<tdm_moe_experts_params, tdm_moe_experts_n19_sm90>},
    {"tdm_moe_experts_n32_sm90", emulator::call<tdm_moe_experts_params, tdm_moe_experts_n32_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
