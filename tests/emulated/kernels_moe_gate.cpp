#include "tests/emulated/emulator.h"

#include "kernels/moe_gate/moe_gate_sm90.cu"
#include "kernels/router_gemm/router_gemm_params.h"

#undef ROUTER

namespace {

/* Without what it prefetches. */
template <int kTokens, int kStages> void router_gemm(tdm_router_gemm_params p, tdm_step_sync sync) {
  tdm::GemmBf16<64, kTokens, kStages, false>::run(p.gemm, sync);
}

const emulator::Kernel kernels[] = {
#define ROUTER(tokens, stages)                                                                                         \
  {"tdm_moe_gate_t" #tokens "_sm90", emulator::call<tdm_moe_gate_params, tdm_moe_gate_t##tokens##_sm90>},              \
      {"tdm_router_gemm_t" #tokens "_sm90", emulator::call<tdm_router_gemm_params, router_gemm<tokens, stages>>},
#include "kernels/router_gemm/router_gemm_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace
