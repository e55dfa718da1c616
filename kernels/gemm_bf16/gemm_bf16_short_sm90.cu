/* BF16 GEMM, strided batched, K of at most 128 and up to 128 tokens, for sm_90a: out[b, m, n] = sum over k of
 * a[b, m, k] * w[b, n, k], w's columns contiguous.
 *
 * 1. A CTA has a tile of 128 or 256 weight rows and all tokens; two or three fit on an SM, so that those of the next
 * step, which come as places fall free, have their weights under way while this step's end.
 * 2. Producer: one thread asks for weights, those of the first tile before it waits for the steps before, never many at
 * once. A consumer's asks for the tokens.
 * 3. Consumers: two warpgroups, wgmma bf16 into f32, weights on the 64-row side. Results go to shared memory where the
 * weights lay, and from there to device memory by the copy engine.
 * 4. Rows from the live count on are not stored.
 *
 * Grid: the tiles, at most as many as the SMs of the lane have room for; then CTAs walk them. Block: 288 threads.
 * Shared: weights, tokens, barriers (gemm_bf16_short.cuh). Limit: device bandwidth, and how far one step's begin and
 * end lie under another's copies. */

#include "kernels/gemm_bf16/gemm_bf16_short.cuh"

#define SHORT(rows, tokens)                                                                                            \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_SHORT_THREADS, TDM_GEMM_BF16_SHORT_CTAS(tokens))          \
      tdm_gemm_bf16_short_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_gemm_bf16_short_params p,              \
                                                    const __grid_constant__ tdm_step_sync sync) {                      \
    tdm::GemmBf16Short<rows, tokens>::run(p, sync);                                                                    \
  }
#include "kernels/gemm_bf16/gemm_bf16_short_variants.inc"
