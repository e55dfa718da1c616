/* Dense FC2 for sm_90a, bf16 weights: the down projections of all experts as one GEMM with K = E * I.
 *
 * Loads, roles, turns and segments of the BF16 GEMM (gemm_bf16.cuh), with two differences:
 *
 * 1. The tensor cores sum over one expert; then the sum over experts in f32 takes alpha times that. Where alpha is 0 it
 * is left alone, so that NaN of an unchosen expert goes nowhere. A thread's weights are on their way while the expert
 * is multiplied.
 * 2. Segments begin on expert boundaries; the addend joins the finished f32 sum.
 *
 * Block: 384 threads. Shared: the ring, staging. Limit: device bandwidth on w2 up to about 64 tokens, then L2 on x. */

#include "kernels/gemm_bf16/gemm_bf16.cuh"
#include "kernels/moe_fc2/moe_fc2_bf16_params.h"

namespace {

template <int kRows, int kTokens, int kStages> struct MoeFc2Bf16 : tdm::GemmBf16<kRows, kTokens, kStages, false> {
  using Gemm = tdm::GemmBf16<kRows, kTokens, kStages, false>;
  using Memory = typename Gemm::Shared;
  static constexpr int kCount = kTokens / 2;

  /* Routing weights of this thread's tokens for an expert. Plain loads: the barriers that follow keep the compiler from
   * putting them off until their use. */
  __device__ static __forceinline__ void fetch(const tdm_moe_fc2_bf16_params& p, float (&weight)[kTokens / 4],
                                               int32_t live, int32_t m0, int32_t expert) {
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
      const int32_t m = m0 + 8 * (i / 2) + 2 * static_cast<int32_t>(threadIdx.x % 4) + i % 2;
      weight[i] = p.alpha == nullptr ? 1.0f : m < live ? p.alpha[m * p.alpha_stride + expert] : 0.0f;
    }
  }

  /* A warpgroup: multiplies its units and stores them. */
  __device__ static void multiply(const tdm_moe_fc2_bf16_params& p, Memory& shared, uint32_t consumer) {
    const typename Gemm::Walk walk(p.gemm, tdm::live_rows(p.gemm.n_tokens, p.gemm.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    const uint32_t w_offset = kRows == 128 ? consumer * 64 * 128 : 0;
    tdm::Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      const tdm::Unit unit = walk.at(u);
      const int32_t begin = walk.begin(unit), end = walk.end(unit);
      if (kRows == 64 && turn != consumer) {
        ring.advance_by(static_cast<uint32_t>((end - begin) / 2));
        continue;
      }
      const int32_t m0 = unit.m_tile * kTokens;
      float c[kCount], acc[kCount], weight[kTokens / 4];
#pragma unroll
      for (int i = 0; i < kCount; ++i) c[i] = 0.0f;
      if (kRows == 64) {
        tdm::mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      for (int32_t expert = begin; expert < end; expert += p.gemm.granule) {
        fetch(p, weight, walk.live, m0, expert / p.gemm.granule);
        uint32_t previous = kStages;
        for (int32_t kb = 0; kb < p.gemm.granule; kb += 2) {
          tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
          tdm::wgmma_fence();
#pragma unroll
          for (int block = 0; block < 2; ++block) {
            const uint64_t w = tdm::wgmma_descriptor(shared.w[ring.slot][block] + w_offset);
            const uint64_t x = tdm::wgmma_descriptor(shared.x[ring.slot][block]);
#pragma unroll
            for (int k = 0; k < 4; ++k)
              tdm::wgmma_bf16<kTokens>::template issue<0>(acc, w + 2 * k, x + 2 * k, block + k != 0 || kb != 0);
          }
          tdm::wgmma_commit();
          tdm::wgmma_wait<1>();
          if (previous != kStages && lane == 0) tdm::mbarrier_arrive(&shared.empty[previous]);
          previous = ring.slot;
          ring.advance();
        }
        tdm::wgmma_wait<0>();
        tdm::wgmma_settle(acc);
        if (lane == 0) tdm::mbarrier_arrive(&shared.empty[previous]);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float alpha = weight[2 * (i / 4) + i % 2];
          if (alpha != 0.0f) c[i] = fmaf(alpha, acc[i], c[i]);
        }
        tdm::wgmma_settle(acc);
      }
      if (kRows == 64 && lane == 0) tdm::mbarrier_arrive(&shared.order[consumer ^ 1]);

      const int32_t n0 = unit.n_tile * kRows + (kRows == 128 ? static_cast<int32_t>(consumer) * 64 : 0);
      if (n0 >= p.gemm.n) continue;
      if (p.gemm.segments > 1) {
        const int64_t all_m_tiles = (p.gemm.m + kTokens - 1) / kTokens;
        const int64_t tile = n0 / 64 * all_m_tiles + unit.m_tile;
        if (!tdm::add_segments(c, p.gemm.partials, p.gemm.counters, tile, unit.segment, p.gemm.segments,
                               &shared.flag[consumer], barrier))
          continue;
      }
      add(p, c, walk.live, m0, n0);
      const tdm::Output out{p.gemm.out, p.gemm.out_stride, p.gemm.out_dtype, walk.live, p.gemm.n};
      tdm::store_swapped<kTokens>(c, out, m0, n0, shared.staged[consumer], barrier);
    }
  }

  __device__ static void add(const tdm_moe_fc2_bf16_params& p, float (&c)[kCount], int32_t live, int32_t m0,
                             int32_t n0) {
    if (p.addend == nullptr) return;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int32_t n = n0 + 16 * warp + lane / 4 + 8 * (i / 2 % 2), m = m0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if (m < live && n < p.gemm.n) c[i] += tdm::load_element(p.addend, p.addend_dtype, m * p.addend_stride + n);
    }
  }

  __device__ static void run(const tdm_moe_fc2_bf16_params& p, const tdm_step_sync& sync) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Gemm::prepare(p.gemm, shared, sync);
    if (threadIdx.x < 128) {
      Gemm::load(p.gemm, shared, sync);
    } else {
      if constexpr (!Gemm::kTwoCtas) tdm::registers_raise<232>();
      tdm::step_wait(sync);
      multiply(p, shared, threadIdx.x / 128 - 1);
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define FC2_BF16(rows, tokens, stages)                                                                                 \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_moe_fc2_bf16_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_moe_fc2_bf16_params p,                    \
                                                 const __grid_constant__ tdm_step_sync sync) {                         \
    MoeFc2Bf16<rows, tokens, stages>::run(p, sync);                                                                    \
  }
#include "kernels/moe_fc2/moe_fc2_bf16_variants.inc"
