/* FC1 with SwiGLU and FP8 requantisation for sm_90a, of the experts that up to 8 tokens chose.
 *
 * So few tokens have few experts: nine of one token are 18 tiles for 132 SMs. A unit is therefore a piece of a tile,
 * kRows gate rows and their up rows, along all of K.
 *
 * 1. All tokens' activations, 8 KB for 1024 of K, come to shared memory once, by two copies.
 * 2. A CTA has two engines, each a thread that asks for weights (a stage is kBlocks blocks of 128 along K) and a
 * warpgroup that multiplies them with all tokens: the swapped form, weights on the 64-row side of wgmma, two stages'
 * products under way. A fragment has four elements, so a warp has gate rows or up rows alone. Same products and sums in
 * the same order as in the other forms, so the same bits. With kRows = 16 half of the 64 rows are whatever lies behind
 * the stage; nobody reads their products.
 * 3. The pieces of a tile meet in the workspace as f32 rows; the last to arrive applies SwiGLU, quantises and stores
 * what was chosen.
 * 4. Which experts were chosen every warp finds for itself: a lane holds a word of 32 experts of each token.
 *
 *   warps 0 .. 3, 4 .. 7   the engines' warpgroups      warps 8, 9   lane 0: their weights; of warp 8 tokens too
 *
 * Block: 320 threads. Limit: device bandwidth on w13 of the experts that were chosen. */

#include "kernels/moe_fc1/moe_fc1.cuh"
#include "kernels/moe_fc1/moe_fc1_few_params.h"

namespace {

constexpr int kTokens = TDM_MOE_FC1_FEW_TOKENS, kEngines = 2, kStages = TDM_MOE_FC1_FEW_STAGES;

/* In shared memory: stages of all engines, then x [K / 128][kTokens][128] e4m3, swizzled, scale [K / 128][kTokens],
 * and: */
struct Barriers {
  uint64_t full[kEngines * kStages];
  uint64_t empty[kEngines * kStages];
  uint64_t x_full;
  uint32_t last[kEngines];
};
static_assert(sizeof(Barriers) <= TDM_MOE_FC1_FEW_BARRIER_BYTES, "launch size");

/* A warp's: lane l has experts 32 l to 32 l + 31. */
struct Chosen {
  uint32_t rows[kTokens]; /* of token r */
  uint32_t any;           /* of all tokens */
  int32_t before, n;      /* experts chosen in lower lanes; in all */

  __device__ __forceinline__ Chosen(const tdm_choices_params& p, int32_t n_experts, int32_t live) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), left = n_experts - 32 * lane;
    const uint32_t real = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r)
      rows[r] = r < live && left > 0 ? static_cast<uint32_t>(__ldcg(p.bits + r * p.stride + lane)) & real : 0;
    any = 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r) any |= rows[r];
    int32_t up_to = __popc(any);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t lower = __shfl_up_sync(~0u, up_to, distance);
      if (lane >= distance) up_to += lower;
    }
    before = up_to - __popc(any);
    n = __shfl_sync(~0u, up_to, 31);
  }
  /* Number `index` of those chosen. */
  __device__ __forceinline__ int32_t expert(int32_t index) const {
    const int32_t word = 31 - __clz(static_cast<int32_t>(__ballot_sync(~0u, before <= index)));
    const uint32_t bits = __shfl_sync(~0u, any, word);
    const int32_t place = index - __shfl_sync(~0u, before, word), lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t found = __ballot_sync(~0u, (bits >> lane & 1) != 0 && __popc(bits & ((1u << lane) - 1)) == place);
    return 32 * word + __ffs(static_cast<int32_t>(found)) - 1;
  }
  __device__ __forceinline__ bool chose(int32_t token, int32_t expert) const {
    uint32_t mine = 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r) mine = token == r ? rows[r] : mine;
    return __shfl_sync(~0u, mine, expert / 32) >> expert % 32 & 1;
  }
};

template <int kRows> struct MoeFc1Few {
  static constexpr int kPieces = 128 / kRows, kBlockBytes = 2 * kRows * 128;
  static constexpr int kBlocks = TDM_MOE_FC1_FEW_STAGE_BYTES / kBlockBytes;
  /* An engine's stages: those of all, where it is the only one that has units. */
  struct Ring : tdm::SizedRing {
    uint8_t* w;

    __device__ Ring(uint8_t* memory, Barriers& barriers, int32_t engine, bool alone)
        : tdm::SizedRing{barriers.full + engine * kStages, barriers.empty + engine * kStages,
                         static_cast<uint32_t>(alone ? kEngines * kStages : kStages)},
          w(memory + engine * kStages * TDM_MOE_FC1_FEW_STAGE_BYTES) {
    }
    __device__ __forceinline__ uint8_t* stage() const {
      return w + slot * TDM_MOE_FC1_FEW_STAGE_BYTES;
    }
  };

  struct Unit {
    int32_t tile, piece;
  };

  /* Units of an engine: the CTAs' first engines come first. */
  struct Walk {
    const tdm_moe_fc1_params& p;
    const Chosen& chosen;
    int32_t first, step, units;

    __device__ Walk(const tdm_moe_fc1_params& params, const Chosen& experts, int32_t engine)
        : p(params), chosen(experts),
          first(static_cast<int32_t>(blockIdx.x) + engine * static_cast<int32_t>(gridDim.x)),
          step(kEngines * static_cast<int32_t>(gridDim.x)), units(chosen.n * p.expert_tiles * kPieces) {
    }
    /* Whether only the CTA's first engine has units. */
    __device__ bool alone() const {
      return static_cast<int32_t>(blockIdx.x + gridDim.x) >= units;
    }
    __device__ Unit at(int32_t unit) const {
      const int32_t tile = unit / kPieces;
      return Unit{chosen.expert(tile / p.expert_tiles) * p.expert_tiles + tile % p.expert_tiles, unit % kPieces};
    }
  };

  /* A warp, of which lane 0 copies. */
  __device__ static void load_weights(const Walk& walk, Ring ring) {
    const tdm_moe_fc1_params& p = walk.p;
    const uint64_t once = tdm::l2_evict_first();
    for (int32_t u = walk.first; u < walk.units; u += walk.step) {
      const Unit unit = walk.at(u);
      if (threadIdx.x % 32 == 0) {
        const int32_t row = unit.tile * 256 + unit.piece * kRows;
        for (int32_t kb = 0; kb < p.k_blocks; kb += kBlocks) {
          const int32_t blocks = min(p.k_blocks - kb, kBlocks);
          uint64_t* const barrier = ring.begin_fill();
          tdm::mbarrier_arrive_expect(barrier, static_cast<uint32_t>(blocks * kBlockBytes));
          for (int32_t b = 0; b < blocks; ++b) {
            uint8_t* const w = ring.stage() + b * kBlockBytes;
            tdm::tma_load_3d(w, &p.w, barrier, once, 0, row, kb + b);
            tdm::tma_load_3d(w + kBlockBytes / 2, &p.w, barrier, once, 0, row + 128, kb + b);
          }
          ring.advance();
        }
      }
      __syncwarp();
    }
  }

  /* A warpgroup. */
  __device__ static void multiply(const Walk& walk, Ring ring, const uint8_t* x, const float* scale, Barriers& barriers,
                                  int32_t which) {
    const tdm_moe_fc1_params& p = walk.p;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
    const bool up = warp >= kRows / 16, real = warp < kRows / 8;
    Ring asked = ring;
    tdm::mbarrier_wait(&barriers.x_full, 0);
    for (int32_t u = walk.first; u < walk.units; u += walk.step) {
      const Unit unit = walk.at(u);
      /* Lane l holds the weight scales of blocks l and 32 + l, handed around by shuffles. */
      const float* const w_scales = p.w_scale + (2 * unit.tile + (up ? 1 : 0)) * p.w_scale_stride;
      const float low = lane < p.k_blocks ? __ldg(w_scales + lane) : 0.0f;
      const float high = 32 + lane < p.k_blocks ? __ldg(w_scales + 32 + lane) : 0.0f;
      float c[4] = {}, even[kBlocks][4], odd[kBlocks][4];
      /* Of the last stage as many blocks as of the others: those beyond K are multiplied and not added. */
      int32_t asked_block = 0, block = 0;
      const auto issue = [&](float(&acc)[kBlocks][4]) {
        const uint32_t a = tdm::same_in_warp(tdm::wgmma_descriptor_lower(asked.stage()));
        const uint32_t b = tdm::same_in_warp(tdm::wgmma_descriptor_lower(x + asked_block * 1024));
        asked.await();
        tdm::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) /* blocks side by side; one after the other is as quick */
#pragma unroll
          for (int i = 0; i < kBlocks; ++i)
            tdm::wgmma_e4m3<kTokens>::issue(acc[i], tdm::wgmma_descriptor_whole(a + i * (kBlockBytes / 16) + 2 * k),
                                            tdm::wgmma_descriptor_whole(b + i * 64 + 2 * k), k != 0);
        tdm::wgmma_commit();
        asked.advance();
        asked_block += kBlocks;
      };
      const auto finish = [&](auto pending, float(&acc)[kBlocks][4]) {
        tdm::wgmma_wait<decltype(pending)::value>();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) tdm::wgmma_settle(acc[i]);
        ring.hand_back();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i, ++block) {
          const float w_scale = __shfl_sync(~0u, block < 32 ? low : high, block % 32);
          if (block >= p.k_blocks) continue;
          const float2 s = *reinterpret_cast<const float2*>(scale + block * kTokens + 2 * (lane % 4));
#pragma unroll
          for (int j = 0; j < 4; ++j) c[j] = fmaf((j % 2 == 0 ? s.x : s.y) * w_scale, acc[i][j], c[j]);
        }
      };
      using One = tdm::Constant<1>;
      using None = tdm::Constant<0>;
      issue(even);
      for (; asked_block + kBlocks < p.k_blocks;) {
        issue(odd);
        finish(One(), even);
        issue(even);
        finish(One(), odd);
      }
      if (asked_block < p.k_blocks) {
        issue(odd);
        finish(One(), even);
        finish(None(), odd);
      } else {
        finish(None(), even);
      }
      if (real) {
        /* [tile][token][gate, up][128] */
        const int32_t row = unit.piece * kRows + warp % (kRows / 16) * 16 + lane / 4;
        float* const mine =
            p.partials + ((int64_t{unit.tile} * kTokens + 2 * (lane % 4)) * 2 + (up ? 1 : 0)) * 128 + row;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (2 * (lane % 4) + j % 2 < p.m) __stcg(mine + j % 2 * 256 + j / 2 * 8, c[j]);
        }
      }
      meet(walk, unit, barriers.last[which], static_cast<uint32_t>(1 + which));
    }
  }

  __device__ static void meet(const Walk& walk, const Unit& unit, uint32_t& last, uint32_t barrier) {
    const tdm_moe_fc1_params& p = walk.p;
    tdm::named_barrier_sync(barrier, 128);
    if (threadIdx.x % 128 == 0) last = tdm::arrives_last(p.counters + unit.tile, kPieces);
    tdm::named_barrier_sync(barrier, 128);
    if (last == 0) return;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
    const int32_t expert = unit.tile / p.expert_tiles;
    for (int32_t token = warp; token < kTokens; token += 4) {
      if (!walk.chosen.chose(token, expert)) continue;
      const float4* const from =
          reinterpret_cast<const float4*>(p.partials + (int64_t{unit.tile} * kTokens + token) * 256) + lane;
      const float4 gate = __ldcg(from), up = __ldcg(from + 32);
      const float v[4] = {
          tdm::swiglu_quick(gate.x, up.x, p.swiglu_limit), tdm::swiglu_quick(gate.y, up.y, p.swiglu_limit),
          tdm::swiglu_quick(gate.z, up.z, p.swiglu_limit), tdm::swiglu_quick(gate.w, up.w, p.swiglu_limit)};
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = max(largest, tdm::magnitude(v[i]));
      const tdm::Quantiser quantiser(p, __reduce_max_sync(~0u, largest));
      if (lane == 0) p.out_scale[unit.tile * p.out_scale_stride + token] = quantiser.scale;
      *reinterpret_cast<uint32_t*>(p.out + token * p.out_stride + int64_t{unit.tile} * 128 + lane * 4) =
          static_cast<uint32_t>(quantiser.pair(v[0], v[1])) | static_cast<uint32_t>(quantiser.pair(v[2], v[3])) << 16;
    }
  }

  __device__ static void run(const tdm_moe_fc1_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    uint8_t* const x = memory + TDM_MOE_FC1_FEW_RING_BYTES;
    float* const scale = reinterpret_cast<float*>(x + p.k_blocks * kTokens * 128);
    Barriers& barriers = *reinterpret_cast<Barriers*>(reinterpret_cast<uint8_t*>(scale) + p.k_blocks * kTokens * 4);
    const auto load_tokens = [&] {
      const uint64_t often = tdm::l2_evict_last();
      tdm::mbarrier_arrive_expect(&barriers.x_full, static_cast<uint32_t>(p.k_blocks) * kTokens * (128 + 4));
      tdm::tma_load_3d(x, &p.x, &barriers.x_full, often, 0, 0, 0);
      tdm::tma_load_2d(scale, &p.x_scale, &barriers.x_full, often, 0, 0);
    };
    tdm::step_enter(sync, false);
    if (threadIdx.x == 256) {
      for (int i = 0; i < kEngines * kStages; ++i) {
        tdm::mbarrier_init(&barriers.full[i], 1);
        tdm::mbarrier_init(&barriers.empty[i], 4);
      }
      tdm::mbarrier_init(&barriers.x_full, 1);
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w);
      tdm::tma_prefetch_map(&p.x);
      tdm::tma_prefetch_map(&p.x_scale);
      if (sync.reads_ahead != 0) { /* routing may still run */
        tdm::fence_async();
        load_tokens();
      }
    }
    __syncthreads();
    tdm::step_wait(sync);
    tdm::step_admit_next(); /* late: FC2 may then look at what routing chose */
    const int32_t warp = static_cast<int32_t>(threadIdx.x / 32), engine = warp < 8 ? warp / 4 : warp - 8;
    if (threadIdx.x == 256 && sync.reads_ahead == 0) load_tokens();
    __syncwarp();
    const Chosen chosen(p.choices, p.n_experts, tdm::live_rows(p.n_tokens, p.m));
    const Walk walk(p, chosen, engine);
    const Ring ring(memory, barriers, engine, walk.alone());
    if (warp < 8)
      multiply(walk, ring, x, scale, barriers, engine);
    else
      load_weights(walk, ring);
    tdm::step_end(sync);
  }
};

} // namespace

#define FEW(rows)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_FEW_THREADS, 1) tdm_moe_fc1_few_n##rows##_sm90(             \
      const __grid_constant__ tdm_moe_fc1_params p, const __grid_constant__ tdm_step_sync sync) {                      \
    MoeFc1Few<rows>::run(p, sync);                                                                                     \
  }
FEW(16)
FEW(32)
