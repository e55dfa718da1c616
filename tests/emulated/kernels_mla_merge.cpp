#include "tests/emulated/emulator.h"

#include "kernels/mla_decode/mla_decode_merge_sm90.cu"

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_mla_decode_merge_sm90", emulator::call<tdm_mla_decode_params, tdm_mla_decode_merge_sm90>},
    {"tdm_mla_decode_merge_many_sm90", emulator::call<tdm_mla_decode_params, tdm_mla_decode_merge_many_sm90>},
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
