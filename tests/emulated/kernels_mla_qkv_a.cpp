#include "tests/emulated/emulator.h"

#include "kernels/mla_norm_write/mla_norm_write_sm90.cu"
#include "kernels/mla_qkv_a/mla_qkv_a_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_mla_norm_write_sm90", emulator::call<tdm_mla_norm_write_params, tdm_mla_norm_write_sm90>},
    {"tdm_mla_qkv_a_sm90", emulator::call<tdm_mla_qkv_a_params, tdm_mla_qkv_a_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
