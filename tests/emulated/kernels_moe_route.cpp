#include "tests/emulated/emulator.h"

#include "kernels/moe_route/moe_route_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_moe_route_sm90", emulator::call<tdm_moe_route_params, tdm_moe_route_sm90>},
    {"tdm_moe_route_hits_sm90", emulator::call<tdm_moe_hits_params, tdm_moe_route_hits_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
