#include "tests/emulated/emulator.h"

#include "kernels/moe_fc2/moe_fc2_sm90.cu"

#undef FC2

namespace {

const emulator::Kernel kernels[] = {
    {"tdm_moe_fc2_fold_sm90", emulator::call<tdm_moe_fc2_fold_params, tdm_moe_fc2_fold_sm90>},
#define FC2(form, rows, tokens, stages)                                                                                \
  {"tdm_moe_fc2_n" #rows "t" #tokens "_sm90",                                                                          \
   emulator::call<tdm_gemm_fp8_params, tdm_moe_fc2_n##rows##t##tokens##_sm90>},
#include "kernels/moe_fc2/moe_fc2_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
