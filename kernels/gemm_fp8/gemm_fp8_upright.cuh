#ifndef KERNELS_GEMM_FP8_GEMM_FP8_UPRIGHT_CUH
#define KERNELS_GEMM_FP8_GEMM_FP8_UPRIGHT_CUH

/* The upright form of the block-scaled FP8 GEMM, for gemm_fp8, bmm_fp8 and moe_fc2 from 33 to 128 tokens: tokens fill
 * the 64-row side of wgmma as in the plain form, but a tile is 64 weight rows wide, so that few tokens still have a
 * tile for every SM. A thread holds two tokens: promotion is one FFMA a value, and moe_fc2 skips a block by two
 * predicates.
 *
 *   warpgroup 0        warp 0, one lane: TMA        stage:  w        [kRows][128] e4m3, swizzled
 *   (producer)                                              x        [kTokens][128] e4m3, swizzled
 *   warpgroups 1, 2    wgmma, promotion, epilogue           scale    [kTokens] f32
 *
 * Two accumulators in turn: while block b is promoted the tensor cores work on block b + 1.
 *
 *     issue 0 | issue 1, promote 0 | issue 2, promote 1 | ...
 *
 * kTokens = 128: a consumer has 64 of the tokens. kTokens = 64: consumers take units in turn, so that one stores while
 * the other multiplies; order[] hands the turn over as in the swapped form. */

#include "kernels/gemm_fp8/gemm_fp8.cuh"

namespace tdm {

template <int kRows, int kTokens, int kStages> struct GemmFp8UprightShared {
  alignas(1024) uint8_t w[kStages][kRows * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(128) float scale[2][kStages][kTokens];
  alignas(16) uint8_t staged[8][16 * kStagedRowBytes]; /* a warp's 16 tokens by 64 columns */
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t order[2];
  uint32_t flag[2];
};

template <int kRows, int kTokens, int kStages, bool kMoe> struct GemmFp8Upright {
  using Shared = GemmFp8UprightShared<kRows, kTokens, kStages>;
  static_assert(sizeof(Shared) == TDM_GEMM_FP8_UPRIGHT_SHARED(kRows, kTokens, kStages), "launch size");
  static_assert(sizeof(Shared) <= 232448 - (kMoe ? 4 * Hits::kMost : 0), "shared memory of a Hopper CTA");
  static_assert(kTokens == 64 || kTokens == 128, "a consumer has 64 tokens");
  static constexpr bool kTurns = kTokens == 64;
  static constexpr int kCount = kRows / 2;             /* elements of a fragment */
  static constexpr bool kInTurn = kMoe && kRows == 64; /* where not p.split, a unit is all segments of a tile */

  /* Blocks along K, counted through the experts that count (kMoe), else one sequence. */
  struct Walk {
    const tdm_gemm_fp8_params& p;
    const Hits hits;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_gemm_fp8_params& params, const Hits& experts, int32_t live_tokens)
        : p(params), hits(experts), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles((p.n + kRows - 1) / kRows), units(m_tiles * n_tiles * (in_turn() ? 1 : p.segments)) {
    }
    __device__ bool in_turn() const {
      return kInTurn && p.split == 0;
    }
    __device__ Unit at(int32_t index) const {
      return unit_at(index, m_tiles, in_turn() ? 1 : p.segments, n_tiles);
    }
    /* Whether all units are under way at once. */
    __device__ bool one_wave() const {
      return units <= static_cast<int32_t>(gridDim.x);
    }
    /* First position of a unit, and the one after its last; a segment without experts has none. */
    __device__ int32_t begin(const Unit& unit) const {
      return in_turn() ? 0 : segment(unit.segment);
    }
    __device__ int32_t end(const Unit& unit) const {
      return segment(in_turn() ? p.segments : unit.segment + 1);
    }
    /* First position of a segment. */
    __device__ int32_t segment(int32_t segment) const {
      return position(segment_begin(segment, p.segments, p.k_blocks, p.granule));
    }
    __device__ int32_t position(int32_t block) const {
      return kMoe && hits.listed ? hits.below(block / p.granule) * p.granule : block;
    }
    __device__ int32_t block(int32_t position) const {
      if (!kMoe || !hits.listed) return position;
      return hits.expert(position / p.granule) * p.granule + position % p.granule;
    }
  };

  __device__ static void load_weights(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared,
                                      const tdm_step_sync& sync) {
    const uint64_t once = l2_evict_first();
    const auto live = [&] { return live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
    if (!ahead) step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 128 * kRows,
                             [&](const Unit& unit, int32_t position, const auto& at) {
                               tma_load_3d(shared.w[at.slot], &p.w, &shared.full[at.slot], once, 0, unit.n_tile * kRows,
                                           walk.block(position));
                             });
  }

  __device__ static void load_tokens(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared) {
    const uint64_t often = l2_evict_last();
    const Walk walk(p, hits, live_rows(p.n_tokens, p.m));
    fill_stages<kStages, 1>(walk, shared.full, shared.empty, (128 + 4) * loaded_rows(p.m, kTokens),
                            [&](const Unit& unit, int32_t position, const auto& at) {
                              const int32_t m0 = unit.m_tile * kTokens, kb = walk.block(position);
                              const int32_t group = p.group_n == 0 ? 0 : unit.n_tile * kRows / p.group_n;
                              const int32_t row = group * p.group_rows + m0;
                              const int32_t scale_row = group * p.group_scale_rows + kb;
                              tma_load_3d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, 0, row, kb);
                              tma_load_2d(shared.scale[at.parity][at.slot], &p.x_scale, &shared.full[at.slot], often,
                                          m0, scale_row);
                              return true;
                            });
  }

  /* The scales of a block for the thread's two tokens, those of its upper and its lower row, and for the weights. */
  struct Scales {
    float upper, lower, weight;
  };

  /* activation scale * weight scale, the order of the reference. Opaque, or the compiler multiplies once a predicate.
   */
  static __device__ __forceinline__ float product(float token, float weight) {
    return kept(token * weight);
  }

  static __device__ __forceinline__ void promote(float (&c)[kCount], const float (&acc)[kCount], const Scales& scales,
                                                 float upper, float lower) {
    const bool takes_upper = scales.upper != 0.0f, takes_lower = scales.lower != 0.0f;
    if (kMoe && !__any_sync(~0u, takes_upper || takes_lower)) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool is_upper = i / 2 % 2 == 0;
      if (!kMoe || (is_upper ? takes_upper : takes_lower)) c[i] = fmaf(is_upper ? upper : lower, acc[i], c[i]);
    }
  }

  /* A warpgroup: multiplies its units and stores them. */
  __device__ static void multiply(const tdm_gemm_fp8_params& p, const Hits& hits, Shared& shared, uint32_t consumer) {
    const Walk walk(p, hits, same_in_warp(live_rows(p.n_tokens, p.m)));
    const uint32_t lane = kept(threadIdx.x % 32), warp = threadIdx.x % 128 / 32, barrier = 1 + consumer;
    const uint32_t first_token = kTurns ? 0 : 64 * consumer, token = first_token + 16 * warp + lane / 4;
    Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    const uint32_t x_tiles = kept(wgmma_descriptor_lower(shared.x[0] + first_token * 128));
    const uint32_t w_tiles = kept(wgmma_descriptor_lower(shared.w[0]));
    const uint32_t scale_bytes = kept(4 * token);
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const Unit unit = walk.at(u);
      const uint32_t whose = turn;
      turn ^= 1;
      const int32_t n0 = unit.n_tile * kRows;
      int32_t begin = same_in_warp(walk.begin(unit)), end = same_in_warp(walk.end(unit));
      if (kTurns && whose != consumer) {
        ring.advance_by(static_cast<uint32_t>(end - begin));
        continue;
      }
      if (walk.in_turn()) end = same_in_warp(walk.segment(1));
      /* Behind a segment's first block lane l holds the weight scale of block `batch + l`: one load for 32 blocks,
       * handed around by shuffles. */
      const float* const w_scales = kept(p.w_scale + n0 / 128 * p.w_scale_stride);
      const auto fetch = [&](int32_t batch) {
        return __ldg(w_scales + walk.block(min(batch + static_cast<int32_t>(lane), end - 1)));
      };
      const auto fetch_first = [&] { return __ldg(w_scales + walk.block(begin)); };
      float first_w_scale = 0.0f, next_w_scale = 0.0f;
      if (begin < end) {
        first_w_scale = fetch_first();
        next_w_scale = fetch(begin + 1);
      }

      float c[kCount], acc[2][kCount], total[kInTurn ? kCount : 1];
      Scales scales[2];
      uint32_t slot = 0; /* of the block that is promoted next */
      const auto issue = [&](float w_scale, float(&d)[kCount], Scales& s) {
        const uint32_t x = x_tiles + ring.slot * (kTokens * 8), w = w_tiles + ring.slot * (kRows * 8);
        mbarrier_wait(&shared.full[ring.slot], ring.parity);
        const float* const scale = reinterpret_cast<const float*>(
            reinterpret_cast<const char*>(shared.scale[ring.parity][ring.slot]) + scale_bytes);
        s = Scales{scale[0], scale[8], w_scale};
        wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k)
          wgmma_e4m3<kRows>::issue(d, wgmma_descriptor_whole(x + 2 * k), wgmma_descriptor_whole(w + 2 * k), k != 0);
        wgmma_commit();
        ring.advance();
      };
      /* Block by block, at most `kPending` of the products issued since are still under way. */
      const auto finish = [&](auto pending, float(&d)[kCount], const Scales& s) {
        const float upper = product(s.upper, s.weight), lower = product(s.lower, s.weight);
        wgmma_wait<decltype(pending)::value>();
        wgmma_settle(d);
        if (lane == 0) mbarrier_arrive(&shared.empty[slot]);
        if (++slot == kStages) slot = 0;
        promote(c, d, s, upper, lower);
      };
      using One = Constant<1>;
      using None = Constant<0>;

      if (kTurns) {
        mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      for (int32_t segment = 0;; ++segment) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) c[i] = 0.0f;
        ring.slot = same_in_warp(ring.slot);
        ring.parity = same_in_warp(ring.parity);
        slot = ring.slot;
        if (!kMoe || begin < end) {
          issue(first_w_scale, acc[0], scales[0]);
          int32_t kb = begin + 1;
          float w_scale = next_w_scale;
          while (kb + 1 < end) {
            next_w_scale = fetch(kb + 32);
            const int32_t pairs = min((end - kb) / 2, 16);
            for (int32_t pair = 0; pair < pairs; ++pair) {
              issue(__shfl_sync(~0u, w_scale, 2 * pair), acc[1], scales[1]);
              finish(One(), acc[0], scales[0]);
              issue(__shfl_sync(~0u, w_scale, 2 * pair + 1), acc[0], scales[0]);
              finish(One(), acc[1], scales[1]);
            }
            kb += 2 * pairs;
            if (pairs == 16) w_scale = next_w_scale;
          }
          if (kb < end) {
            issue(__shfl_sync(~0u, w_scale, (kb - begin - 1) % 32), acc[1], scales[1]);
            finish(One(), acc[0], scales[0]);
            finish(None(), acc[1], scales[1]);
          } else {
            finish(None(), acc[0], scales[0]);
          }
        }
        if constexpr (!kInTurn) break;
        if (!walk.in_turn() || p.segments == 1) break;
        if constexpr (kInTurn) add_in_turn(total, c, segment == 0);
        if (segment + 1 == p.segments) break;
        begin = end;
        end = same_in_warp(walk.segment(segment + 2));
        if (begin < end) {
          first_w_scale = fetch_first();
          next_w_scale = fetch(begin + 1);
        }
      }
      if (kTurns && lane == 0) mbarrier_arrive(&shared.order[consumer ^ 1]);

      uint32_t groups = kAllGroups;
      if (p.segments > 1 && !walk.in_turn()) {
        const int32_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
        int64_t tile = int64_t{unit.n_tile} * all_m_tiles + unit.m_tile;
        if (!kTurns) tile = 2 * tile + consumer;
        if (!kMoe && p.apart != 0) {
          store_f32(c, segment_output(p, unit.segment, walk.live),
                    unit.m_tile * kTokens + static_cast<int32_t>(first_token + 16 * warp), n0, kAllGroups);
          continue;
        }
        groups = add_segments(c, p.partials, p.counters, tile, unit.segment, p.segments, walk.one_wave(),
                              &shared.flag[consumer], barrier);
        if (groups == 0) continue;
      }
      const int32_t m0 = unit.m_tile * kTokens + static_cast<int32_t>(first_token + 16 * warp);
      if constexpr (kMoe) add(p, c, walk.live, m0, n0);
      store(c, Output{p.out, p.out_stride, p.out_dtype, walk.live, p.n}, m0, n0, groups,
            shared.staged[4 * consumer + warp]);
    }
  }

  __device__ static void add(const tdm_gemm_fp8_params& p, float (&c)[kCount], int32_t live, int32_t m0, int32_t n0) {
    if (p.addend == nullptr) return;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int32_t m = m0 + lane / 4 + 8 * (i / 2 % 2), n = n0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if (m < live && n < p.n) c[i] += load_element(p.addend, p.addend_dtype, m * p.addend_stride + n);
    }
  }

  /* Four lanes to a 32-byte sector. */
  __device__ static __forceinline__ void store_f32(const float (&c)[kCount], const Output& out, int32_t m0, int32_t n0,
                                                   uint32_t groups) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int32_t m = m0 + lane / 4 + 8 * (i / 2 % 2), n = n0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if ((groups >> i / 8 & 1) != 0 && m < out.rows && n < out.cols)
        static_cast<float*>(out.data)[m * out.stride + n] = c[i];
    }
  }

  /* A warp's 16 tokens, of them the groups of 16 columns whose bits are set: bf16 through shared memory to 16-byte
   * stores, f32 directly. */
  __device__ static void store(const float (&c)[kCount], const Output& out, int32_t m0, int32_t n0, uint32_t groups,
                               uint8_t* staged) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    if (m0 >= out.rows) return;
    if (out.dtype == TDM_KERNEL_F32) return store_f32(c, out, m0, n0, groups);
#pragma unroll
    for (int part = 0; part < kCount; part += 32) {
      __syncwarp();
#pragma unroll
      for (int i = part; i < part + 32; i += 8) {
        uint8_t* row = staged + (lane % 16) * kStagedRowBytes + (2 * (i - part) + 8 * (lane / 16)) * 2;
        stmatrix_x4(row, bf16x2(c[i], c[i + 1]), bf16x2(c[i + 2], c[i + 3]), bf16x2(c[i + 4], c[i + 5]),
                    bf16x2(c[i + 6], c[i + 7]));
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t row = 4 * i + lane / 8, n = n0 + 2 * part + lane % 8 * 8;
        if ((groups >> (part / 8 + lane % 8 / 2) & 1) != 0 && m0 + row < out.rows && n < out.cols)
          store_bf16_8(out, m0 + row, n,
                       *reinterpret_cast<const uint4*>(staged + row * kStagedRowBytes + lane % 8 * 16));
      }
    }
  }

  __device__ static void run(const tdm_gemm_fp8_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&shared.full[i], 2);
        mbarrier_init(&shared.empty[i], kTurns ? 4 : 8);
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
    const uint32_t group = same_in_warp(threadIdx.x / 128);
    if (group == 0) {
      registers_lower<kMoe ? 56 : 40>();
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync);
      if (threadIdx.x == 32) {
        step_wait(sync);
        load_tokens(p, hits, shared);
      }
    } else {
      registers_raise<kMoe ? 224 : 232>();
      step_wait(sync);
      multiply(p, hits, shared, group - 1);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
