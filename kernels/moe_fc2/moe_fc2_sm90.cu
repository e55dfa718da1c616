/* Dense FC2 for sm_90a: the down projections of all experts as one block-scaled FP8 GEMM with K = E * I.
 *
 * 1. tdm_moe_fc2_fold_sm90, with routing weights only: folded[kb][m] = x_scale[kb][m] * alpha[m][expert of kb], and 0
 * where the weight is 0. Tiles of 32 tokens x 8 experts, alpha transposed through shared memory so that its rows are
 * read in whole sectors; in the GEMM every SM would read them again, a line a token.
 * 2. tdm_moe_fc2_n<rows>t<tokens>_sm90: the FP8 GEMM (gemm_fp8_swap.cuh, gemm_fp8_upright.cuh) on the folded scales. A
 * scale of 0 leaves the sum untouched, so that NaN of an unchosen expert goes nowhere. Segments begin on expert
 * boundaries. The addend (the residual of the shared expert, say) joins the finished f32 sum.
 *
 * Block of 2: 384 threads. Shared: the ring, staging. Limit: device bandwidth on w2 up to about 64 tokens, then L2 on
 * x. */

#include "kernels/gemm_fp8/gemm_fp8_swap.cuh"
#include "kernels/gemm_fp8/gemm_fp8_upright.cuh"
#include "kernels/moe_fc2/moe_fc2_params.h"

extern "C" __global__ void __launch_bounds__(TDM_MOE_FC2_FOLD_THREADS)
    tdm_moe_fc2_fold_sm90(const __grid_constant__ tdm_moe_fc2_fold_params p,
                          const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  constexpr int32_t kTokens = TDM_MOE_FC2_FOLD_TOKENS, kExperts = TDM_MOE_FC2_FOLD_EXPERTS;
  static_assert(kTokens == 32 && kTokens * kExperts == TDM_MOE_FC2_FOLD_THREADS, "a weight a thread");
  __shared__ float weights[kExperts][kTokens + 1];
  const int32_t live = tdm::live_rows(p.n_tokens, p.m), thread = static_cast<int32_t>(threadIdx.x);
  const int32_t m_tiles = (live + kTokens - 1) / kTokens, tiles = m_tiles * ((p.n_experts + kExperts - 1) / kExperts);
  for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
    const int32_t m0 = tile % m_tiles * kTokens, e0 = tile / m_tiles * kExperts;
    const int32_t m = m0 + thread % kTokens, e = e0 + thread / kTokens;
    const int32_t row = thread / kExperts, column = thread % kExperts;
    const bool mine = m < live && e < p.n_experts;
    const float* from = p.x_scale + int64_t{e} * p.blocks * p.x_scale_stride + m;
    float* to = p.out + int64_t{e} * p.blocks * p.out_stride + m;
    const float first = mine ? *from : 0.0f; /* on its way with the weights */
    if (m0 + row < live && e0 + column < p.n_experts)
      weights[column][row] = p.alpha[(m0 + row) * p.alpha_stride + e0 + column];
    __syncthreads();
    if (mine) {
      const float weight = weights[thread / kTokens][thread % kTokens];
      *to = weight == 0.0f ? 0.0f : first * weight;
#pragma unroll 4
      for (int32_t b = 1; b < p.blocks; ++b)
        to[b * p.out_stride] = weight == 0.0f ? 0.0f : from[b * p.x_scale_stride] * weight;
    }
    __syncthreads();
  }
  tdm::step_end(sync);
}

#define FC2(form, rows, tokens, stages)                                                                                \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, (tokens) <= 16 ? 2 : 1)                           \
      tdm_moe_fc2_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_gemm_fp8_params p,                             \
                                            const __grid_constant__ tdm_step_sync sync) {                              \
    tdm::GemmFp8##form<rows, tokens, stages, true>::run(p, sync);                                                      \
  }
#include "kernels/moe_fc2/moe_fc2_variants.inc"
