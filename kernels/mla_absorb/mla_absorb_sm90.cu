/* Absorbed queries of MLA for sm_90a: the BF16 GEMM of gemm_bf16.cuh, batched over heads, and beside it the rotation of
 * the columns that it does not touch.
 *
 * 1. Walk, producer, consumers: those of gemm_bf16, with its tiles and its bits.
 * 2. Each CTA has an equal share of the rotation, in items of a few heads of a token. A warp takes the next item when
 * it has nothing else to do: two warps beside the producers from the start, the consumers' past their last unit.
 *
 *   warp         0       1       2, 3              4 .. 11
 *                w       x       rotate            multiply, store ── rotate
 *
 * Grid, block, limit: gemm_bf16's. Shared: its ring, and the count of items taken. */

#include "kernels/gemm_bf16/gemm_bf16.cuh"
#include "kernels/mla_absorb/mla_absorb.cuh"
#include "kernels/mla_absorb/mla_absorb_params.h"

namespace {

template <int kRows, int kTokens, int kStages> struct MlaAbsorb {
  using Gemm = tdm::GemmBf16<kRows, kTokens, kStages, true>;

  struct Shared : Gemm::Shared {
    uint32_t taken;
  };
  static_assert(sizeof(Shared) == TDM_MLA_ABSORB_SHARED(kRows, kTokens, kStages), "launch size");
  static_assert(sizeof(Shared) <= (Gemm::kTwoCtas ? 115712 : 232448),
                "shared memory of a Hopper CTA, or of half an SM");

  __device__ static void run(const tdm_mla_absorb_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) shared.taken = 0;
    Gemm::prepare(p.gemm, shared, sync);
    if (threadIdx.x < 128) {
      if constexpr (!Gemm::kTwoCtas) tdm::registers_lower<56>();
      if (threadIdx.x == 0) Gemm::load_weights(p.gemm, shared, sync);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        Gemm::load_tokens(p.gemm, shared);
      }
      if (threadIdx.x >= 64) {
        tdm::step_wait(sync);
        tdm::mla_absorb_rotate(p.rope, &shared.taken);
      }
    } else {
      if constexpr (!Gemm::kTwoCtas) tdm::registers_raise<224>();
      tdm::step_wait(sync);
      Gemm::template multiply<false>(p.gemm, shared, threadIdx.x / 128 - 1);
      __syncwarp();
      tdm::mla_absorb_rotate(p.rope, &shared.taken);
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define GEMM_k(rows, tokens, stages)
#define GEMM_n(rows, tokens, stages)                                                                                   \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_mla_absorb_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_mla_absorb_params p,                        \
                                               const __grid_constant__ tdm_step_sync sync) {                           \
    MlaAbsorb<rows, tokens, stages>::run(p, sync);                                                                     \
  }
#define GEMM(rows, tokens, stages, major) GEMM_##major(rows, tokens, stages)
#include "kernels/gemm_bf16/gemm_bf16_variants.inc"
