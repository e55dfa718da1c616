/* Router logits for sm_90a: logits[m, e] = sum over h of x[m, h] * w[e, h], bf16 in, f32 out.
 *
 * The BF16 GEMM (gemm_bf16.cuh) with 64 experts a tile. Few tiles, so H is cut into many segments: at E = 256 and H =
 * 7168 four tiles of 16 segments keep 64 SMs busy; they add the partials in ascending order, a slice each.
 *
 * A view to prefetch is asked for into L2 at the beginning, by all CTAs.
 *
 * Block: 384 threads. Shared: the ring, staging. Limit: latency (launch, ring fill, meeting of the segments). */

#include "kernels/router_gemm/router_gemm.cuh"

#define ROUTER(tokens, stages)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_router_gemm_t##tokens##_sm90(const __grid_constant__ tdm_router_gemm_params p,                               \
                                       const __grid_constant__ tdm_step_sync sync) {                                   \
    tdm::GemmBf16<64, tokens, stages, false>::run(p.gemm, sync, tdm::RouterPrefetch(p));                               \
  }
#include "kernels/router_gemm/router_gemm_variants.inc"
