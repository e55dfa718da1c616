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

#include "kernels/gemm_fp8/gemm_fp8.cuh"

namespace tdm {

template <int kRows, int kTokens, int kStages> struct GemmFp8SwapShared {
  alignas(1024) uint8_t w[kStages][2][kRows * 128];
  alignas(1024) uint8_t x[kStages][2][kTokens * 128];
  alignas(128) float scale[2][kStages][TDM_GEMM_FP8_SCALE_BYTES(kTokens) / 4];
  alignas(16) uint8_t staged[2][TDM_GEMM_FP8_STAGED_ROWS(kTokens) * kStagedRowBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t order[2];
  uint32_t flag[2];
};

template <int kRows, int kTokens, int kStages, bool kMoe> struct GemmFp8Swap {
  using Shared = GemmFp8SwapShared<kRows, kTokens, kStages>;
  static_assert(sizeof(Shared) == TDM_GEMM_FP8_SWAP_SHARED(kRows, kTokens, kStages), "launch size");
  /* With few tokens two CTAs fit on an SM, so that the next kernel of the lane asks for its weights while this one is
   * at its end. 128 x 16 is 1 KB above half an SM; where it runs there are many tiles, and an SM has one CTA anyway. */
  static constexpr bool kTwoCtas = kTokens <= (kMoe ? 16 : 32);
  static constexpr size_t kMost = !kTwoCtas ? 232448 : kRows == 128 && kTokens == 16 ? 116736 : 115712;
  static_assert(sizeof(Shared) <= kMost - (kMoe && !kTwoCtas ? 4 * Hits::kMost : 0), "shared memory of a Hopper CTA");

  /* Stages of two blocks along K, counted through the experts that count; an expert's last stage has one block where
   * their number is odd. Without experts (kMoe false) all of K is one sequence. */
  struct Walk {
    const tdm_gemm_fp8_params& p;
    const Hits hits;
    int32_t live, m_tiles, n_tiles, units, expert_stages;

    __device__ Walk(const tdm_gemm_fp8_params& params, const Hits& experts, int32_t live_tokens)
        : p(params), hits(experts), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles((p.n + kRows - 1) / kRows), units(m_tiles * n_tiles * (in_turn() ? 1 : p.segments)),
          expert_stages((p.granule + 1) / 2) {
    }
    /* Whether a unit is all segments of a tile. */
    __device__ bool in_turn() const {
      return kMoe && p.split == 0;
    }
    __device__ Unit at(int32_t index) const {
      return unit_at(index, m_tiles, in_turn() ? 1 : p.segments, n_tiles);
    }
    /* First stage of a unit, and the one after its last. */
    __device__ int32_t begin(const Unit& unit) const {
      return in_turn() ? 0 : segment(unit.segment);
    }
    __device__ int32_t end(const Unit& unit) const {
      return segment(in_turn() ? p.segments : unit.segment + 1);
    }
    /* First stage of a segment. */
    __device__ int32_t segment(int32_t segment) const {
      return stage_of(segment_begin(segment, p.segments, p.k_blocks, p.granule));
    }
    __device__ int32_t stage_of(int32_t block) const {
      return kMoe ? hits.below(block / p.granule) * expert_stages : (block + 1) / 2;
    }
    __device__ int32_t block(int32_t stage) const {
      if (!kMoe) return 2 * stage;
      if (expert_stages == 1) return hits.expert(stage) * p.granule;
      return hits.expert(stage / expert_stages) * p.granule + 2 * (stage % expert_stages);
    }
    /* Whether the stage's second block belongs to it. */
    __device__ bool is_whole(int32_t stage) const {
      if (!kMoe || p.granule % 2 == 0) return true;
      return (stage + 1) % expert_stages != 0;
    }
  };

  __device__ static void load_weights(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared,
                                      const tdm_step_sync& sync, bool ahead) {
    const uint64_t once = l2_evict_first();
    const auto live = [&] { return live_rows(p.n_tokens, p.m); };
    if (!ahead) step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 2 * 128 * kRows,
                             [&](const Unit& unit, int32_t stage, const auto& at) {
                               tma_load_3d(shared.w[at.slot], &p.w, &shared.full[at.slot], once, 0, unit.n_tile * kRows,
                                           walk.block(stage));
                             });
  }

  __device__ static void load_tokens(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared) {
    const uint64_t often = l2_evict_last();
    const Walk walk(p, hits, live_rows(p.n_tokens, p.m));
    fill_stages<kStages, 1>(
        walk, shared.full, shared.empty, 2 * 128 * kTokens + 2 * 4 * kTokens,
        [&](const Unit& unit, int32_t stage, const auto& at) {
          const int32_t m0 = unit.m_tile * kTokens, kb = walk.block(stage);
          const int32_t group = p.group_n == 0 ? 0 : unit.n_tile * kRows / p.group_n;
          const int32_t row = group * p.group_rows + m0, scale_row = group * p.group_scale_rows + kb;
          tma_load_3d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, 0, row, kb);
          tma_load_2d(shared.scale[at.parity][at.slot], &p.x_scale, &shared.full[at.slot], often, m0, scale_row);
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

  /* A warpgroup: multiplies its units and stores them. */
  __device__ static void multiply(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared, uint32_t consumer) {
    const Walk walk(p, hits, live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32, barrier = 1 + consumer;
    const uint32_t w_offset = kRows == 128 ? consumer * 64 * 128 : 0;
    Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      const Unit unit = walk.at(u);
      int32_t begin = walk.begin(unit), end = walk.end(unit);
      if (kRows == 64 && turn != consumer) {
        ring.advance_by(static_cast<uint32_t>(end - begin));
        continue;
      }
      if (walk.in_turn()) end = walk.segment(1);
      const int32_t n0 = unit.n_tile * kRows + (kRows == 128 ? static_cast<int32_t>(consumer) * 64 : 0);
      const int32_t m0 = unit.m_tile * kTokens;
      /* Lane l holds the weight scales of stage `batch + l`: one load for 32 stages, handed around by shuffles. */
      const float* w_scales = p.w_scale + min(n0, p.n - 1) / 128 * p.w_scale_stride;
      const auto fetch = [&](int32_t batch) {
        const int32_t stage = batch + static_cast<int32_t>(lane);
        if (stage >= end) return make_float2(0.0f, 0.0f);
        const int32_t kb = walk.block(stage);
        return make_float2(__ldg(w_scales + kb), kb + 1 < p.k_blocks ? __ldg(w_scales + kb + 1) : 0.0f);
      };
      /* Fetched a batch ahead where registers allow. */
      constexpr bool kEarly = !kMoe || kTokens < 128;
      float2 scales = make_float2(0.0f, 0.0f), next_scales = kEarly ? fetch(begin) : scales;

      float c[kTokens / 2], acc[2][kTokens / 2], total[kMoe ? kTokens / 2 : 1];
      if (kRows == 64) {
        mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      for (int32_t segment = 0;; ++segment) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) c[i] = 0.0f;
        for (int32_t stage = begin; stage < end; ++stage) {
          const int32_t in_batch = (stage - begin) % 32;
          if (in_batch == 0) {
            scales = kEarly ? next_scales : fetch(stage);
            if constexpr (kEarly) next_scales = fetch(stage + 32);
          }
          mbarrier_wait(&shared.full[ring.slot], ring.parity);
          const float* scale = shared.scale[ring.parity][ring.slot];
          const auto issue = [&](float(&d)[kTokens / 2], int block) {
            const uint64_t w = wgmma_descriptor(shared.w[ring.slot][block] + w_offset);
            const uint64_t x = wgmma_descriptor(shared.x[ring.slot][block]);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; ++k) wgmma_e4m3<kTokens>::issue(d, w + 2 * k, x + 2 * k, k != 0);
            wgmma_commit();
          };
          const float first_scale = __shfl_sync(~0u, scales.x, in_batch),
                      second_scale = __shfl_sync(~0u, scales.y, in_batch);
          issue(acc[0], 0);
          issue(acc[1], 1);
          wgmma_wait<1>();
          wgmma_settle(acc[0]);
          promote(c, acc[0], scale, first_scale);
          wgmma_wait<0>();
          wgmma_settle(acc[1]);
          if (walk.is_whole(stage)) promote(c, acc[1], scale + kTokens, second_scale);
          __syncwarp();
          if (lane == 0) mbarrier_arrive(&shared.empty[ring.slot]);
          ring.advance();
        }
        if constexpr (!kMoe) break;
        if (!walk.in_turn() || p.segments == 1) break;
        if constexpr (kMoe) add_in_turn(total, c, segment == 0);
        if (segment + 1 == p.segments) break;
        begin = end;
        end = walk.segment(segment + 2);
        if constexpr (kEarly) next_scales = fetch(begin);
      }
      if (kRows == 64 && lane == 0) mbarrier_arrive(&shared.order[consumer ^ 1]);

      if (p.segments > 1 && !walk.in_turn()) {
        const int32_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
        const int64_t tile = int64_t{n0 / 64} * all_m_tiles + unit.m_tile;
        if (n0 >= p.n) continue;
        if (!kMoe && p.apart != 0) {
          store_swapped_f32<kTokens>(c, segment_output(p, unit.segment, walk.live), m0, n0, kAllGroups);
          continue;
        }
        if (!add_segments(c, p.partials, p.counters, tile, unit.segment, p.segments, false, &shared.flag[consumer],
                          barrier))
          continue;
      }
      if constexpr (kMoe) add(p, c, walk.live, m0, n0);
      store_swapped<kTokens>(c, Output{p.out, p.out_stride, p.out_dtype, walk.live, p.n}, m0, n0, kAllGroups,
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
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
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
    Hits hits{p.n_experts, false};
    if constexpr (kMoe) {
      if (p.hits != nullptr) {
        step_wait(sync);
        hits = load_hits(p.hits, p.n_experts);
      }
    }
    if (threadIdx.x < 128) {
      if constexpr (!kTwoCtas) registers_lower<kMoe ? 56 : 40>();
      const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync, ahead);
      if (threadIdx.x == 32) {
        step_wait(sync);
        load_tokens(p, hits, shared);
      }
    } else {
      if constexpr (!kTwoCtas) registers_raise<kMoe ? 224 : 232>();
      step_wait(sync);
      multiply(p, hits, shared, threadIdx.x / 128 - 1);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
