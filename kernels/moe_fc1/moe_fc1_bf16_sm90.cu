/* Dense FC1 with SwiGLU for sm_90a, bf16 throughout: the gate and up projections of all experts as one GEMM.
 *
 * 1. Persistent CTAs walk the tiles: 128 columns of the output (256 rows of w13: gate, then up) x kTokens. gridDim.x is
 * the SM budget. Tokens vary fastest, so that tiles of the same weights meet in L2.
 * 2. Producers: two lanes keep a ring of shared-memory stages filled by TMA: 32 KB of weights a stage, and tokens.
 * 3. Consumers: each of two warpgroups has 64 gate rows and the 64 up rows that belong to them, so that gate and up of
 * a value are in one thread; both are summed in the tensor cores' f32 over the whole segment.
 * 4. Where tiles do not fill the SMs K is cut into segments, whose f32 partials meet in the workspace; the last to
 * arrive adds them in ascending order. The cut is a function of w13's shape alone.
 * 5. Epilogue: silu(gate) * up in f32, one rounding, through shared memory to rows of 128 bytes.
 * 6. Rows from the live count on are not stored; tiles without live rows are not computed, nor those of experts that a
 * list, where there is one, does not name.
 *
 *   warpgroup 0 (producer)   two lanes: TMA             stage:  w      [256][64] bf16, swizzled
 *   warpgroup 1              rows  0..63 and 128..191           x      [kTokens][64] bf16, swizzled
 *   warpgroup 2              rows 64..127 and 192..255
 *
 * Limit: device bandwidth on w13 up to about 64 tokens; then L2 and tensor cores. */

#include "kernels/device/gemm.cuh"
#include "kernels/moe_fc1/moe_fc1_bf16_params.h"
#include "kernels/moe_fc1/swiglu.cuh"

namespace {

template <int kTokens, int kStages> struct Shared {
  alignas(1024) uint8_t w[kStages][256 * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(16) uint8_t staged[2][TDM_MOE_FC1_BF16_STAGED_ROWS(kTokens) * tdm::kStagedRowBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t flag[2];
};

template <int kTokens, int kStages> struct MoeFc1Bf16 {
  using Memory = Shared<kTokens, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC1_BF16_SHARED(kTokens, kStages), "launch size");
  static_assert(sizeof(Memory) <= 232448 - 4 * tdm::Hits::kMost, "shared memory of a Hopper CTA");
  static constexpr int kCount = kTokens / 2; /* elements of a fragment */
  static constexpr int kAddAtOnce = kTokens >= 128 ? 1 : kTokens >= 64 ? 2 : kTokens >= 24 ? 4 : 8; /* registers */

  struct Walk {
    const tdm_moe_fc1_bf16_params& p;
    const tdm::Hits hits;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_moe_fc1_bf16_params& params, const tdm::Hits& experts, int32_t live_tokens)
        : p(params), hits(experts), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles(hits.listed ? hits.count * p.expert_tiles : p.n_tiles), units(m_tiles * n_tiles * p.segments) {
    }
    __device__ tdm::Unit at(int32_t index) const {
      tdm::Unit unit = tdm::unit_at(index, m_tiles, p.segments, n_tiles);
      if (hits.listed)
        unit.n_tile = hits.expert(unit.n_tile / p.expert_tiles) * p.expert_tiles + unit.n_tile % p.expert_tiles;
      return unit;
    }
    __device__ int32_t begin(const tdm::Unit& unit) const {
      return tdm::segment_begin(unit.segment, p.segments, p.k_blocks, 1);
    }
    __device__ int32_t end(const tdm::Unit& unit) const {
      return tdm::segment_begin(unit.segment + 1, p.segments, p.k_blocks, 1);
    }
  };

  __device__ static void load_weights(const tdm_moe_fc1_bf16_params& p, const tdm::Hits& hits, Memory& shared,
                                      const tdm_step_sync& sync, bool ahead) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    tdm::fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 256 * 128,
                                  [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                    const int32_t expert = unit.n_tile / p.expert_tiles;
                                    const int32_t n0 = (unit.n_tile - expert * p.expert_tiles) * 256;
                                    tdm::tma_load_3d(shared.w[at.slot], &p.w, &shared.full[at.slot], once, kb * 64, n0,
                                                     expert);
                                  });
  }

  __device__ static void load_tokens(const tdm_moe_fc1_bf16_params& p, const tdm::Hits& hits, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 1>(
        walk, shared.full, shared.empty, 128 * kTokens, [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
          tdm::tma_load_2d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, kb * 64, unit.m_tile * kTokens);
          return true;
        });
  }

  /* As add_segments for gate and up together, one after the other for the registers' sake. Partials lie as
   * [tile][segment][gate, up][kCount / 4][128 threads] float4. */
  __device__ static bool add(const tdm_moe_fc1_bf16_params& p, float (&c)[2][kCount], int64_t tile, int32_t segment,
                             uint32_t* flag, uint32_t barrier) {
    constexpr int64_t kHalf = kCount / 4 * 128;
    const uint32_t thread = threadIdx.x % 128;
    float4* const first = reinterpret_cast<float4*>(p.partials) + tile * p.segments * 2 * kHalf + thread;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4* const mine = first + (2 * segment + half) * kHalf;
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i)
        __stcg(mine + i * 128, make_float4(c[half][4 * i], c[half][4 * i + 1], c[half][4 * i + 2], c[half][4 * i + 3]));
    }
    tdm::named_barrier_sync(barrier, 128);
    if (thread == 0) *flag = tdm::arrives_last(p.counters + tile, static_cast<uint32_t>(p.segments));
    tdm::named_barrier_sync(barrier, 128);
    if (*flag == 0) return false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) c[half][i] = 0.0f;
#pragma unroll kAddAtOnce
      for (int32_t s = 0; s < p.segments; ++s) {
        const float4* partial = first + (2 * s + half) * kHalf;
#pragma unroll
        for (int i = 0; i < kCount / 4; ++i) {
          const float4 v = __ldcg(partial + i * 128);
          c[half][4 * i] += v.x, c[half][4 * i + 1] += v.y, c[half][4 * i + 2] += v.z, c[half][4 * i + 3] += v.w;
        }
      }
    }
    return true;
  }

  /* A warpgroup. A stage is given back when the next one's products are under way. */
  __device__ static void multiply(const tdm_moe_fc1_bf16_params& p, const tdm::Hits& hits, Memory& shared,
                                  uint32_t consumer) {
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    tdm::Ring<kStages> ring;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const tdm::Unit unit = walk.at(u);
      const int32_t begin = walk.begin(unit), end = walk.end(unit);
      float c[2][kCount]; /* gate, up */
      uint32_t previous = kStages;
      for (int32_t kb = begin; kb < end; ++kb) {
        const uint32_t x = tdm::same_in_warp(tdm::wgmma_descriptor_lower(shared.x[ring.slot]));
        const uint32_t w = tdm::same_in_warp(tdm::wgmma_descriptor_lower(shared.w[ring.slot] + consumer * 64 * 128));
        tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
        tdm::wgmma_fence();
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
#pragma unroll
          for (uint32_t k = 0; k < 4; ++k)
            tdm::wgmma_bf16<kTokens>::template issue<0>(
                c[half], tdm::wgmma_descriptor_whole(w + half * (2 * 64 * 128 / 16) + 2 * k),
                tdm::wgmma_descriptor_whole(x + 2 * k), k != 0 || kb != begin);
        }
        tdm::wgmma_commit();
        tdm::wgmma_wait<1>();
        if (previous != kStages && lane == 0) tdm::mbarrier_arrive(&shared.empty[previous]);
        previous = ring.slot;
        ring.advance();
      }
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(c[0]);
      tdm::wgmma_settle(c[1]);
      if (lane == 0) tdm::mbarrier_arrive(&shared.empty[previous]);

      if (p.segments > 1) {
        const int64_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
        const int64_t tile = (int64_t{2} * unit.n_tile + consumer) * all_m_tiles + unit.m_tile;
        if (!add(p, c, tile, unit.segment, &shared.flag[consumer], barrier)) continue;
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) c[0][i] = tdm::swiglu(c[0][i], c[1][i], p.swiglu_limit);
      const tdm::Output out{p.out, p.out_stride, TDM_KERNEL_BF16, walk.live, p.n_tiles * 128};
      tdm::store_swapped<kTokens>(c[0], out, unit.m_tile * kTokens,
                                  unit.n_tile * 128 + static_cast<int32_t>(consumer) * 64, tdm::kAllGroups,
                                  shared.staged[consumer], barrier);
    }
  }

  __device__ static void run(const tdm_moe_fc1_bf16_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    tdm::step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 2);
        tdm::mbarrier_init(&shared.empty[i], 8);
      }
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w);
      tdm::tma_prefetch_map(&p.x);
    }
    __syncthreads();
    tdm::Hits hits{p.n_experts, false};
    if (p.hits != nullptr) {
      tdm::step_wait(sync);
      hits = tdm::load_hits(p.hits, p.n_experts);
    }
    if (threadIdx.x < 128) {
      tdm::registers_lower<40>();
      const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync, ahead);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        load_tokens(p, hits, shared);
      }
    } else {
      tdm::registers_raise<232>();
      tdm::step_wait(sync);
      multiply(p, hits, shared, threadIdx.x / 128 - 1);
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define FC1_BF16(tokens, stages)                                                                                       \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_BF16_THREADS, 1) tdm_moe_fc1_bf16_t##tokens##_sm90(         \
      const __grid_constant__ tdm_moe_fc1_bf16_params p, const __grid_constant__ tdm_step_sync sync) {                 \
    MoeFc1Bf16<tokens, stages>::run(p, sync);                                                                          \
  }
#include "kernels/moe_fc1/moe_fc1_bf16_variants.inc"
