/* BF16 GEMM, strided batched, for sm_90a: out[b, m, n] = sum over k of a[b, m, k] * w[b, n, k].
 *
 * 1. Persistent CTAs walk the units: batch x tile of the output x segment of K. gridDim.x is the SM budget.
 * 2. Producer: one lane keeps a ring of shared-memory stages filled by TMA, two blocks of 64 along K a stage.
 * 3. Consumers: two warpgroups, wgmma bf16 into f32; weights fill the 64-row side, tokens the other. Weights whose
 * columns are contiguous (the k_b absorption) are taken as they lie: the copy engine swizzles, wgmma transposes.
 * 4. Segments of one tile meet in the workspace as f32 and are added in ascending order, by the last to arrive or by
 * all of them, a slice each (device/gemm.cuh, meet). How K is cut depends on N, K and the batch alone.
 * 5. Rows from the live count on are not stored; tiles without live rows are not computed.
 *
 * Block: 384 threads. Shared: the ring, staging of the epilogue (gemm_bf16.cuh). Limit: device bandwidth on the weights
 * up to about 128 tokens, tensor cores above. */

#include "kernels/gemm_bf16/gemm_bf16.cuh"

#define MAJOR_k false
#define MAJOR_n true
#define GEMM(rows, tokens, stages, major)                                                                              \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_gemm_bf16_##major##_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_gemm_bf16_params p,                \
                                                        const __grid_constant__ tdm_step_sync sync) {                  \
    tdm::GemmBf16<rows, tokens, stages, MAJOR_##major>::run(p, sync);                                                  \
  }
#include "kernels/gemm_bf16/gemm_bf16_variants.inc"
