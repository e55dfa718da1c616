#include "tests/emulated/emulator.h"

#include "kernels/router_gemm/router_gemm_sm90.cu"

#undef ROUTER

namespace {

const emulator::Kernel kernels[] = {
#define ROUTER(tokens, stages)                                                                                         \
  {"tdm_router_gemm_t" #tokens "_sm90", emulator::call<tdm_router_gemm_params, tdm_router_gemm_t##tokens##_sm90>},
#include "kernels/router_gemm/router_gemm_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
