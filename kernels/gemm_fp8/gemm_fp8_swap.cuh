#ifndef KERNELS_GEMM_FP8_GEMM_FP8_SWAP_CUH
#define KERNELS_GEMM_FP8_GEMM_FP8_SWAP_CUH

/* The swapped form of the block-scaled FP8 GEMM, for gemm_fp8 and moe_fc2: d[n, m] = w[n, :] x[m, :], so that weights
 * fill the 64-row side of wgmma and few tokens waste nothing.
 *
 *   warpgroup 0        warp 0, one lane: weights    stage:  w        2 x [kRows][128] e4m3, swizzled
 *   (producer, TMA)    warp 1, one lane: tokens             x        2 x [kTokens][128] e4m3, swizzled
 *   warpgroups 1, 2    wgmma, promotion, epilogue           scale    2 x [kTokens] f32
 *
 * kRows = 128: both consumers work on one tile, 64 weight rows each, and promote while the other multiplies.
 * kRows = 64: they take units in turn, so that one stores while the other multiplies; half the tile balances small N
 * better. order[] hands the turn over: a consumer that ran ahead would take the parity of a stage's earlier phase for
 * its own.
 * kMoe: the form of moe_fc2. A block whose activation scale is 0 leaves the sum untouched, whatever it holds; segments
 * may begin on odd blocks; there may be an addend. */

#include "kernels/device/gemm.cuh"
#include "kernels/gemm_fp8/gemm_fp8_params.h"

namespace tdm {

template <int kRows, int kTokens, int kStages> struct GemmFp8SwapShared {
  alignas(1024) uint8_t w[kStages][2][kRows * 128];
  alignas(1024) uint8_t x[kStages][2][kTokens * 128];
  alignas(128) float scale[kStages][TDM_GEMM_FP8_SCALE_BYTES(kTokens) / 4];
  alignas(16) uint8_t staged[2][TDM_GEMM_FP8_STAGED_ROWS(kTokens) * kStagedRowBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t order[2];
  uint32_t flag[2];
};

template <int kRows, int kTokens, int kStages, bool kMoe> struct GemmFp8Swap {
  using Shared = GemmFp8SwapShared<kRows, kTokens, kStages>;
  static_assert(sizeof(Shared) == TDM_GEMM_FP8_SWAP_SHARED(kRows, kTokens, kStages), "launch size");
  /* With few tokens registers for two CTAs, so that a small next kernel of the lane begins beside this one. */
  static constexpr bool kTwoCtas = kTokens <= 16;
  static_assert(sizeof(Shared) <= (kTwoCtas ? 115712 : 232448), "shared memory of a Hopper CTA, or of half an SM");

  struct Walk {
    const tdm_gemm_fp8_params& p;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_gemm_fp8_params& params, int32_t live_tokens)
        : p(params), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens), n_tiles((p.n + kRows - 1) / kRows),
          units(m_tiles * n_tiles * p.parts) {
      if (!serial()) return;
      const int32_t cta = static_cast<int32_t>(blockIdx.x), ctas = static_cast<int32_t>(gridDim.x);
      units = cta + max(units - cta + ctas - 1, 0) / ctas * p.segments * ctas;
    }
    /* Whether a CTA goes through the segments of a tile one after the other, each as a unit. */
    __device__ bool serial() const {
      return p.segments > p.parts;
    }
    __device__ Unit at(int32_t index) const {
      if (!serial()) return unit_at(index, m_tiles, p.segments, n_tiles);
      const int32_t cta = static_cast<int32_t>(blockIdx.x), ctas = static_cast<int32_t>(gridDim.x);
      const int32_t turn = (index - cta) / ctas;
      Unit unit = unit_at(cta + turn / p.segments * ctas, m_tiles, 1, n_tiles);
      unit.segment = turn % p.segments;
      return unit;
    }
    /* Whether all units are under way at once. */
    __device__ bool one_wave() const {
      return units <= static_cast<int32_t>(gridDim.x);
    }
    __device__ int32_t begin(const Unit& unit) const {
      return segment_begin(unit.segment, p.segments, p.k_blocks, p.granule);
    }
    __device__ int32_t end(const Unit& unit) const {
      return segment_begin(unit.segment + 1, p.segments, p.k_blocks, p.granule);
    }
  };

  __device__ static void load_weights(const tdm_gemm_fp8_params& p, Shared& shared, const tdm_step_sync& sync) {
    const uint64_t once = l2_evict_first();
    const auto live = [&] { return live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens;
    if (!ahead) step_wait(sync);
    const Walk walk(p, ahead ? p.m : live());
    fill_weights<kStages, 2>(sync, ahead, walk, live, shared.full, shared.empty, 2 * 128 * kRows,
                             [&](const Unit& unit, int32_t kb, uint32_t slot) {
                               tma_load_3d(shared.w[slot], &p.w, &shared.full[slot], once, 0, unit.n_tile * kRows, kb);
                             });
  }

  __device__ static void load_tokens(const tdm_gemm_fp8_params& p, Shared& shared) {
    const uint64_t often = l2_evict_last();
    const Walk walk(p, live_rows(p.n_tokens, p.m));
    fill_stages<kStages, 2>(walk, shared.full, shared.empty, 2 * 128 * kTokens + 2 * 4 * kTokens,
                            [&](const Unit& unit, int32_t kb, uint32_t slot) {
                              const int32_t m0 = unit.m_tile * kTokens;
                              tma_load_3d(shared.x[slot], &p.x, &shared.full[slot], often, 0, m0, kb);
                              tma_load_2d(shared.scale[slot], &p.x_scale, &shared.full[slot], often, m0, kb);
                              return true;
                            });
  }

  /* c += (activation scale * weight scale) * acc, the order of the reference. */
  __device__ static __forceinline__ void promote(float (&c)[kTokens / 2], const float (&acc)[kTokens / 2],
                                                 const float* scale, float w_scale) {
    const float* mine = scale + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      const float2 s = *reinterpret_cast<const float2*>(mine + 8 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float token = j % 2 == 0 ? s.x : s.y;
        if (!kMoe || token != 0.0f) c[4 * i + j] = fmaf(token * w_scale, acc[4 * i + j], c[4 * i + j]);
      }
    }
  }

  /* Of the two blocks of a stage. */
  struct Products {
    float acc[2][kTokens / 2];
    float w_scale[2];
  };

  /* A warpgroup: multiplies its units and stores them. While a stage is promoted the tensor cores work on the next. */
  __device__ static void multiply(const tdm_gemm_fp8_params& p, Shared& shared, uint32_t consumer) {
    const Walk walk(p, live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    const uint32_t w_offset = kRows == 128 ? consumer * 64 * 128 : 0;
    Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    float total[kTokens / 2];
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const Unit unit = walk.at(u);
      const bool first = !walk.serial() || unit.segment == 0, last = !walk.serial() || unit.segment + 1 == p.segments;
      const uint32_t whose = turn;
      if (last) turn ^= 1;
      const int32_t begin = walk.begin(unit), end = walk.end(unit);
      if (kRows == 64 && whose != consumer) {
        ring.advance_by(static_cast<uint32_t>((end - begin + 1) / 2));
        continue;
      }
      const int32_t n0 = unit.n_tile * kRows + (kRows == 128 ? static_cast<int32_t>(consumer) * 64 : 0);
      const int32_t m0 = unit.m_tile * kTokens;
      /* Lane l holds the weight scale of block `batch + l`: one load for 32 blocks, handed around by shuffles. */
      const float* w_scales = p.w_scale + min(n0, p.n - 1) / 128 * p.w_scale_stride;
      const auto fetch = [&](int32_t batch) {
        const int32_t block = batch + static_cast<int32_t>(lane);
        return block < end ? __ldg(w_scales + block) : 0.0f;
      };
      float scales = 0.0f, next_scales = fetch(begin);

      float c[kTokens / 2];
      Products products[2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) c[i] = 0.0f;

      uint32_t slot = 0; /* of the stage that is promoted next */
      const auto issue = [&](int32_t kb, Products& to) {
        const int32_t in_batch = (kb - begin) % 32;
        if (in_batch == 0) {
          scales = next_scales;
          next_scales = fetch(kb + 32);
        }
        mbarrier_wait(&shared.full[ring.slot], ring.parity);
        wgmma_fence();
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          const uint64_t w = wgmma_descriptor(shared.w[ring.slot][block] + w_offset);
          const uint64_t x = wgmma_descriptor(shared.x[ring.slot][block]);
#pragma unroll
          for (int k = 0; k < 4; ++k) wgmma_e4m3<kTokens>::issue(to.acc[block], w + 2 * k, x + 2 * k, k != 0);
          wgmma_commit();
          to.w_scale[block] = __shfl_sync(~0u, scales, in_batch + block);
        }
        ring.advance();
      };
      /* `pending`: how many blocks issued since may still be under way. */
      const auto finish = [&](auto pending, int32_t kb, Products& from) {
        constexpr int kPending = decltype(pending)::value;
        const float* scale = shared.scale[slot];
        wgmma_wait<kPending + 1>();
        wgmma_settle(from.acc[0]);
        promote(c, from.acc[0], scale, from.w_scale[0]);
        wgmma_wait<kPending>();
        wgmma_settle(from.acc[1]);
        /* The last stage's second block may be the next segment's. */
        if (!kMoe || kb + 1 < end) promote(c, from.acc[1], scale + kTokens, from.w_scale[1]);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&shared.empty[slot]);
        if (++slot == kStages) slot = 0;
      };
      using Two = Constant<2>;
      using None = Constant<0>;

      if (kRows == 64 && first) {
        mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      slot = ring.slot;
      issue(begin, products[0]);
      int32_t kb = begin + 2;
      for (; kb + 2 < end; kb += 4) {
        issue(kb, products[1]);
        finish(Two(), kb - 2, products[0]);
        issue(kb + 2, products[0]);
        finish(Two(), kb, products[1]);
      }
      if (kb < end) {
        issue(kb, products[1]);
        finish(Two(), kb - 2, products[0]);
        finish(None(), kb, products[1]);
      } else {
        finish(None(), kb - 2, products[0]);
      }
      if (kRows == 64 && last && lane == 0) mbarrier_arrive(&shared.order[consumer ^ 1]);
      if (walk.serial()) {
        add_in_turn(total, c, first);
        if (!last) continue;
      }

      uint32_t groups = kAllGroups;
      if (p.parts > 1) {
        const int32_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
        const int64_t tile = int64_t{n0 / 64} * all_m_tiles + unit.m_tile;
        if (n0 >= p.n) continue;
        groups = add_segments(c, p.partials, p.counters, tile, unit.segment, p.segments, walk.one_wave(),
                              &shared.flag[consumer], barrier);
        if (groups == 0) continue;
      }
      if constexpr (kMoe) add(p, c, walk.live, m0, n0);
      store_swapped<kTokens>(c, Output{p.out, p.out_stride, p.out_dtype, walk.live, p.n}, m0, n0, groups,
                             shared.staged[consumer], barrier);
    }
  }

  __device__ static void add(const tdm_gemm_fp8_params& p, float (&c)[kTokens / 2], int32_t live, int32_t m0,
                             int32_t n0) {
    if (p.addend == nullptr) return;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int32_t n = n0 + 16 * warp + lane / 4 + 8 * (i / 2 % 2), m = m0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if (m < live && n < p.n) c[i] += load_element(p.addend, p.addend_dtype, m * p.addend_stride + n);
    }
  }

  __device__ static void run(const tdm_gemm_fp8_params& p, const tdm_step_sync& sync) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
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
      tma_prefetch_map(&p.x_scale);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      if constexpr (!kTwoCtas) registers_lower<40>();
      if (threadIdx.x == 0) load_weights(p, shared, sync);
      if (threadIdx.x == 32) {
        step_wait(sync);
        load_tokens(p, shared);
      }
    } else {
      if constexpr (!kTwoCtas) registers_raise<232>();
      step_wait(sync);
      multiply(p, shared, threadIdx.x / 128 - 1);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
