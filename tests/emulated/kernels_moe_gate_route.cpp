#include "tests/emulated/emulator.h"

#include "kernels/moe_gate/moe_gate_route_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_moe_gate_route_sm90", emulator::call<tdm_moe_gate_route_params, tdm_moe_gate_route_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
