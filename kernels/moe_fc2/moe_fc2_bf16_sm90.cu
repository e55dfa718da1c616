/* Dense FC2 for sm_90a, bf16 weights: the down projections of all experts as one GEMM with K = E * I.
 *
 * Stages, roles, turns and segments of the BF16 GEMM (gemm_bf16.cuh), with three differences:
 *
 * 1. The tensor cores sum over one expert; then the sum over experts in f32 takes alpha times that. Where alpha is 0 it
 * is left alone, so that NaN of an unchosen expert goes nowhere. A thread's weights are on their way while the expert
 * is multiplied.
 * 2. Segments begin on expert boundaries; the addend joins the finished f32 sum.
 * 3. Of a list of experts, where there is one, the others are passed over.
 *
 * Block: 384 threads. Shared: the ring, staging. Limit: device bandwidth on w2 up to about 64 tokens, then L2 on x. */

#include "kernels/gemm_bf16/gemm_bf16.cuh"
#include "kernels/moe_fc2/moe_fc2_bf16_params.h"

namespace {

template <int kRows, int kTokens, int kStages> struct MoeFc2Bf16 : tdm::GemmBf16<kRows, kTokens, kStages, false> {
  using Gemm = tdm::GemmBf16<kRows, kTokens, kStages, false>;
  using Memory = typename Gemm::Shared;
  static_assert(sizeof(Memory) + 4 * tdm::Hits::kMost <= (Gemm::kTwoCtas ? 115712 : 232448),
                "shared memory of a Hopper CTA, or of half an SM");
  static constexpr int kCount = kTokens / 2;

  /* Stages of two blocks along K, counted through the experts that count. */
  struct Walk {
    const tdm_gemm_bf16_params& p;
    const tdm::Hits hits;
    int32_t live, m_tiles, n_tiles, units, expert_stages;

    __device__ Walk(const tdm_gemm_bf16_params& params, const tdm::Hits& experts, int32_t live_tokens)
        : p(params), hits(experts), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles((p.n + kRows - 1) / kRows), units(m_tiles * n_tiles * p.segments), expert_stages(p.granule / 2) {
    }
    __device__ tdm::Unit at(int32_t index) const {
      return tdm::unit_at(index, m_tiles, p.segments, n_tiles);
    }
    __device__ int32_t begin(const tdm::Unit& unit) const {
      return first_of(unit.segment) * expert_stages;
    }
    __device__ int32_t end(const tdm::Unit& unit) const {
      return first_of(unit.segment + 1) * expert_stages;
    }
    /* First of the experts that count in a segment. */
    __device__ int32_t first_of(int32_t segment) const {
      return hits.below(tdm::segment_begin(segment, p.segments, p.k_blocks, p.granule) / p.granule);
    }
    __device__ int32_t block(int32_t stage) const {
      if (!hits.listed) return 2 * stage;
      return hits.expert(stage / expert_stages) * p.granule + stage % expert_stages * 2;
    }
  };

  __device__ static void load_weights(const tdm_gemm_bf16_params& p, const tdm::Hits& hits, Memory& shared,
                                      const tdm_step_sync& sync, bool ahead) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    tdm::fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 2 * 128 * kRows,
                                  [&](const tdm::Unit& unit, int32_t stage, const auto& at) {
                                    const int32_t k0 = walk.block(stage) * 64;
#pragma unroll
                                    for (int block = 0; block < 2; ++block)
                                      tdm::tma_load_3d(shared.w[at.slot][block], &p.w, &shared.full[at.slot], once,
                                                       k0 + block * 64, unit.n_tile * kRows, 0);
                                  });
  }

  __device__ static void load_tokens(const tdm_gemm_bf16_params& p, const tdm::Hits& hits, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 1>(walk, shared.full, shared.empty, 2 * 128 * kTokens,
                                 [&](const tdm::Unit& unit, int32_t stage, const auto& at) {
                                   const int32_t k0 = walk.block(stage) * 64;
#pragma unroll
                                   for (int block = 0; block < 2; ++block)
                                     tdm::tma_load_3d(shared.x[at.slot][block], &p.x, &shared.full[at.slot], often,
                                                      k0 + block * 64, unit.m_tile * kTokens, 0);
                                   return true;
                                 });
  }

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
  __device__ static void multiply(const tdm_moe_fc2_bf16_params& p, const tdm::Hits& hits, Memory& shared,
                                  uint32_t consumer) {
    const Walk walk(p.gemm, hits, tdm::live_rows(p.gemm.n_tokens, p.gemm.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    const uint32_t w_offset = kRows == 128 ? consumer * 64 * 128 : 0;
    tdm::Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      const tdm::Unit unit = walk.at(u);
      const int32_t begin = walk.first_of(unit.segment), end = walk.first_of(unit.segment + 1);
      if (kRows == 64 && turn != consumer) {
        ring.advance_by(static_cast<uint32_t>((end - begin) * walk.expert_stages));
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
      for (int32_t index = begin; index < end; ++index) {
        fetch(p, weight, walk.live, m0, hits.expert(index));
        uint32_t previous = kStages;
        for (int32_t stage = 0; stage < walk.expert_stages; ++stage) {
          const uint32_t w = tdm::same_in_warp(tdm::wgmma_descriptor_lower(shared.w[ring.slot][0] + w_offset));
          const uint32_t x = tdm::same_in_warp(tdm::wgmma_descriptor_lower(shared.x[ring.slot][0]));
          tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
          tdm::wgmma_fence();
#pragma unroll
          for (uint32_t block = 0; block < 2; ++block) {
            constexpr uint32_t kBlockOfW = sizeof shared.w[0][0] / 16, kBlockOfX = sizeof shared.x[0][0] / 16;
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k)
              tdm::wgmma_bf16<kTokens>::template issue<0>(
                  acc, tdm::wgmma_descriptor_whole(w + block * kBlockOfW + 2 * k),
                  tdm::wgmma_descriptor_whole(x + block * kBlockOfX + 2 * k), block + k != 0 || stage != 0);
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
        if (!tdm::add_segments(c, p.gemm.partials, p.gemm.counters, tile, unit.segment, p.gemm.segments, false,
                               &shared.flag[consumer], barrier))
          continue;
      }
      add(p, c, walk.live, m0, n0);
      const tdm::Output out{p.gemm.out, p.gemm.out_stride, p.gemm.out_dtype, walk.live, p.gemm.n};
      tdm::store_swapped<kTokens>(c, out, m0, n0, tdm::kAllGroups, shared.staged[consumer], barrier);
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
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Gemm::prepare(p.gemm, shared, sync);
    tdm::Hits hits{p.n_experts, false};
    if (p.hits != nullptr) {
      tdm::step_wait(sync);
      hits = tdm::load_hits(p.hits, p.n_experts);
    }
    if (threadIdx.x < 128) {
      if constexpr (!Gemm::kTwoCtas) tdm::registers_lower<40>();
      const bool ahead = sync.fetches_ahead != 0 && p.gemm.m <= kTokens && !hits.listed;
      if (threadIdx.x == 0) load_weights(p.gemm, hits, shared, sync, ahead);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        load_tokens(p.gemm, hits, shared);
      }
    } else {
      if constexpr (!Gemm::kTwoCtas) tdm::registers_raise<232>();
      tdm::step_wait(sync);
      multiply(p, hits, shared, threadIdx.x / 128 - 1);
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
