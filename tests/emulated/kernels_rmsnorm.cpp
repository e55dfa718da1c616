#include "tests/emulated/emulator.h"

#include "kernels/rmsnorm/rmsnorm_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_rmsnorm_sm90", emulator::call<tdm_rmsnorm_params, tdm_rmsnorm_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
