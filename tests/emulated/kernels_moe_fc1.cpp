#include "tests/emulated/emulator.h"

#include "kernels/moe_fc1/moe_fc1_sm90.cu"

#undef SWAP
#undef UPRIGHT
#undef SPLIT

namespace {

const emulator::Kernel kernels[] = {
#define FC1(name)                   {#name, emulator::call<tdm_moe_fc1_params, name>},
#define SWAP(tokens, stages)        FC1(tdm_moe_fc1_swap_t##tokens##_sm90)
#define UPRIGHT(tokens, stages)     FC1(tdm_moe_fc1_t##tokens##_sm90)
#define SPLIT(tokens, rows, stages) FC1(tdm_moe_fc1_split_n##rows##t##tokens##_sm90)
#include "kernels/moe_fc1/moe_fc1_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
