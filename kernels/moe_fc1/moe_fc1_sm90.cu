/* Dense FC1 with SwiGLU and FP8 requantisation for sm_90a: the gate and up projections of all experts as one
 * block-scaled FP8 GEMM.
 *
 * 1. Persistent CTAs walk the tiles: 128 columns of the output (256 rows of w13: gate, then up) x kTokens. gridDim.x is
 * the SM budget. Tokens vary fastest, so that tiles of the same weights meet in L2.
 * 2. Producer: one lane keeps a ring of shared-memory stages filled by TMA, 32 KB of weights a stage.
 * 3. Consumers: each of two warpgroups has 64 gate rows and the 64 up rows that belong to them, so that gate and up of
 * a value are in one thread; promotion by the two scales after every block of 128, blocks ascending.
 * 4. Where tiles do not fill the SMs (a dense MLP, a shared expert) K is cut into segments, whose f32 partials meet in
 * the workspace and are added in ascending order (MoeFc1Split). The cut is a function of w13's shape alone.
 * 5. Epilogue: silu(gate) * up in f32; amax over the tile's 128 columns across lanes, warps and both warpgroups;
 * quantise; through shared memory to rows of 128 bytes. Scale columns from the live count to the next multiple of 4
 * become zero.
 * 6. Rows from the live count on are not stored; tiles without live rows are not computed.
 *
 *   warpgroup 0 (producer)   warp 0, one lane: TMA      stage:  w      [256][128] e4m3, swizzled
 *   warpgroup 1              rows  0..63 and 128..191           x      [kTokens][128] e4m3, swizzled
 *   warpgroup 2              rows 64..127 and 192..255          scale  [kTokens] f32
 *
 * Limit: device bandwidth on w13 up to about 64 tokens; then L2, tensor cores and promotion. */

#include "kernels/moe_fc1/moe_fc1_swap.cuh"

namespace {

using tdm::listed_tiles;
using tdm::listed_unit;
using tdm::magnitude;
using tdm::Quantiser;

/* Tokens on the 64-row side of wgmma, from 33 tokens on. A thread has two tokens and the gate and up of the same
 * columns, and a token's 128 columns lie in four lanes, so that the epilogue needs neither the other warps nor a
 * barrier. kTokens = 64: consumers take tiles in turn, and one's epilogue runs under the other's products. kTokens =
 * 128: a consumer has 64 of the tokens; the ring holds what arrives during the epilogue. */
template <int kTokens, int kStages> struct UprightShared {
  alignas(1024) uint8_t w[kStages][256 * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(128) float scale[2][kStages][kTokens];
  alignas(16) uint8_t staged[8][16 * TDM_MOE_FC1_STAGED_ROW_BYTES]; /* a warp's 16 tokens */
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t order[2];
};

template <int kTokens, int kStages> struct MoeFc1Upright {
  using Memory = UprightShared<kTokens, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC1_UPRIGHT_SHARED(kTokens, kStages), "launch size");
  static_assert(sizeof(Memory) <= 232448 - 4 * tdm::Hits::kMost, "shared memory of a Hopper CTA");
  static constexpr bool kTurns = kTokens == 64;

  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Hits hits;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Hits& experts, int32_t live_tokens)
        : p(params), hits(experts), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles(listed_tiles(p, hits)), units(m_tiles * n_tiles) {
    }
    __device__ tdm::Unit at(int32_t index) const {
      return listed_unit(p, hits, tdm::unit_at(index, m_tiles, 1, n_tiles));
    }
    __device__ int32_t begin(const tdm::Unit&) const {
      return 0;
    }
    __device__ int32_t end(const tdm::Unit&) const {
      return p.k_blocks;
    }
  };

  __device__ static void load_weights(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared,
                                      const tdm_step_sync& sync) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    tdm::fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 256 * 128,
                                  [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                    tdm::tma_load_3d(shared.w[at.slot], &p.w, &shared.full[at.slot], once, 0,
                                                     unit.n_tile * 256, kb);
                                  });
  }

  __device__ static void load_tokens(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 1>(walk, shared.full, shared.empty, (128 + 4) * tdm::loaded_rows(p.m, kTokens),
                                 [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                   const int32_t m0 = unit.m_tile * kTokens;
                                   tdm::tma_load_3d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, 0, m0, kb);
                                   tdm::tma_load_2d(shared.scale[at.parity][at.slot], &p.x_scale, &shared.full[at.slot],
                                                    often, m0, kb);
                                   return true;
                                 });
  }

  __device__ static void multiply(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared,
                                  uint32_t consumer) {
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const uint32_t first_token = kTurns ? 0 : 64 * consumer, token = first_token + 16 * warp + lane / 4;
    const uint32_t x_tiles = tdm::kept(tdm::wgmma_descriptor_lower(shared.x[0] + first_token * 128));
    const uint32_t w_tiles = tdm::kept(tdm::wgmma_descriptor_lower(shared.w[0]));
    tdm::Ring<kStages> ring;
    uint32_t turn = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      if (kTurns && turn != consumer) {
        ring.advance_by(static_cast<uint32_t>(p.k_blocks));
        continue;
      }
      const tdm::Unit unit = walk.at(u);
      const int32_t m0 = unit.m_tile * kTokens, tile = unit.n_tile;
      /* Lane l holds the weight scales of block `batch + l`, handed around by shuffles. */
      const float* const gate_scales = p.w_scale + int64_t{2} * tile * p.w_scale_stride;
      const float* const up_scales = gate_scales + p.w_scale_stride;
      const auto fetch = [&](int32_t batch) {
        const int32_t block = min(batch + static_cast<int32_t>(lane), p.k_blocks - 1);
        return make_float2(__ldg(gate_scales + block), __ldg(up_scales + block));
      };
      float2 scales = make_float2(0.0f, 0.0f), next_scales = fetch(0);
      int32_t in_batch = 32;

      float c[2][64], acc[64]; /* gate and up */
#pragma unroll
      for (int i = 0; i < 64; ++i) c[0][i] = c[1][i] = 0.0f;
      if (kTurns) {
        tdm::mbarrier_wait(&shared.order[consumer], order_parity);
        order_parity ^= 1;
      }
      for (int32_t kb = 0; kb < p.k_blocks; ++kb) {
        if (in_batch == 32) {
          in_batch = 0;
          scales = next_scales;
          next_scales = fetch(kb + 32);
        }
        const float w_scale[2] = {__shfl_sync(~0u, scales.x, in_batch), __shfl_sync(~0u, scales.y, in_batch)};
        const uint32_t x = tdm::same_in_warp(x_tiles + ring.slot * (kTokens * 8));
        const uint32_t w = tdm::same_in_warp(w_tiles + ring.slot * (256 * 8));
        tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
        ++in_batch;
        const float upper = shared.scale[ring.parity][ring.slot][token],
                    lower = shared.scale[ring.parity][ring.slot][token + 8];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          constexpr uint32_t kHalf = 128 * 128 / 16; /* in descriptor units */
          tdm::wgmma_fence();
#pragma unroll
          for (uint32_t k = 0; k < 4; ++k)
            tdm::wgmma_e4m3<128>::issue(acc, tdm::wgmma_descriptor_whole(x + 2 * k),
                                        tdm::wgmma_descriptor_whole(w + half * kHalf + 2 * k), k != 0);
          tdm::wgmma_commit();
          tdm::wgmma_wait<0>();
          tdm::wgmma_settle(acc);
          if (half == 1 && lane == 0) tdm::mbarrier_arrive(&shared.empty[ring.slot]);
          const float upper_scale = upper * w_scale[half], lower_scale = lower * w_scale[half];
#pragma unroll
          for (int i = 0; i < 64; ++i)
            c[half][i] = fmaf(i / 2 % 2 == 0 ? upper_scale : lower_scale, acc[i], c[half][i]);
        }
        ring.advance();
      }
      if (kTurns && lane == 0) tdm::mbarrier_arrive(&shared.order[consumer ^ 1]);
      store(p, c, walk.live, m0 + static_cast<int32_t>(first_token + 16 * warp), tile,
            shared.staged[4 * consumer + warp]);
    }
  }

  /* A warp's 16 tokens: quantised, and through shared memory to rows of 128 bytes. */
  __device__ static void store(const tdm_moe_fc1_params& p, float (&c)[2][64], int32_t live, int32_t m0, int32_t tile,
                               uint8_t* staged) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    if (m0 >= (live + 3) / 4 * 4) return;
    uint32_t amax[2] = {0, 0}; /* of the upper and the lower token */
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      c[0][i] = tdm::swiglu_quick(c[0][i], c[1][i], p.swiglu_limit);
      amax[i / 2 % 2] = max(amax[i / 2 % 2], magnitude(c[0][i]));
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t largest = max(amax[half], __shfl_xor_sync(~0u, amax[half], 1));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
      const Quantiser quantiser(p, largest);
      const int32_t row = lane / 4 + 8 * half, m = m0 + row;
      if (lane % 4 == 0 && m < (live + 3) / 4 * 4)
        p.out_scale[tile * p.out_scale_stride + m] = m < live ? quantiser.scale : 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i)
        *reinterpret_cast<uint16_t*>(staged + row * TDM_MOE_FC1_STAGED_ROW_BYTES + 8 * i + 2 * (lane % 4)) =
            quantiser.pair(c[0][4 * i + 2 * half], c[0][4 * i + 2 * half + 1]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t row = 4 * i + lane / 8, m = m0 + row;
      if (m < live)
        *reinterpret_cast<uint4*>(p.out + m * p.out_stride + int64_t{tile} * 128 + lane % 8 * 16) =
            *reinterpret_cast<const uint4*>(staged + row * TDM_MOE_FC1_STAGED_ROW_BYTES + lane % 8 * 16);
    }
    __syncwarp();
  }

  __device__ static void run(const tdm_moe_fc1_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    tdm::step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 2);
        tdm::mbarrier_init(&shared.empty[i], kTurns ? 4 : 8);
      }
      tdm::mbarrier_init(&shared.order[0], 4);
      tdm::mbarrier_init(&shared.order[1], 4);
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w);
      tdm::tma_prefetch_map(&p.x);
      tdm::tma_prefetch_map(&p.x_scale);
    }
    __syncthreads();
    tdm::Hits hits{p.n_experts, false};
    if (p.hits != nullptr) {
      tdm::step_wait(sync);
      hits = tdm::load_hits(p.hits, p.n_experts);
    }
    if (threadIdx.x < 128) {
      tdm::registers_lower<40>();
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync);
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

/* Few tiles (a dense MLP, a shared expert, the experts of a token): a piece of a tile, kRows gate rows and their up
 * rows, and a segment of K a unit, so that every SM has something to fetch. The parts of a tile, pieces of so many
 * segments, meet in the workspace as f32 rows, and each quantises its share of the tokens, a warp a token, four columns
 * a lane.
 *
 *   warp 0, 1, 2     weights; tokens; the first weight scales to L2
 *   kTokens = 64     warpgroup 1 gate, 2 up            partials  [tile][piece][segment][gate, up][kTokens][kRows]
 *   kTokens = 128    warpgroups 1, 2: 64 tokens each   of 16 columns the order is that of the fragments:
 *                                                      lane q of four has 2 q, 2 q + 1, 2 q + 8, 2 q + 9 */
template <int kTokens, int kRows, int kStages> struct SplitShared {
  alignas(1024) uint8_t w[kStages][2 * kRows * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(128) float scale[2][kStages][kTokens];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t flag;
  int32_t n_hits;
};

template <int kTokens, int kRows, int kStages> struct MoeFc1Split {
  using Memory = SplitShared<kTokens, kRows, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC1_SPLIT_SHARED(kTokens, kRows, kStages), "launch size");
  static_assert(sizeof(Memory) <= 232448 - 4 * tdm::Hits::kMost, "shared memory of a Hopper CTA");
  static constexpr bool kByRows = kTokens == 64; /* consumers divide the rows, not the tokens */
  static constexpr int kPieces = 128 / kRows, kN = kByRows ? kRows : 2 * kRows, kCount = kN / 2;
  static constexpr int kSides = kByRows ? 1 : 2;                           /* of gate and up, what a consumer has */
  static constexpr int64_t kMatrix = kTokens * kRows, kPart = 2 * kMatrix; /* elements */
  static constexpr uint32_t kBothConsumers = 1;

  /* Tokens vary fastest, then the parts of a tile, so that they end close together: what other walks call a segment is
   * a part here, the segments of the first piece, then those of the next. */
  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Hits hits;
    int32_t live, m_tiles, n_tiles, parts, units;

    __device__ Walk(const tdm_moe_fc1_params& params, const Memory& shared, int32_t live_tokens)
        : p(params), hits{p.hits != nullptr ? shared.n_hits : p.n_experts, p.hits != nullptr}, live(live_tokens),
          m_tiles((live + kTokens - 1) / kTokens), n_tiles(listed_tiles(p, hits)), parts(kPieces * p.segments),
          units(m_tiles * n_tiles * parts) {
    }
    __device__ tdm::Unit at(int32_t index) const {
      return listed_unit(p, hits, tdm::unit_at(index, m_tiles, parts, n_tiles));
    }
    __device__ int32_t begin(const tdm::Unit& unit) const {
      return tdm::segment_begin(unit.segment % p.segments, p.segments, p.k_blocks, 1);
    }
    __device__ int32_t end(const tdm::Unit& unit) const {
      return tdm::segment_begin(unit.segment % p.segments + 1, p.segments, p.k_blocks, 1);
    }
    /* Of the workspace and of the counters. */
    __device__ int64_t tile(const tdm::Unit& unit) const {
      const int64_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
      return unit.n_tile * all_m_tiles + unit.m_tile;
    }
  };

  __device__ static void load_weights(const tdm_moe_fc1_params& p, Memory& shared, const tdm_step_sync& sync) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && p.hits == nullptr;
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, shared, ahead ? p.m : live());
    tdm::fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 2 * kRows * 128,
                                  [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                    const int32_t n0 = unit.n_tile * 256 + unit.segment / p.segments * kRows;
                                    uint8_t* w = shared.w[at.slot];
                                    tdm::tma_load_3d(w, &p.w, &shared.full[at.slot], once, 0, n0, kb);
                                    tdm::tma_load_3d(w + kRows * 128, &p.w, &shared.full[at.slot], once, 0, n0 + 128,
                                                     kb);
                                  });
  }

  __device__ static void load_tokens(const tdm_moe_fc1_params& p, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, shared, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 1>(walk, shared.full, shared.empty, (128 + 4) * tdm::loaded_rows(p.m, kTokens),
                                 [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                   const int32_t m0 = unit.m_tile * kTokens;
                                   tdm::tma_load_3d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, 0, m0, kb);
                                   tdm::tma_load_2d(shared.scale[at.parity][at.slot], &p.x_scale, &shared.full[at.slot],
                                                    often, m0, kb);
                                   return true;
                                 });
  }

  /* The weight scales of the first unit are on their way to L2 before the steps before this one are done. */
  __device__ static void prefetch_scales(const tdm_moe_fc1_params& p, const Memory& shared) {
    const Walk walk(p, shared, p.m);
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), u = static_cast<int32_t>(blockIdx.x);
    if (lane >= 4 || u >= walk.units) return;
    const tdm::Unit unit = walk.at(u);
    tdm::l2_prefetch(p.w_scale + (2 * unit.n_tile + lane % 2) * p.w_scale_stride +
                     (lane < 2 ? walk.begin(unit) : walk.end(unit) - 1));
  }

  /* A warpgroup: multiplies its units, two accumulators in turn as in gemm_fp8_upright.cuh. For them to fit, what a
   * unit is is worked out again behind the products, and a block's scales are read when it is promoted. */
  __device__ static void multiply(const tdm_moe_fc1_params& p, Memory& shared, uint32_t consumer) {
    const int32_t live = tdm::live_rows(p.n_tokens, p.m);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const uint32_t first_token = kByRows ? 0 : 64 * consumer;
    const uint32_t first_row = kByRows ? kRows * consumer : 0;
    const uint32_t x_tiles = tdm::kept(tdm::wgmma_descriptor_lower(shared.x[0] + first_token * 128));
    const uint32_t w_tiles = tdm::kept(tdm::wgmma_descriptor_lower(shared.w[0] + first_row * 128));
    const uint32_t token_bytes = tdm::kept(4 * (first_token + 16 * warp + lane / 4));
    tdm::Ring<kStages> issued, promoted;
    const auto walk_again = [&] { return Walk(p, shared, tdm::kept(live)); };
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk_again().units; u += static_cast<int32_t>(gridDim.x)) {
      int32_t kb, end, live_below; /* live tokens from the thread's upper one on */
      uint32_t mine;               /* where the thread's partials begin, in units of four */
      const float* w_scales;
      {
        const Walk walk = walk_again();
        const tdm::Unit unit = walk.at(u);
        kb = walk.begin(unit);
        end = walk.end(unit);
        const int32_t first = static_cast<int32_t>(first_token + 16 * warp + lane / 4);
        live_below = tdm::kept(walk.live - unit.m_tile * kTokens - first);
        mine = tdm::kept(static_cast<uint32_t>(((walk.tile(unit) * walk.parts + unit.segment) * kPart +
                                                (kByRows ? consumer * kMatrix : 0) + first * kRows) /
                                                   4 +
                                               lane % 4));
        w_scales = tdm::kept(p.w_scale + (2 * unit.n_tile + static_cast<int32_t>(lane / 16)) * p.w_scale_stride);
      }
      /* Lanes l and 16 + l hold the weight scales of block `batch + l`, gate and up, handed around by shuffles. */
      const auto fetch = [&](int32_t batch) {
        return __ldg(w_scales + min(batch + static_cast<int32_t>(lane % 16), end - 1));
      };
      float w_scale = 0.0f, next_w_scale = fetch(kb);
      int32_t in_batch = 16;

      float c[kCount], acc[2][kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) c[i] = 0.0f;
      const auto issue = [&](float(&to)[kCount]) {
        const uint32_t x = tdm::same_in_warp(x_tiles + issued.slot * (kTokens * 8));
        const uint32_t w = tdm::same_in_warp(w_tiles + issued.slot * (2 * kRows * 8));
        tdm::mbarrier_wait(&shared.full[issued.slot], issued.parity);
        tdm::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k)
          tdm::wgmma_e4m3<kN>::issue(to, tdm::wgmma_descriptor_whole(x + 2 * k), tdm::wgmma_descriptor_whole(w + 2 * k),
                                     k != 0);
        tdm::wgmma_commit();
        issued.advance();
      };
      /* Block kb. */
      const auto finish = [&](auto pending, float(&from)[kCount]) {
        if (in_batch == 16) {
          in_batch = 0;
          w_scale = next_w_scale;
          next_w_scale = fetch(kb + 16);
        }
        const float* const scale = reinterpret_cast<const float*>(
            reinterpret_cast<const char*>(shared.scale[promoted.parity][promoted.slot]) + token_bytes);
        float upper[kSides], lower[kSides];
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
          const int first_lane = 16 * (kByRows ? static_cast<int>(consumer) : side);
          const float weight = __shfl_sync(~0u, w_scale, first_lane + in_batch);
          upper[side] = tdm::kept(scale[0] * weight), lower[side] = tdm::kept(scale[8] * weight);
        }
        ++in_batch;
        tdm::wgmma_wait<decltype(pending)::value>();
        tdm::wgmma_settle(from);
        if (lane == 0) tdm::mbarrier_arrive(&shared.empty[promoted.slot]);
        promoted.advance();
        ++kb;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int side = i / (kRows / 2); /* always 0 where consumers divide the rows */
          c[i] = fmaf(i / 2 % 2 == 0 ? upper[side] : lower[side], from[i], c[i]);
        }
      };
      using One = tdm::Constant<1>;
      using None = tdm::Constant<0>;
      issue(acc[0]);
      while (kb + 2 < end) {
        issue(acc[1]);
        finish(One(), acc[0]);
        issue(acc[0]);
        finish(One(), acc[1]);
      }
      if (kb + 1 < end) {
        issue(acc[1]);
        finish(One(), acc[0]);
        finish(None(), acc[1]);
      } else {
        finish(None(), acc[0]);
      }
      leave(reinterpret_cast<float4*>(p.partials) + mine, c, live_below);
      tdm::named_barrier_sync(kBothConsumers, 256);
      const Walk walk = walk_again();
      const tdm::Unit unit = walk.at(u);
      uint32_t* const counter = p.counters + walk.tile(unit);
      if (threadIdx.x == 128)
        shared.flag = tdm::meet(counter, unit.segment, walk.parts, walk.units <= static_cast<int32_t>(gridDim.x));
      tdm::named_barrier_sync(kBothConsumers, 256);
      const uint32_t shares = shared.flag;
      add_up(p, shares, walk, unit);
      if (threadIdx.x == 128 && (shares & tdm::kMeetingLeaves) != 0) tdm::leave_meeting(counter, walk.parts);
    }
  }

  /* A thread's partials of a unit go to the workspace, four values of a token a store. */
  __device__ static void leave(float4* to, const float (&c)[kCount], int32_t live_below) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= live_below) continue;
#pragma unroll
      for (int i = 0; i < kCount; i += 8)
        __stcg(to + (i / (kRows / 2) * kMatrix + 8 * half * kRows + i % (kRows / 2) * 2) / 4,
               make_float4(c[i + 2 * half], c[i + 2 * half + 1], c[i + 2 * half + 4], c[i + 2 * half + 5]));
    }
  }

  /* The consumers: this CTA's shares of the tokens, in ascending order of segments, to the output. */
  __device__ static void add_up(const tdm_moe_fc1_params& p, uint32_t shares, const Walk& walk, const tdm::Unit& unit) {
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32 - 4;
    const int32_t parts = walk.parts, m0 = unit.m_tile * kTokens, rows = min(walk.live - m0, kTokens);
    const float* const partials = p.partials + walk.tile(unit) * parts * kPart;
    for (uint32_t left = shares & ~tdm::kMeetingLeaves; left != 0; left &= left - 1) {
      const int32_t part = __ffs(static_cast<int>(left)) - 1;
      for (int32_t token = part + parts * warp; token < (rows + 3) / 4 * 4; token += kAtOnce * parts * 8)
        quantise(p, partials, token, 8 * parts, m0, rows, unit.n_tile);
    }
  }

  /* What a warp asks for at once, of tokens and of segments: each wait for L2 is part of the launch's time. */
  static constexpr int kAtOnce = kTokens / 64, kBatch = 4;

  /* A warp: rows `token`, `token + step`, ... of a tile, as many as are loaded at once; those from `rows` on have only
   * their scale set to zero. */
  __device__ static void quantise(const tdm_moe_fc1_params& p, const float* partials, int32_t token, int32_t step,
                                  int32_t m0, int32_t rows, int32_t tile) {
    constexpr int kLanes = kRows / 4; /* of a piece */
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), piece = lane / kLanes, inside = lane % kLanes;
    const float* const from = partials + piece * p.segments * kPart + 4 * inside;
    float gate[kAtOnce][4] = {}, up[kAtOnce][4] = {};
    for (int32_t batch = 0; batch < p.segments; batch += kBatch) {
      /* Without a branch between them, behind which they would be moved, one wait after the other. */
      float4 values[kBatch][kAtOnce][2];
#pragma unroll
      for (int s = 0; s < kBatch; ++s) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float* row = from + min(batch + s, p.segments - 1) * kPart + min(token + i * step, rows - 1) * kRows;
          values[s][i][0] = __ldcg(reinterpret_cast<const float4*>(row));
          values[s][i][1] = __ldcg(reinterpret_cast<const float4*>(row + kMatrix));
        }
      }
#pragma unroll
      for (int s = 0; s < kBatch; ++s) {
        const bool inside = batch + s < p.segments;
        const auto part = [&](float value) { return inside ? value : 0.0f; }; /* no sum is -0, so 0 changes none */
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float4 &g = values[s][i][0], &h = values[s][i][1];
          gate[i][0] += part(g.x), gate[i][1] += part(g.y), gate[i][2] += part(g.z), gate[i][3] += part(g.w);
          up[i][0] += part(h.x), up[i][1] += part(h.y), up[i][2] += part(h.z), up[i][3] += part(h.w);
        }
      }
    }
    /* After an exchange between neighbours a lane has four columns that follow each other. */
    const int32_t odd = inside % 2, column = piece * kRows + inside / 4 * 16 + inside % 4 * 2 + 6 * odd;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int32_t row = token + i * step, m = m0 + row;
      if (row >= (rows + 3) / 4 * 4) break;
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        gate[i][k] = tdm::swiglu_quick(gate[i][k], up[i][k], p.swiglu_limit);
        largest = max(largest, magnitude(gate[i][k]));
      }
      const Quantiser quantiser(p, __reduce_max_sync(~0u, largest));
      const uint32_t mine = static_cast<uint32_t>(quantiser.pair(gate[i][0], gate[i][1])) |
                            static_cast<uint32_t>(quantiser.pair(gate[i][2], gate[i][3])) << 16;
      const uint32_t other = __shfl_xor_sync(~0u, mine, 1);
      if (lane == 0) p.out_scale[tile * p.out_scale_stride + m] = row < rows ? quantiser.scale : 0.0f;
      if (row < rows)
        *reinterpret_cast<uint32_t*>(p.out + m * p.out_stride + int64_t{tile} * 128 + column) =
            odd != 0 ? other >> 16 | (mine & 0xffff0000u) : (mine & 0xffffu) | other << 16;
    }
  }

  __device__ static void run(const tdm_moe_fc1_params& p, const tdm_step_sync& sync) {
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
      tdm::tma_prefetch_map(&p.x_scale);
    }
    __syncthreads();
    if (p.hits != nullptr) {
      tdm::step_wait(sync);
      const int32_t n_hits = tdm::load_hits(p.hits, p.n_experts).count;
      if (threadIdx.x == 0) shared.n_hits = n_hits;
      __syncthreads();
    }
    if (threadIdx.x < 128) {
      tdm::registers_lower<40>();
      if (threadIdx.x == 0) load_weights(p, shared, sync);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        load_tokens(p, shared);
      }
      if (threadIdx.x / 32 == 2) {
        prefetch_scales(p, shared);
        tdm::step_wait(sync);
      }
    } else {
      tdm::registers_raise<232>();
      tdm::step_wait(sync);
      multiply(p, shared, threadIdx.x / 128 - 1);
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define SWAP(tokens, stages)                                                                                           \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS, (tokens) <= 24 ? 2 : 1)                            \
      tdm_moe_fc1_swap_t##tokens##_sm90(const __grid_constant__ tdm_moe_fc1_params p,                                  \
                                        const __grid_constant__ tdm_step_sync sync) {                                  \
    tdm::MoeFc1Swap<tokens, stages>::run(p, sync);                                                                     \
  }
#define UPRIGHT(tokens, stages)                                                                                        \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS, 1) tdm_moe_fc1_t##tokens##_sm90(                   \
      const __grid_constant__ tdm_moe_fc1_params p, const __grid_constant__ tdm_step_sync sync) {                      \
    MoeFc1Upright<tokens, stages>::run(p, sync);                                                                       \
  }
#define SPLIT(tokens, rows, stages)                                                                                    \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS, 1) tdm_moe_fc1_split_n##rows##t##tokens##_sm90(    \
      const __grid_constant__ tdm_moe_fc1_params p, const __grid_constant__ tdm_step_sync sync) {                      \
    MoeFc1Split<tokens, rows, stages>::run(p, sync);                                                                   \
  }
#include "kernels/moe_fc1/moe_fc1_variants.inc"
