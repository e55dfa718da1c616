/* Absorbed queries of MLA up to 128 tokens for sm_90a: the BF16 GEMM of gemm_bf16_short.cuh, batched over heads, and
 * beside it the rotation of the columns that it does not touch.
 *
 * 1. Tiles, producer, consumers: those of gemm_bf16's form for a short K, with its bits.
 * 2. The rotation as in mla_absorb_sm90.cu: a warp of its own from the start, the producer's when it has asked for all,
 * the consumers' when they have stored.
 *
 *   warp      0 .. 7                       8                   9
 *             multiply, store ─ rotate     w ─ rotate          rotate
 *
 * Grid, shared memory, limit: the GEMM's. Block: 320 threads. */

#include "kernels/gemm_bf16/gemm_bf16_short.cuh"
#include "kernels/mla_absorb/mla_absorb.cuh"
#include "kernels/mla_absorb/mla_absorb_params.h"

namespace {

template <int kRows, int kTokens> struct MlaAbsorbShort {
  using Gemm = tdm::GemmBf16Short<kRows, kTokens>;

  __device__ static void run(const tdm_mla_absorb_short_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    typename Gemm::Shared& shared = *reinterpret_cast<typename Gemm::Shared*>(memory);
    Gemm::prepare(p.gemm, shared, sync);
    Gemm::fetch(p.gemm, shared, sync);
    tdm::step_wait(sync);
    if (threadIdx.x < Gemm::kProducer) Gemm::multiply(p.gemm, shared, threadIdx.x / 128);
    if (threadIdx.x == Gemm::kProducer) Gemm::load(p.gemm, shared, sync);
    __syncwarp();
    tdm::mla_absorb_rotate(p.rope, &shared.spare);
    if (threadIdx.x < Gemm::kProducer) Gemm::finish();
    tdm::step_end(sync);
  }
};

} // namespace

#define SHORT(rows, tokens)                                                                                            \
  extern "C" __global__ void __launch_bounds__(TDM_MLA_ABSORB_SHORT_THREADS, TDM_GEMM_BF16_SHORT_CTAS(tokens))         \
      tdm_mla_absorb_short_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_mla_absorb_short_params p,            \
                                                     const __grid_constant__ tdm_step_sync sync) {                     \
    MlaAbsorbShort<rows, tokens>::run(p, sync);                                                                        \
  }
#include "kernels/gemm_bf16/gemm_bf16_short_variants.inc"
