/* Dense FC2 for sm_90a: the down projections of all experts as one block-scaled FP8 GEMM with K = E * I.
 *
 * The swapped form of the FP8 GEMM (gemm_fp8_swap.cuh) with two additions:
 * 1. A producer warp multiplies each block's activation scale by its token's routing weight while it fills the stage.
 * Weight 0 makes the scale 0, and a scale of 0 leaves the sum untouched, so that NaN of an unchosen expert goes
 * nowhere.
 * 2. The addend (the residual of the shared expert, say) joins the finished f32 sum.
 * Segments begin on expert boundaries.
 *
 * Block: 384 threads. Shared: the ring, staging. Limit: device bandwidth on w2 up to about 64 tokens, then L2 on x. */

#include "kernels/gemm_fp8/gemm_fp8_swap.cuh"

#define FC2(tokens, stages)                                                                                            \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, 1)                                                \
      tdm_moe_fc2_t##tokens##_sm90(const __grid_constant__ tdm_gemm_fp8_params p) {                                    \
    tdm::GemmFp8Swap<64, tokens, stages, true>::run(p);                                                                \
  }
#include "kernels/moe_fc2/moe_fc2_variants.inc"
