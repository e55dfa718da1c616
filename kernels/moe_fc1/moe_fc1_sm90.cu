/* Dense FC1 with SwiGLU and FP8 requantisation for sm_90a: the gate and up projections of all experts as one
 * block-scaled FP8 GEMM.
 *
 * 1. Persistent CTAs walk the tiles: 128 columns of the output (256 rows of w13: gate, then up) x kTokens. gridDim.x is
 * the SM budget. Tokens vary fastest, so that tiles of the same weights meet in L2.
 * 2. Producer: one lane keeps a ring of shared-memory stages filled by TMA, 32 KB of weights a stage.
 * 3. Consumers: each of two warpgroups has 64 gate rows and the 64 up rows that belong to them, so that gate and up of
 * a value are in one thread; promotion by the two scales after every block of 128, blocks ascending.
 * 4. Where tiles do not fill the SMs (a dense MLP, a shared expert) K is cut into segments, whose f32 partials meet in
 * the workspace; the last to arrive adds them in ascending order. The cut is a function of w13's shape alone.
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

#include "kernels/device/gemm.cuh"
#include "kernels/moe_fc1/moe_fc1_params.h"

namespace {

template <int kTokens, int kStages> struct Shared {
  alignas(1024) uint8_t w[kStages][256 * 128];
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(128) float scale[kStages][TDM_MOE_FC1_SCALE_BYTES(kTokens) / 4];
  alignas(16) uint8_t staged[kTokens * TDM_MOE_FC1_STAGED_ROW_BYTES];
  float amax[8][kTokens];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t flag;
};

template <int kTokens, int kStages> struct MoeFc1 {
  using Memory = Shared<kTokens, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC1_SHARED(kTokens, kStages), "launch size");
  static constexpr bool kTwoCtas = kTokens <= 24; /* on an SM, as in gemm_fp8_swap.cuh */
  static constexpr size_t kMost = kTwoCtas ? 115712 : 232448 - 4 * tdm::Hits::kMost; /* of half an SM, of a CTA */
  static_assert(sizeof(Memory) <= kMost, "shared memory of a Hopper CTA");
  static constexpr int kCount = kTokens / 2; /* elements of a fragment */
  /* Gate and up together where the registers allow; else one after the other, while the other warpgroup multiplies. */
  static constexpr int kAccumulators = kTokens <= 64 ? 2 : 1;
  static constexpr uint32_t kBothConsumers = 1;

  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Hits hits;
    int32_t live, m_tiles, n_tiles, units;

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Hits& experts, int32_t live_tokens)
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

  __device__ static void load_weights(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared,
                                      const tdm_step_sync& sync, bool ahead) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, hits, ahead ? p.m : live());
    tdm::fill_weights<kStages, 1>(sync, ahead, walk, live, shared.full, shared.empty, 256 * 128,
                                  [&](const tdm::Unit& unit, int32_t kb, uint32_t slot) {
                                    tdm::tma_load_3d(shared.w[slot], &p.w, &shared.full[slot], once, 0,
                                                     unit.n_tile * 256, kb);
                                  });
  }

  __device__ static void load_tokens(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 1>(walk, shared.full, shared.empty, 128 * kTokens + 4 * kTokens,
                                 [&](const tdm::Unit& unit, int32_t kb, uint32_t slot) {
                                   const int32_t m0 = unit.m_tile * kTokens;
                                   tdm::tma_load_3d(shared.x[slot], &p.x, &shared.full[slot], often, 0, m0, kb);
                                   tdm::tma_load_2d(shared.scale[slot], &p.x_scale, &shared.full[slot], often, m0, kb);
                                   return true;
                                 });
  }

  /* c += (activation scale * weight scale) * acc. */
  __device__ static __forceinline__ void promote(float (&c)[kCount], const float (&acc)[kCount], const float* scale,
                                                 float w_scale) {
    const float* mine = scale + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      const float2 s = *reinterpret_cast<const float2*>(mine + 8 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) c[4 * i + j] = fmaf((j % 2 == 0 ? s.x : s.y) * w_scale, acc[4 * i + j], c[4 * i + j]);
    }
  }

  __device__ static __forceinline__ void issue(float (&acc)[kCount], const uint8_t* w, const uint8_t* x) {
    const uint64_t a = tdm::wgmma_descriptor(w), b = tdm::wgmma_descriptor(x);
#pragma unroll
    for (int k = 0; k < 4; ++k) tdm::wgmma_e4m3<kTokens>::issue(acc, a + 2 * k, b + 2 * k, k != 0);
    tdm::wgmma_commit();
  }

  __device__ static void multiply(const tdm_moe_fc1_params& p, const tdm::Hits& hits, Memory& shared,
                                  uint32_t consumer) {
    const Walk walk(p, hits, tdm::live_rows(p.n_tokens, p.m));
    const uint32_t lane = threadIdx.x % 32;
    tdm::Ring<kStages> ring;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const tdm::Unit unit = walk.at(u);
      const int32_t m0 = unit.m_tile * kTokens, tile = unit.n_tile;
      const int32_t begin = walk.begin(unit), end = walk.end(unit);
      /* Lane l holds the weight scales of block `batch + l`, handed around by shuffles. */
      const float* w_scales = p.w_scale + int64_t{2} * tile * p.w_scale_stride;
      const auto fetch = [&](int32_t batch) {
        const int32_t block = batch + static_cast<int32_t>(lane);
        if (block >= end) return make_float2(0.0f, 0.0f);
        return make_float2(__ldg(w_scales + block), __ldg(w_scales + p.w_scale_stride + block));
      };
      float2 scales = make_float2(0.0f, 0.0f), next_scales = fetch(begin);

      float gate[kCount], up[kCount], acc[kAccumulators][kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) gate[i] = up[i] = 0.0f;
      for (int32_t kb = begin; kb < end; ++kb) {
        const int32_t in_batch = (kb - begin) % 32;
        if (in_batch == 0) {
          scales = next_scales;
          next_scales = fetch(kb + 32);
        }
        const float gate_scale = __shfl_sync(~0u, scales.x, in_batch), up_scale = __shfl_sync(~0u, scales.y, in_batch);
        const uint8_t *w = shared.w[ring.slot] + consumer * 64 * 128, *x = shared.x[ring.slot];
        const float* scale = shared.scale[ring.slot];
        tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
        tdm::wgmma_fence();
        issue(acc[0], w, x);
        if constexpr (kAccumulators == 2) {
          issue(acc[1], w + 128 * 128, x);
          tdm::wgmma_wait<1>();
          tdm::wgmma_settle(acc[0]);
          promote(gate, acc[0], scale, gate_scale);
        } else {
          tdm::wgmma_wait<0>();
          tdm::wgmma_settle(acc[0]);
          promote(gate, acc[0], scale, gate_scale);
          tdm::wgmma_settle(acc[0]);
          tdm::wgmma_fence();
          issue(acc[0], w + 128 * 128, x);
        }
        tdm::wgmma_wait<0>();
        tdm::wgmma_settle(acc[kAccumulators - 1]);
        promote(up, acc[kAccumulators - 1], scale, up_scale);
        __syncwarp();
        if (lane == 0) tdm::mbarrier_arrive(&shared.empty[ring.slot]);
        ring.advance();
      }
      if (p.segments > 1) {
        const int64_t all_m_tiles = (p.m + kTokens - 1) / kTokens;
        if (!add(p, shared, gate, up, tile * all_m_tiles + unit.m_tile, unit.segment, consumer)) continue;
      }
      store(p, shared, gate, up, walk.live, m0, tile, consumer);
    }
  }

  /* As add_segments, but gate and up of both warpgroups go together: the quantiser needs all of them. Partials lie as
   * [tile][segment][gate, up][kCount / 4][256 threads] float4. */
  __device__ static bool add(const tdm_moe_fc1_params& p, Memory& shared, float (&gate)[kCount], float (&up)[kCount],
                             int64_t tile, int32_t segment, uint32_t consumer) {
    constexpr int64_t kHalf = kCount / 4 * 256;
    const uint32_t thread = threadIdx.x - 128;
    float4* const first = reinterpret_cast<float4*>(p.partials) + tile * p.segments * 2 * kHalf + thread;
    float4* const mine = first + segment * 2 * kHalf;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      __stcg(mine + i * 256, make_float4(gate[4 * i], gate[4 * i + 1], gate[4 * i + 2], gate[4 * i + 3]));
      __stcg(mine + kHalf + i * 256, make_float4(up[4 * i], up[4 * i + 1], up[4 * i + 2], up[4 * i + 3]));
    }
    __threadfence();
    tdm::named_barrier_sync(kBothConsumers, 256);
    if (thread == 0) {
      const uint32_t arrived = atomicAdd(p.counters + tile, 1u);
      if (arrived + 1 == static_cast<uint32_t>(p.segments)) p.counters[tile] = 0;
      shared.flag = arrived;
      __threadfence();
    }
    tdm::named_barrier_sync(kBothConsumers, 256);
    if (shared.flag + 1 != static_cast<uint32_t>(p.segments)) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < kCount; ++i) gate[i] = up[i] = 0.0f;
#pragma unroll 1
    for (int32_t s = 0; s < p.segments; ++s) {
      const float4* partial = first + int64_t{s} * 2 * kHalf;
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
        const float4 g = __ldcg(partial + i * 256), h = __ldcg(partial + kHalf + i * 256);
        gate[4 * i] += g.x, gate[4 * i + 1] += g.y, gate[4 * i + 2] += g.z, gate[4 * i + 3] += g.w;
        up[4 * i] += h.x, up[4 * i + 1] += h.y, up[4 * i + 2] += h.z, up[4 * i + 3] += h.w;
      }
    }
    return true;
  }

  /* NaN passes the limit. */
  __device__ static __forceinline__ float swiglu(float gate, float up, float limit) {
    if (limit > 0.0f) {
      gate = gate > limit ? limit : gate;
      up = up > limit ? limit : up < -limit ? -limit : up;
    }
    return __fdiv_rn(gate, 1.0f + expf(-gate)) * up;
  }

  __device__ static void store(const tdm_moe_fc1_params& p, Memory& shared, float (&gate)[kCount],
                               const float (&up)[kCount], int32_t live, int32_t m0, int32_t tile, uint32_t consumer) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x) - 128, lane = thread % 32, warp = thread % 128 / 32;
    float(&v)[kCount] = gate;
    /* The largest magnitude of a token's values here; infinity stands for anything that is not finite. */
    float amax[kTokens / 4];
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) amax[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = swiglu(gate[i], up[i], p.swiglu_limit);
      const float magnitude = fabsf(v[i]) <= 3.402823466e38f ? fabsf(v[i]) : __uint_as_float(0x7f800000u);
      float& largest = amax[2 * (i / 4) + i % 2];
      largest = fmaxf(largest, magnitude);
    }
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        amax[i] = fmaxf(amax[i], __shfl_xor_sync(~0u, amax[i], distance));
      if (lane < 4) shared.amax[4 * consumer + warp][8 * (i / 2) + 2 * lane + i % 2] = amax[i];
    }
    tdm::named_barrier_sync(kBothConsumers, 256);
    const int32_t row = 64 * static_cast<int32_t>(consumer) + 16 * warp + lane / 4;
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
      const int32_t token = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
      float largest = 0.0f;
#pragma unroll
      for (int part = 0; part < 8; ++part) largest = fmaxf(largest, shared.amax[part][token]);
      const bool broken = !(largest <= 3.402823466e38f);
      const float scale = tdm::quant_scale(largest, broken, p.quant_eps, p.pow2_scale != 0);
      const int first = 4 * (i / 2) + i % 2;
      const uint32_t packed = tdm::e4m3x2(__fdiv_rn(v[first], scale), __fdiv_rn(v[first + 2], scale));
      uint8_t* target = shared.staged + token * TDM_MOE_FC1_STAGED_ROW_BYTES + row;
      target[0] = static_cast<uint8_t>(packed);
      target[8] = static_cast<uint8_t>(packed >> 8);
      const int32_t m = m0 + token;
      if (consumer == 0 && warp == 0 && lane < 4 && m < (live + 3) / 4 * 4)
        p.out_scale[tile * p.out_scale_stride + m] = m < live ? scale : 0.0f;
    }
    tdm::named_barrier_sync(kBothConsumers, 256);
    for (int32_t chunk = thread; chunk < kTokens * 8; chunk += 256) {
      const int32_t m = m0 + chunk / 8;
      if (m >= live) break;
      const uint8_t* source = shared.staged + chunk / 8 * TDM_MOE_FC1_STAGED_ROW_BYTES + chunk % 8 * 16;
      *reinterpret_cast<uint4*>(p.out + m * p.out_stride + int64_t{tile} * 128 + chunk % 8 * 16) =
          *reinterpret_cast<const uint4*>(source);
    }
    /* The next tile's first write to amax and staged is behind these barriers: a warpgroup reaches the first of them
     * only after its own reads, and the other's reads of amax are behind the second. */
  }

  __device__ static void run(const tdm_moe_fc1_params& p, const tdm_step_sync& sync) {
    extern __shared__ __align__(1024) uint8_t memory[];
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
    tdm::Hits hits{p.n_experts, false};
    if (p.hits != nullptr) {
      tdm::step_wait(sync);
      hits = tdm::load_hits(p.hits, p.n_experts);
    }
    if (threadIdx.x < 128) {
      if constexpr (!kTwoCtas) tdm::registers_lower<40>();
      const bool ahead = sync.fetches_ahead != 0 && p.m <= kTokens && !hits.listed;
      if (threadIdx.x == 0) load_weights(p, hits, shared, sync, ahead);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        load_tokens(p, hits, shared);
      }
    } else {
      if constexpr (!kTwoCtas) tdm::registers_raise<232>();
      tdm::step_wait(sync);
      multiply(p, hits, shared, threadIdx.x / 128 - 1);
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define FC1(tokens, stages)                                                                                            \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS, (tokens) <= 24 ? 2 : 1)                            \
      tdm_moe_fc1_t##tokens##_sm90(const __grid_constant__ tdm_moe_fc1_params p,                                       \
                                   const __grid_constant__ tdm_step_sync sync) {                                       \
    MoeFc1<tokens, stages>::run(p, sync);                                                                              \
  }
#include "kernels/moe_fc1/moe_fc1_variants.inc"
