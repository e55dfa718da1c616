#include "tests/emulated/emulator.h"

#include "kernels/moe_gate/moe_gate_router_sm90.cu"

#undef ROUTER

namespace {

const emulator::Kernel kernels[] = {
#define ROUTER(tokens, stages)                                                                                         \
  {"tdm_moe_gate_router_t" #tokens "_sm90",                                                                            \
   emulator::call<tdm_router_gemm_params, tdm_moe_gate_router_t##tokens##_sm90>},
#include "kernels/router_gemm/router_gemm_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
