#ifndef KERNELS_MOE_FC1_MOE_FC1_SWAP_CUH
#define KERNELS_MOE_FC1_MOE_FC1_SWAP_CUH

/* Weights on the 64-row side of wgmma, up to 32 tokens. */

#include "kernels/moe_fc1/moe_fc1_shares.cuh"

namespace tdm {

/* Where a tile's tokens come from: neighbouring rows, of which those before `live` count. */
struct NextRows {
  static constexpr bool kGathered = false;
  int32_t first, live;

  __device__ int32_t row(int32_t token) const {
    return first + token;
  }
  __device__ bool counts(int32_t token) const {
    return first + token < live;
  }
  /* Whether the token's scale is stored: up to the next multiple of 4, zero where it does not count. */
  __device__ bool has_scale(int32_t token) const {
    return first + token < (live + 3) / 4 * 4;
  }
  /* Whether any of tokens 8 i to 8 i + 7 may count; products of the others are left alone. */
  __device__ static constexpr bool counts_eight(int) {
    return true;
  }
};

template <int kTokens, int kStages> struct MoeFc1SwapShared {
  alignas(1024) uint8_t w[kStages][256 * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(128) float scale[2][kStages][TDM_MOE_FC1_SCALE_BYTES(kTokens) / 4];
  alignas(16) uint8_t staged[kTokens * TDM_MOE_FC1_STAGED_ROW_BYTES];
  uint32_t amax[8][kTokens];
  Turn turn;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

template <int kTokens, int kStages> struct MoeFc1Swap {
  using Memory = MoeFc1SwapShared<kTokens, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC1_SWAP_SHARED(kTokens, kStages), "launch size");
  static constexpr bool kTwoCtas = kTokens <= 24; /* on an SM, as in gemm_fp8_swap.cuh */
  static constexpr int kCount = kTokens / 2;      /* elements of a fragment */
  static constexpr uint32_t kBothConsumers = 1;

  using Walk = DenseWalk<kTokens>;
  using Sums = tdm::Sums<kTokens>;

  __device__ static void load_weights(const tdm_moe_fc1_params& p, const Hits& hits, Memory& shared,
                                      const tdm_step_sync& sync) {
    const uint64_t once = l2_evict_first();
    const auto live = [&] { return live_rows(p.n_tokens, p.m); };
    const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
    if (!ahead) step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live(), shared.turn);
    fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 256 * 128,
                             [&](const DensePiece& piece, int32_t kb, const auto& at) {
                               tma_load_3d(shared.w[at.slot], &p.w, &shared.full[at.slot], once, 0, piece.n_tile * 256,
                                           kb);
                             });
  }

  __device__ static void load_tokens(const tdm_moe_fc1_params& p, const Hits& hits, Memory& shared) {
    const uint64_t often = l2_evict_last();
    const Walk walk(p, hits, live_rows(p.n_tokens, p.m), shared.turn);
    fill_stages<kStages, 1>(walk, shared.full, shared.empty, 128 * kTokens + 4 * kTokens,
                            [&](const DensePiece& piece, int32_t kb, const auto& at) {
                              const int32_t m0 = piece.m_tile * kTokens;
                              tma_load_3d(shared.x[at.slot], &p.x, &shared.full[at.slot], often, 0, m0, kb);
                              tma_load_2d(shared.scale[at.parity][at.slot], &p.x_scale, &shared.full[at.slot], often,
                                          m0, kb);
                              return true;
                            });
  }

  /* c += (activation scale * weight scale) * acc. */
  template <int kN, class Rows>
  __device__ static __forceinline__ void promote(float (&c)[kN / 2], const float (&acc)[kN / 2], const float* scale,
                                                 float w_scale, const Rows& rows) {
    const float* mine = scale + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      if (!rows.counts_eight(i)) continue;
      const float2 s = *reinterpret_cast<const float2*>(mine + 8 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) c[4 * i + j] = fmaf((j % 2 == 0 ? s.x : s.y) * w_scale, acc[4 * i + j], c[4 * i + j]);
    }
  }

  template <int kN>
  __device__ static __forceinline__ void issue(float (&acc)[kN / 2], uint32_t w, uint32_t x) {
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k)
      wgmma_e4m3<kN>::issue(acc, wgmma_descriptor_whole(w + 2 * k), wgmma_descriptor_whole(x + 2 * k), k != 0);
    wgmma_commit();
  }

  __device__ static void multiply(const tdm_moe_fc1_params& p, const Hits& hits, Memory& shared, uint32_t consumer,
                                  const tdm_step_sync& sync) {
    const Walk walk(p, hits, live_rows(p.n_tokens, p.m), shared.turn);
    Ring<kStages> ring;
    for (int32_t i = 0; i < walk.share.pieces; ++i) {
      const DensePiece piece = walk.piece(i);
      multiply_piece<kTokens>(p, shared, ring, piece.n_tile, NextRows{piece.m_tile * kTokens, walk.live}, consumer,
                              piece.begin, piece.end, sync);
    }
  }

  /* A warpgroup's half of a tile, of it blocks `begin` to `end` - 1, for the first kN of its tokens. */
  template <int kN, class Rows>
  __device__ static __forceinline__ void multiply_piece(const tdm_moe_fc1_params& p, Memory& shared,
                                                        Ring<kStages>& ring, int32_t tile, const Rows& rows,
                                                        uint32_t consumer, int32_t begin, int32_t end,
                                                        const tdm_step_sync& sync) {
    float gate[kN / 2] = {}, up[kN / 2] = {};
    if (begin > 0) Sums::take_up(p, shared.turn, gate, up, kBothConsumers, sync);
    add_blocks<kN>(p, shared, ring, tile, rows, consumer, begin, end, gate, up);
    if (end < p.k_blocks)
      Sums::leave(p, shared.turn, gate, up, kBothConsumers);
    else
      store<kN>(p, shared, gate, up, rows, tile, consumer);
  }

  /* A warpgroup's half of a tile: p.segments runs of blocks are summed apart and added in ascending order, as
   * MoeFc1Split does. */
  template <class Rows>
  __device__ static __forceinline__ void multiply_segments(const tdm_moe_fc1_params& p, Memory& shared,
                                                           Ring<kStages>& ring, int32_t tile, const Rows& rows,
                                                           uint32_t consumer) {
    float gate[kCount], up[kCount], gates[kCount], ups[kCount];
    for (int32_t segment = 0; segment < p.segments; ++segment) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) gate[i] = up[i] = 0.0f;
      add_blocks<kTokens>(p, shared, ring, tile, rows, consumer, segment_begin(segment, p.segments, p.k_blocks, 1),
                          segment_begin(segment + 1, p.segments, p.k_blocks, 1), gate, up);
      add_in_turn(gates, gate, segment == 0);
      add_in_turn(ups, up, segment == 0);
    }
    store<kTokens>(p, shared, gate, up, rows, tile, consumer);
  }

  /* Blocks `begin` to `end` - 1, of the first kN of a tile's tokens. */
  template <int kN, class Rows>
  __device__ static __forceinline__ void add_blocks(const tdm_moe_fc1_params& p, Memory& shared, Ring<kStages>& ring,
                                                    int32_t tile, const Rows& rows, uint32_t consumer, int32_t begin,
                                                    int32_t end, float (&gate)[kN / 2], float (&up)[kN / 2]) {
    const uint32_t lane = threadIdx.x % 32;
    /* Lane l holds the weight scales of block `batch + l`, handed around by shuffles. */
    const float* w_scales = p.w_scale + int64_t{2} * tile * p.w_scale_stride;
    const auto fetch = [&](int32_t batch) {
      const int32_t block = batch + static_cast<int32_t>(lane);
      if (block >= end) return make_float2(0.0f, 0.0f);
      return make_float2(__ldg(w_scales + block), __ldg(w_scales + p.w_scale_stride + block));
    };
    float2 scales = make_float2(0.0f, 0.0f), next_scales = fetch(begin);
    float acc[2][kN / 2];
    for (int32_t kb = begin; kb < end; ++kb) {
      const int32_t in_batch = (kb - begin) % 32;
      if (in_batch == 0) {
        scales = next_scales;
        next_scales = fetch(kb + 32);
      }
      const float gate_scale = __shfl_sync(~0u, scales.x, in_batch), up_scale = __shfl_sync(~0u, scales.y, in_batch);
      const uint32_t w = uniform(wgmma_descriptor_lower(shared.w[ring.slot] + consumer * 64 * 128));
      const uint32_t x = uniform(wgmma_descriptor_lower(shared.x[ring.slot]));
      const float* scale = shared.scale[ring.parity][ring.slot];
      mbarrier_wait(&shared.full[ring.slot], ring.parity);
      if constexpr (Rows::kGathered) fence_async_shared();
      wgmma_fence();
      issue<kN>(acc[0], w, x);
      issue<kN>(acc[1], w + 128 * 128 / 16, x);
      wgmma_wait<1>();
      wgmma_settle(acc[0]);
      promote<kN>(gate, acc[0], scale, gate_scale, rows);
      wgmma_wait<0>();
      wgmma_settle(acc[1]);
      promote<kN>(up, acc[1], scale, up_scale, rows);
      __syncwarp();
      if (Rows::kGathered || lane == 0) mbarrier_arrive(&shared.empty[ring.slot]);
      ring.advance();
    }
  }

  template <int kN, class Rows>
  __device__ static void store(const tdm_moe_fc1_params& p, Memory& shared, float (&gate)[kN / 2],
                               const float (&up)[kN / 2], const Rows& rows, int32_t tile, uint32_t consumer) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x) - 128, lane = thread % 32, warp = thread % 128 / 32;
    float(&v)[kN / 2] = gate;
    uint32_t amax[kN / 4];
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) amax[i] = 0;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      v[i] = swiglu_quick(gate[i], up[i], p.swiglu_limit);
      uint32_t& largest = amax[2 * (i / 4) + i % 2];
      largest = max(largest, magnitude(v[i]));
    }
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        amax[i] = max(amax[i], __shfl_xor_sync(~0u, amax[i], distance));
      if (lane < 4) shared.amax[4 * consumer + warp][8 * (i / 2) + 2 * lane + i % 2] = amax[i];
    }
    named_barrier_sync(kBothConsumers, 256);
    const int32_t row = 64 * static_cast<int32_t>(consumer) + 16 * warp + lane / 4;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int32_t token = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
      uint32_t largest = 0;
#pragma unroll
      for (int part = 0; part < 8; ++part) largest = max(largest, shared.amax[part][token]);
      const Quantiser quantiser(p, largest);
      const int first = 4 * (i / 2) + i % 2;
      const uint32_t packed = quantiser.pair(v[first], v[first + 2]);
      uint8_t* target = shared.staged + token * TDM_MOE_FC1_STAGED_ROW_BYTES + row;
      target[0] = static_cast<uint8_t>(packed);
      target[8] = static_cast<uint8_t>(packed >> 8);
      if (consumer == 0 && warp == 0 && lane < 4 && rows.has_scale(token))
        p.out_scale[tile * p.out_scale_stride + rows.row(token)] = rows.counts(token) ? quantiser.scale : 0.0f;
    }
    named_barrier_sync(kBothConsumers, 256);
    for (int32_t chunk = thread; chunk < kN * 8; chunk += 256) {
      const int32_t token = chunk / 8;
      if (!rows.counts(token)) break;
      const uint8_t* source = shared.staged + token * TDM_MOE_FC1_STAGED_ROW_BYTES + chunk % 8 * 16;
      *reinterpret_cast<uint4*>(p.out + rows.row(token) * p.out_stride + int64_t{tile} * 128 + chunk % 8 * 16) =
          *reinterpret_cast<const uint4*>(source);
    }
    /* The next tile's first write to amax and staged is behind these barriers: a warpgroup reaches the first of them
     * only after its own reads, and the other's reads of amax are behind the second. */
  }

  __device__ static void run(const tdm_moe_fc1_params& p, const tdm_step_sync& sync) {
    static_assert(sizeof(Memory) <= (kTwoCtas ? 115712 : 232448 - 4 * Hits::kMost),
                  "shared memory of a Hopper CTA, or of half an SM");
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&shared.full[i], 2);
        mbarrier_init(&shared.empty[i], 8);
      }
      fence_barrier_init();
      tma_prefetch_map(&p.w);
      tma_prefetch_map(&p.x);
      tma_prefetch_map(&p.x_scale);
    }
    if (threadIdx.x == 32) draw_turn(p.counters, shared.turn);
    __syncthreads();
    Hits hits{p.n_experts, false};
    if (p.hits != nullptr) {
      step_wait(sync);
      hits = load_hits(p.hits, p.n_experts);
    }
    if (threadIdx.x < 128) {
      if constexpr (!kTwoCtas) registers_lower<56>();
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync);
      if (threadIdx.x == 32) {
        step_wait(sync);
        load_tokens(p, hits, shared);
      }
    } else {
      if constexpr (!kTwoCtas) registers_raise<224>();
      step_wait(sync);
      multiply(p, hits, shared, threadIdx.x / 128 - 1, sync);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
