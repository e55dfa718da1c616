/* The product of moe_gate in two launches, for sm_90a: router_gemm, but segments of the sum do not meet. They are left
 * in the workspace, [segment][m][experts], for moe_gate_route to add up.
 *
 * Block: 384 threads. Shared: the ring, staging. Limit: latency (launch, ring fill). */

#include "kernels/router_gemm/router_gemm.cuh"

namespace {

struct Apart : tdm::RouterPrefetch {
  static constexpr bool kApart = true;
  using tdm::RouterPrefetch::RouterPrefetch;
};

} // namespace

#define ROUTER(tokens, stages)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_moe_gate_router_t##tokens##_sm90(const __grid_constant__ tdm_router_gemm_params p,                           \
                                           const __grid_constant__ tdm_step_sync sync) {                               \
    tdm::GemmBf16<64, tokens, stages, false>::run(p.gemm, sync, Apart(p));                                             \
  }
#include "kernels/router_gemm/router_gemm_variants.inc"
