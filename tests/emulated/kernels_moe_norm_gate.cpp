#include "tests/emulated/emulator.h"

#include "kernels/moe_norm_gate/moe_norm_gate_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_moe_norm_gate_sm90", emulator::call<tdm_moe_norm_gate_params, tdm_moe_norm_gate_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
