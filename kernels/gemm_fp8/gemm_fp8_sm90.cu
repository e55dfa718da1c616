/* Block-scaled FP8 GEMM for sm_90a: out[m, n] = sum over blocks kb of (sx[kb][m] * sw[n/128][kb]) * dot(x, w over the
 * block).
 *
 * 1. Persistent CTAs walk the units: tile of the output x segment of K. gridDim.x is the SM budget.
 * 2. Producer: one lane keeps a ring of shared-memory stages filled by TMA (weights, activations, activation scales).
 * 3. Consumers: two warpgroups, wgmma e4m3 into f32, a fresh accumulator for each block of 128, promoted by its two
 * scales.
 * 4. Segments of one tile meet in the workspace as f32 and are added in ascending order, by the last to arrive or by
 * all of them, a slice each (device/gemm.cuh, meet). How K is cut depends on N and K alone, so a row has the same bits
 * in every batch, on every lane and in all forms.
 * 5. Rows from the live count on are not stored; tiles without live rows are not computed.
 *
 * Swapped form (gemm_fp8_swap.cuh) up to 32 tokens, upright form (gemm_fp8_upright.cuh) up to 128; limit: device
 * bandwidth on the weights. Plain form (gemm_fp8_plain.cuh) above; limit: tensor cores, and the power they may draw. */

#include "kernels/gemm_fp8/gemm_fp8_plain.cuh"
#include "kernels/gemm_fp8/gemm_fp8_swap.cuh"
#include "kernels/gemm_fp8/gemm_fp8_upright.cuh"

#define SWAP(rows, tokens, stages)                                                                                     \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, (tokens) <= 32 ? 2 : 1)                           \
      tdm_gemm_fp8_swap_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_gemm_fp8_params p,                       \
                                                  const __grid_constant__ tdm_step_sync sync) {                        \
    tdm::GemmFp8Swap<rows, tokens, stages, false>::run(p, sync);                                                       \
  }
#define UPRIGHT(rows, tokens, stages)                                                                                  \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, 1) tdm_gemm_fp8_n##rows##t##tokens##_sm90(        \
      const __grid_constant__ tdm_gemm_fp8_params p, const __grid_constant__ tdm_step_sync sync) {                     \
    tdm::GemmFp8Upright<rows, tokens, stages, false>::run(p, sync);                                                    \
  }
#define PLAIN(tokens, suffix, warpgroups, pieces, cluster, stages, segments)                                           \
  extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(128 * (warpgroups) + 128, 1)            \
      tdm_gemm_fp8_m##tokens##n128##suffix##_sm90(const __grid_constant__ tdm_gemm_fp8_params p,                       \
                                                  const __grid_constant__ tdm_step_sync sync) {                        \
    static_assert(64 * (warpgroups) * (pieces) == (tokens), "a tile's tokens");                                        \
    tdm::GemmFp8Plain<warpgroups, pieces, cluster, stages, segments>::run(p, {}, sync);                                \
  }
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
