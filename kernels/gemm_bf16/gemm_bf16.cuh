#ifndef KERNELS_GEMM_BF16_GEMM_BF16_CUH
#define KERNELS_GEMM_BF16_GEMM_BF16_CUH

/* The BF16 GEMM, for gemm_bf16, router_gemm and moe_gate (bmm_quant has its stages and products, but another walk and
 * epilogue; moe_fc2 its stages alone): d[n, m] = w[n, :] x[m, :] as in gemm_fp8_swap.cuh, whose roles and order of
 * turns these are; accumulation stays in the tensor cores' f32 over a whole segment.
 *
 *   stage:  w  2 x [kRows][64] bf16, swizzled; MN-major: 2 x kRows/64 x [64 of K][64 of N]
 *           x  2 x [kTokens][64] bf16, swizzled
 *
 * docs/kernels/gemm_bf16.md has figures and what was tried. */

#include "kernels/device/gemm.cuh"
#include "kernels/gemm_bf16/gemm_bf16_params.h"

namespace tdm {

template <int kRows, int kTokens, int kStages> struct GemmBf16Shared {
  alignas(1024) uint8_t w[kStages][2][kRows * 128];
  alignas(1024) uint8_t x[kStages][2][kTokens * 128];
  alignas(16) uint8_t staged[2][TDM_GEMM_BF16_STAGED_ROWS(kTokens) * kStagedRowBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t order[2];
  uint32_t flag[2];
};

/* What a launch does besides: a thread before it waits. */
struct NothingMore {
  static constexpr bool kApart = false; /* segments of a sum are left in the workspace, [segment][m][n], for a later
                                           launch to add up */
  __device__ void ahead() const {
  }
};

template <int kRows, int kTokens, int kStages, bool kMnMajor> struct GemmBf16 {
  using Shared = GemmBf16Shared<kRows, kTokens, kStages>;
  static_assert(sizeof(Shared) == TDM_GEMM_BF16_SHARED(kRows, kTokens, kStages), "launch size");
  static constexpr bool kTwoCtas = kRows == 64 && kTokens <= 32; /* as GemmFp8Swap */
  static_assert(sizeof(Shared) <= (kTwoCtas ? 115712 : 232448), "shared memory of a Hopper CTA, or of half an SM");

  struct Walk {
    const tdm_gemm_bf16_params& p;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_gemm_bf16_params& params, int32_t live_tokens)
        : p(params), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens), n_tiles((p.n + kRows - 1) / kRows),
          units(m_tiles * n_tiles * p.segments * p.batch) {
    }
    __device__ Unit at(int32_t index) const {
      return unit_at(index, m_tiles, p.segments, n_tiles);
    }
    /* Whether all units are under way at once. */
    __device__ bool one_wave() const {
      return units <= static_cast<int32_t>(gridDim.x);
    }
    __device__ int32_t begin(const Unit& unit) const {
      return segment_begin(unit.segment, p.segments, p.k_blocks, 2);
    }
    __device__ int32_t end(const Unit& unit) const {
      return segment_begin(unit.segment + 1, p.segments, p.k_blocks, 2);
    }
  };

  /* A stage's part of a unit, from block kb on. Where K ends inside a stage, zeros arrive. */
  __device__ static __forceinline__ void copy_weights(const tdm_gemm_bf16_params& p, Shared& shared, const Unit& unit,
                                                      int32_t kb, uint32_t slot, uint64_t policy) {
    const int32_t n0 = unit.n_tile * kRows;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const int32_t k0 = (kb + block) * 64;
      uint8_t* w = shared.w[slot][block];
      if constexpr (kMnMajor) {
#pragma unroll
        for (int part = 0; part < kRows / 64; ++part)
          tma_load_3d(w + part * 64 * 128, &p.w, &shared.full[slot], policy, n0 + part * 64, k0, unit.batch);
      } else {
        tma_load_3d(w, &p.w, &shared.full[slot], policy, k0, n0, unit.batch);
      }
    }
  }

  __device__ static __forceinline__ void copy_tokens(const tdm_gemm_bf16_params& p, Shared& shared, const Unit& unit,
                                                     int32_t kb, uint32_t slot, uint64_t policy) {
#pragma unroll
    for (int block = 0; block < 2; ++block)
      tma_load_3d(shared.x[slot][block], &p.x, &shared.full[slot], policy, (kb + block) * 64, unit.m_tile * kTokens,
                  unit.batch);
  }

  __device__ static void load_weights(const tdm_gemm_bf16_params& p, Shared& shared, const tdm_step_sync& sync) {
    const uint64_t once = l2_evict_first();
    const auto live = [&] { return live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens;
    if (!ahead) step_wait(sync);
    const Walk walk(p, ahead ? p.m : live());
    fill_weights<kStages, 2>(
        sync, ahead, walk, live, shared.full, shared.empty, 2 * 128 * kRows,
        [&](const Unit& unit, int32_t kb, const auto& at) { copy_weights(p, shared, unit, kb, at.slot, once); });
  }

  __device__ static void load_tokens(const tdm_gemm_bf16_params& p, Shared& shared) {
    const uint64_t often = l2_evict_last();
    const Walk walk(p, live_rows(p.n_tokens, p.m));
    fill_stages<kStages, 2>(walk, shared.full, shared.empty, 2 * 128 * kTokens,
                            [&](const Unit& unit, int32_t kb, const auto& at) {
                              copy_tokens(p, shared, unit, kb, at.slot, often);
                              return true;
                            });
  }

  /* The 64 rows of a unit that a warpgroup has, whose rows of w lie `w_offset` bytes into a block. A stage is given
   * back when the next one's products are under way. */
  __device__ static __forceinline__ void accumulate(Shared& shared, Ring<kStages>& ring, float (&c)[kTokens / 2],
                                                    int32_t begin, int32_t end, uint32_t w_offset) {
    constexpr uint32_t kStepOfW = kMnMajor ? 128 : 2; /* 16 of K in descriptor units */
    const uint32_t lane = threadIdx.x % 32;
    uint32_t previous = kStages;
    for (int32_t kb = begin; kb < end; kb += 2) {
      const uint32_t w = same_in_warp(wgmma_descriptor_lower(shared.w[ring.slot][0] + w_offset));
      const uint32_t x = same_in_warp(wgmma_descriptor_lower(shared.x[ring.slot][0]));
      mbarrier_wait(&shared.full[ring.slot], ring.parity);
      wgmma_fence();
#pragma unroll
      for (uint32_t block = 0; block < 2; ++block) {
        constexpr uint32_t kBlockOfW = sizeof shared.w[0][0] / 16, kBlockOfX = sizeof shared.x[0][0] / 16;
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k)
          wgmma_bf16<kTokens>::template issue<kMnMajor>(c, wgmma_descriptor_whole(w + block * kBlockOfW + kStepOfW * k),
                                                        wgmma_descriptor_whole(x + block * kBlockOfX + 2 * k),
                                                        block + k != 0 || kb != begin);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (previous != kStages && lane == 0) mbarrier_arrive(&shared.empty[previous]);
      previous = ring.slot;
      ring.advance();
    }
    wgmma_wait<0>();
    wgmma_settle(c);
    if (lane == 0) mbarrier_arrive(&shared.empty[previous]);
  }

  /* A warpgroup: multiplies its units and stores them. */
  template <bool kApart>
  __device__ static void multiply(const tdm_gemm_bf16_params& p, Shared& shared, uint32_t consumer) {
    const Walk walk(p, live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    const uint32_t w_offset = kRows == 128 ? consumer * 64 * 128 : 0;
    Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      const Unit unit = walk.at(u);
      const int32_t begin = walk.begin(unit), end = walk.end(unit);
      if (kRows == 64 && turn != consumer) {
        ring.advance_by(static_cast<uint32_t>((end - begin + 1) / 2));
        continue;
      }
      if (kRows == 64) {
        mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      float c[kTokens / 2];
      accumulate(shared, ring, c, begin, end, w_offset);
      if (kRows == 64 && lane == 0) mbarrier_arrive(&shared.order[consumer ^ 1]);

      const int32_t n0 = unit.n_tile * kRows + (kRows == 128 ? static_cast<int32_t>(consumer) * 64 : 0);
      if (n0 >= p.n) continue;
      if constexpr (kApart) {
        const Output part{p.partials + int64_t{unit.segment} * p.m * p.n, p.n, TDM_KERNEL_F32, walk.live, p.n};
        store_swapped<kTokens>(c, part, unit.m_tile * kTokens, n0, kAllGroups, shared.staged[consumer], barrier);
        continue;
      }
      uint32_t groups = kAllGroups;
      if (p.segments > 1) {
        const int64_t all_m_tiles = (p.m + kTokens - 1) / kTokens, tiles_of_n = (p.n + 63) / 64;
        const int64_t tile = (unit.batch * tiles_of_n + n0 / 64) * all_m_tiles + unit.m_tile;
        groups = add_segments(c, p.partials, p.counters, tile, unit.segment, p.segments, walk.one_wave(),
                              &shared.flag[consumer], barrier);
        if (groups == 0) continue;
      }
      const int64_t element = p.out_dtype == TDM_KERNEL_F32 ? 4 : 2;
      const Output out{static_cast<uint8_t*>(p.out) + unit.batch * p.out_batch_stride * element, p.out_stride,
                       p.out_dtype, walk.live, p.n};
      store_swapped<kTokens>(c, out, unit.m_tile * kTokens, n0, groups, shared.staged[consumer], barrier);
    }
  }

  /* Barriers; all threads, first of all. */
  __device__ static void prepare(const tdm_gemm_bf16_params& p, Shared& shared, const tdm_step_sync& sync) {
    step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&shared.full[i], 2);
        mbarrier_init(&shared.empty[i], kRows / 16);
      }
      mbarrier_init(&shared.order[0], 4);
      mbarrier_init(&shared.order[1], 4);
      fence_barrier_init();
      tma_prefetch_map(&p.w);
      tma_prefetch_map(&p.x);
    }
    __syncthreads();
  }

  template <class More = NothingMore>
  __device__ static void run(const tdm_gemm_bf16_params& p, const tdm_step_sync& sync, const More& more = {}) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    constexpr bool kUneven = !kTwoCtas;
    prepare(p, shared, sync);
    if (threadIdx.x < 128) {
      if constexpr (kUneven) registers_lower<40>();
      if (threadIdx.x == 0) load_weights(p, shared, sync);
      if (threadIdx.x == 32) {
        step_wait(sync);
        load_tokens(p, shared);
      }
      if (threadIdx.x == 64) more.ahead();
    } else {
      if constexpr (kUneven) registers_raise<kTwoCtas ? 96 : 232>();
      step_wait(sync);
      multiply<More::kApart>(p, shared, threadIdx.x / 128 - 1);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
