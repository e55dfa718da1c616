/* FC1 with SwiGLU and requantisation and FC2 in one launch for sm_90a, of the experts that up to 8 tokens chose.
 *
 * So few tokens have few experts, so that each of the two kernels would spend about as long on beginning and ending as
 * on its weights: 33 and 17 MB for one token of DeepSeek-V3, of one of 8 ranks.
 *
 * 1. Items of work: pieces of FC1, kRows gate rows of an expert and their up rows, along all of K; then tiles of FC2,
 * 64 columns, all experts. CTAs draw them in this order, as they get through: whoever waits for pieces knows that CTAs
 * that run have them. So nothing depends on how many CTAs have an SM, nor do bits on who has which item.
 * 2. One thread asks for weights, item after item, into a ring of stages: while pieces of FC1 end and meet, the
 * first weights of FC2 are on their way already. An item begins with a stage that holds nothing but its number.
 * 3. Two warpgroups multiply, weights on the 64-row side of wgmma, two stages' products under way; both go through all
 * stages. A piece is one engine's, item by item in turn. Of a tile each engine has a segment of FC2's sum, stage by
 * stage in turn. Same products and sums in the same order as in the other forms, so the same bits. A fragment has four
 * elements, so a warp has gate rows or up rows alone; with kRows = 16 half of the 64 rows are whatever lies behind.
 * 4. All of FC1's activations come to shared memory once, by two copies. Pieces leave their f32 sums in the workspace.
 * When all of them are done, a CTA that has a tile takes the sums up, applies SwiGLU and quantises, for as many experts
 * at a time as there is room for where FC1's activations were.
 *
 *   warps 0 .. 3, 4 .. 7   the engines                     ring   [stages][16 KB]
 *   warp 8                 lane 0: weights, tokens         x      [blocks of H][8][128], swizzled
 *
 * Block: 288 threads. Limit: device bandwidth on w13 and w2 of the experts that were chosen. */

#include "kernels/device/choices.cuh"
#include "kernels/moe_experts/moe_experts_params.h"
#include "kernels/moe_fc1/moe_fc1.cuh"

namespace {

constexpr int kTokens = TDM_MOE_EXPERTS_TOKENS, kColumns = TDM_MOE_EXPERTS_COLUMNS;
constexpr uint32_t kEngineThreads = 128, kConsumers = 2 * kEngineThreads, kBothEngines = 3;

/* Where things lie in shared memory, in the order of tdm_moe_experts_bytes. */
struct Memory {
  uint8_t* w;
  uint8_t* x;     /* of FC1; then of FC2, of some experts */
  float* scale;   /* [blocks][kTokens] of x; of FC2 times the routing weight, 0 where a token did not choose */
  float* w_scale; /* [blocks] of a tile's weights, of FC2 */
  float* sums;    /* [kTokens][kColumns] of a tile, the second engine's */
  uint64_t* full;
  uint64_t* empty;
  uint64_t* x_full;
  uint32_t* items;   /* of a stage that begins one */
  uint32_t* bits;    /* [kTokens][32] experts of a token */
  uint16_t* experts; /* that somebody chose, ascending */

  __device__ __forceinline__ Memory(uint8_t* memory, const tdm_moe_experts_params& p)
      : w(memory), x(w + p.stages * TDM_MOE_EXPERTS_STAGE_BYTES) {
    const int32_t blocks = TDM_MOE_EXPERTS_BLOCKS(p.k_blocks);
    scale = reinterpret_cast<float*>(x + blocks * kTokens * 128);
    w_scale = scale + blocks * kTokens;
    sums = w_scale + blocks;
    full = reinterpret_cast<uint64_t*>(sums + kTokens * kColumns);
    empty = full + p.stages;
    x_full = empty + p.stages;
    items = reinterpret_cast<uint32_t*>(x_full + 1);
    bits = items + p.stages;
    experts = reinterpret_cast<uint16_t*>(bits + kTokens * 32);
  }
};

/* A warp's: lane l has experts 32 l to 32 l + 31. */
struct Chosen {
  uint32_t rows[kTokens]; /* of token r */
  uint32_t any;           /* of all tokens */
  int32_t before, n;      /* experts chosen in lower lanes; in all */

  __device__ __forceinline__ explicit Chosen(const uint32_t* bits) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    any = 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r) any |= rows[r] = bits[32 * r + lane];
    const int32_t up_to = tdm::sum_up(__popc(any));
    before = up_to - __popc(any);
    n = __shfl_sync(~0u, up_to, 31);
  }
  /* Number `index` of those chosen. */
  __device__ __forceinline__ int32_t expert(int32_t index) const {
    const int32_t word = 31 - __clz(static_cast<int32_t>(__ballot_sync(~0u, before <= index)));
    const uint32_t mine = __shfl_sync(~0u, any, word);
    const int32_t place = index - __shfl_sync(~0u, before, word), lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t found = __ballot_sync(~0u, (mine >> lane & 1) != 0 && __popc(mine & ((1u << lane) - 1)) == place);
    return 32 * word + __ffs(static_cast<int32_t>(found)) - 1;
  }
  /* Of those chosen, how many are below `e`. */
  __device__ __forceinline__ int32_t below(int32_t e) const {
    const int32_t left = e - 32 * static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t lower = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
    return static_cast<int32_t>(__reduce_add_sync(~0u, __popc(any & lower)));
  }
  __device__ __forceinline__ bool chose(int32_t token, int32_t expert) const {
    uint32_t mine = 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r) mine = token == r ? rows[r] : mine;
    return (__shfl_sync(~0u, mine, expert / 32) >> expert % 32 & 1) != 0;
  }
};

/* Barriers: device/gemm.cuh, Ring. Of a launch's number of stages. */
struct Ring {
  const Memory& shared;
  uint32_t stages, slot = 0, parity = 0;

  __device__ __forceinline__ Ring(const Memory& memory, const tdm_moe_experts_params& p)
      : shared(memory), stages(static_cast<uint32_t>(p.stages)) {
  }
  __device__ __forceinline__ void advance() {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ uint8_t* stage() const {
    return shared.w + slot * TDM_MOE_EXPERTS_STAGE_BYTES;
  }
  __device__ __forceinline__ void await() const {
    tdm::mbarrier_wait(&shared.full[slot], parity);
  }
  /* By a warp that has read the slot. */
  __device__ __forceinline__ void hand_back(uint32_t which) const {
    if (threadIdx.x % 32 == 0) tdm::mbarrier_arrive(&shared.empty[which]);
  }
  __device__ __forceinline__ uint64_t* begin_fill() const {
    tdm::mbarrier_wait(&shared.empty[slot], parity ^ 1);
    return &shared.full[slot];
  }
};

/* Numbers of items: pieces of FC1, then tiles of FC2. */
struct Items {
  uint32_t pieces, all;

  __device__ __forceinline__ Items(const tdm_moe_experts_params& p, const Chosen& chosen, int32_t pieces_of_tile)
      : pieces(static_cast<uint32_t>(chosen.n * p.blocks * pieces_of_tile)),
        all(pieces + static_cast<uint32_t>((p.n + kColumns - 1) / kColumns)) {
  }
};

/* Experts of a tile that are gone through together, as indices of the list, and which engine has which of them: those
 * below `second` the first. */
struct Round {
  int32_t first, second, end;

  __device__ __forceinline__ Round(const tdm_moe_experts_params& p, const Chosen& chosen, int32_t from)
      : first(from), end(min(from + TDM_MOE_EXPERTS_BLOCKS(p.k_blocks) / p.blocks, chosen.n)) {
    const int32_t bound = p.segments == 1 ? chosen.n : chosen.below(tdm::segment_begin(1, p.segments, p.n_experts, 1));
    second = min(max(bound, first), end);
  }
  __device__ __forceinline__ int32_t begin_of(uint32_t engine) const {
    return engine == 0 ? first : second;
  }
  __device__ __forceinline__ int32_t end_of(uint32_t engine) const {
    return engine == 0 ? second : end;
  }
  __device__ __forceinline__ int32_t count_of(uint32_t engine) const {
    return end_of(engine) - begin_of(engine);
  }
};

template <int kRows> struct MoeExperts {
  static constexpr int kPieces = 128 / kRows, kBlockBytes = 2 * kRows * 128;
  static constexpr int kBlocks = TDM_MOE_EXPERTS_STAGE_BYTES / kBlockBytes;

  struct Piece {
    int32_t tile, rows; /* 128 columns of FC1's output, the first of kRows */
  };
  __device__ static __forceinline__ Piece piece_at(const tdm_moe_experts_params& p, const Chosen& chosen,
                                                   uint32_t item) {
    const int32_t tile = static_cast<int32_t>(item) / kPieces, rows = static_cast<int32_t>(item) % kPieces * kRows;
    return Piece{chosen.expert(tile / p.blocks) * p.blocks + tile % p.blocks, rows};
  }

  /* ---- a warp that asks for weights, of which lane 0 copies ---- */

  __device__ static __forceinline__ void load_piece(const tdm_moe_experts_params& p, const Piece& piece, Ring& ring,
                                                    uint64_t policy) {
    for (int32_t kb = 0; kb < p.k_blocks; kb += kBlocks) {
      uint64_t* const full = ring.begin_fill();
      tdm::mbarrier_arrive_expect(full, TDM_MOE_EXPERTS_STAGE_BYTES);
      tdm::tma_load_4d(ring.stage(), &p.w13, full, policy, 0, piece.rows, 2 * piece.tile, kb);
      ring.advance();
    }
  }

  /* The engines' stages in turn, while both have some. */
  __device__ static __forceinline__ void load_tile(const tdm_moe_experts_params& p, const Chosen& chosen, int32_t tile,
                                                   Ring& ring, uint64_t policy) {
    const int32_t stages = p.blocks / p.stage_blocks; /* of an expert */
    for (int32_t from = 0; from < chosen.n;) {
      const Round round(p, chosen, from);
      const int32_t count[2] = {round.count_of(0) * stages, round.count_of(1) * stages};
      for (int32_t s = 0; s < max(count[0], count[1]); ++s) {
#pragma unroll
        for (uint32_t engine = 0; engine < 2; ++engine) {
          if (s >= count[engine]) continue;
          const int32_t expert = chosen.expert(round.begin_of(engine) + s / stages);
          if (threadIdx.x % 32 == 0) {
            uint64_t* const full = ring.begin_fill();
            tdm::mbarrier_arrive_expect(full, static_cast<uint32_t>(p.stage_blocks) * kColumns * 128);
            tdm::tma_load_3d(ring.stage(), &p.w2, full, policy, 0, tile * kColumns,
                             expert * p.blocks + s % stages * p.stage_blocks);
          }
          ring.advance();
        }
      }
      from = round.end;
    }
    __syncwarp();
  }

  __device__ static void load(const tdm_moe_experts_params& p, const Chosen& chosen, Ring ring, uint32_t item) {
    const Items items(p, chosen, kPieces);
    const uint64_t once = tdm::l2_evict_first();
    const bool copies = threadIdx.x % 32 == 0;
    for (;;) {
      item = __shfl_sync(~0u, item, 0);
      if (copies) {
        uint64_t* const full = ring.begin_fill();
        ring.shared.items[ring.slot] = item;
        tdm::mbarrier_arrive(full);
      }
      ring.advance();
      if (item >= items.all) return;
      const uint32_t next = copies ? atomicAdd(&p.state->drawn, 1u) : 0;
      if (item < items.pieces) {
        const Piece piece = piece_at(p, chosen, item);
        if (copies) load_piece(p, piece, ring, once);
        __syncwarp();
        ring.slot = __shfl_sync(~0u, ring.slot, 0);
        ring.parity = __shfl_sync(~0u, ring.parity, 0);
      } else {
        load_tile(p, chosen, static_cast<int32_t>(item - items.pieces), ring, once);
      }
      item = next;
    }
  }

  /* ---- an engine ---- */

  struct Engine {
    const tdm_moe_experts_params& p;
    const tdm_step_sync& sync;
    const Memory& shared;
    const Chosen& chosen;
    const int32_t live;
    const uint32_t which;
    Ring ring;
    uint32_t pieces_seen = 0;
    bool fc1_done = false;
    int32_t prepared = -1; /* first expert of the round whose activations are there */

    __device__ __forceinline__ Engine(const tdm_moe_experts_params& params, const tdm_step_sync& step,
                                      const Memory& memory, const Chosen& experts, int32_t live_tokens)
        : p(params), sync(step), shared(memory), chosen(experts), live(live_tokens),
          which(threadIdx.x / kEngineThreads), ring(memory, params) {
    }
    __device__ static __forceinline__ int32_t lane() {
      return static_cast<int32_t>(threadIdx.x % 32);
    }
    __device__ static __forceinline__ int32_t warp() { /* of the engine */
      return static_cast<int32_t>(threadIdx.x % kEngineThreads / 32);
    }
    __device__ __forceinline__ void skip(int32_t stages) {
      for (int32_t i = 0; i < stages; ++i) {
        ring.await();
        __syncwarp();
        ring.hand_back(ring.slot);
        ring.advance();
      }
    }

    __device__ __forceinline__ void work() {
      const Items items(p, chosen, kPieces);
      tdm::named_barrier_sync(kBothEngines, kConsumers); /* the list of experts is there */
      tdm::mbarrier_wait(shared.x_full, 0);
      for (;;) {
        ring.await();
        const uint32_t item = __shfl_sync(~0u, lane() == 0 ? shared.items[ring.slot] : 0, 0);
        ring.hand_back(ring.slot);
        ring.advance();
        if (item >= items.all) return;
        if (item >= items.pieces)
          tile(static_cast<int32_t>(item - items.pieces), items.pieces);
        else if (pieces_seen++ % 2 == which)
          piece(piece_at(p, chosen, item));
        else
          skip((p.k_blocks + kBlocks - 1) / kBlocks);
      }
    }

    /* ---- FC1 ---- */

    __device__ __forceinline__ void piece(const Piece& at) {
      const bool up = warp() >= kRows / 16, real = warp() < kRows / 8;
      /* Lane l holds the weight scales of blocks l and 32 + l, handed around by shuffles. */
      const float* const w_scales = p.w13_scale + (2 * at.tile + (up ? 1 : 0)) * p.w13_scale_stride;
      const float low = lane() < p.k_blocks ? __ldg(w_scales + lane()) : 0.0f;
      const float high = 32 + lane() < p.k_blocks ? __ldg(w_scales + 32 + lane()) : 0.0f;
      float c[4] = {}, even[kBlocks][4], odd[kBlocks][4];
      Ring asked = ring;
      /* Of the last stage as many blocks as of the others: those beyond K are multiplied and not added. */
      int32_t asked_block = 0, block = 0;
      const auto issue = [&](float(&acc)[kBlocks][4]) {
        asked.await();
        const uint64_t a = tdm::wgmma_descriptor(asked.stage());
        const uint64_t b = tdm::wgmma_descriptor(shared.x + asked_block * (kTokens * 128));
        tdm::wgmma_fence();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            tdm::wgmma_e4m3<kTokens>::issue(acc[i], a + i * (kBlockBytes / 16) + 2 * k, b + i * 64 + 2 * k, k != 0);
        tdm::wgmma_commit();
        asked.advance();
        asked_block += kBlocks;
      };
      const auto finish = [&](auto pending, float(&acc)[kBlocks][4]) {
        tdm::wgmma_wait<decltype(pending)::value>();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) tdm::wgmma_settle(acc[i]);
        ring.hand_back(ring.slot);
        ring.advance();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i, ++block) {
          const float w_scale = __shfl_sync(~0u, block < 32 ? low : high, block % 32);
          if (block >= p.k_blocks) continue;
          const float2 s = *reinterpret_cast<const float2*>(shared.scale + block * kTokens + 2 * (lane() % 4));
#pragma unroll
          for (int j = 0; j < 4; ++j) c[j] = fmaf((j % 2 == 0 ? s.x : s.y) * w_scale, acc[i][j], c[j]);
        }
      };
      two_under_way((p.k_blocks + kBlocks - 1) / kBlocks, even, odd, issue, finish);
      if (real) {
        const int32_t row = at.rows + warp() % (kRows / 16) * 16 + lane() / 4;
        float* const mine = sums_of(at.tile, 2 * (lane() % 4)) + (up ? 128 : 0) + row;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (2 * (lane() % 4) + j % 2 < live) __stcg(mine + j % 2 * 256 + j / 2 * 8, c[j]);
      }
      __threadfence();
      tdm::named_barrier_sync(1 + which, kEngineThreads);
      if (threadIdx.x % kEngineThreads == 0) atomicAdd(&p.state->done, 1u);
    }

    /* Some stages, one or more, the next one's products issued before the last one's are waited for. */
    template <class Products, class Issue, class Finish>
    __device__ static __forceinline__ void two_under_way(int32_t stages, Products& even, Products& odd, Issue issue,
                                                         Finish finish) {
      using One = tdm::Constant<1>;
      using None = tdm::Constant<0>;
      issue(even);
      int32_t left = stages - 1;
      for (; left > 1; left -= 2) {
        issue(odd);
        finish(One(), even);
        issue(even);
        finish(One(), odd);
      }
      if (left == 1) {
        issue(odd);
        finish(One(), even);
        finish(None(), odd);
      } else {
        finish(None(), even);
      }
    }

    /* Of a token, gate sums of a tile of FC1; 128 on the up sums. */
    __device__ __forceinline__ float* sums_of(int32_t tile, int32_t token) const {
      return p.sums + (int64_t{tile} * kTokens + token) * 256;
    }

    /* ---- FC2 ---- */

    __device__ __forceinline__ void tile(int32_t at, uint32_t pieces) {
      float c[4] = {};
      if (chosen.n == 0) tdm::named_barrier_sync(kBothEngines, kConsumers); /* the last tile's sums have been read */
      for (int32_t from = 0; from < chosen.n;) {
        const Round round(p, chosen, from);
        prepare(round, at, pieces);
        add_round(round, c);
        from = round.end;
      }
      store(at, c);
    }

    /* Both engines: the activations and scales of a round's experts, the scales of a tile's weights. */
    __device__ __forceinline__ void prepare(const Round& round, int32_t tile, uint32_t pieces) {
      const int32_t thread = static_cast<int32_t>(threadIdx.x), blocks = (round.end - round.first) * p.blocks;
      float w_scale = 0.0f;
      if (thread < blocks) {
        const int32_t kb = shared.experts[round.first + thread / p.blocks] * p.blocks + thread % p.blocks;
        w_scale = __ldg(p.w2_scale + tile * kColumns / 128 * p.w2_scale_stride + kb);
      }
      if (!fc1_done && thread == 0) {
        while (tdm::load_acquire(&p.state->done) < pieces && !tdm::launch_failed(sync)) {
        }
      }
      fc1_done = true;
      tdm::named_barrier_sync(kBothEngines, kConsumers);
      if (thread < blocks) shared.w_scale[thread] = w_scale;
      if (prepared != round.first) {
        take_up(round, blocks * live);
        prepared = round.first;
        tdm::fence_async_shared();
      }
      tdm::named_barrier_sync(kBothEngines, kConsumers);
    }

    /* A warp at a time has a block of a token. */
    __device__ __forceinline__ void take_up(const Round& round, int32_t count) const {
      constexpr int kAtOnce = 4, kWarps = kConsumers / 32;
      for (int32_t base = static_cast<int32_t>(threadIdx.x / 32); base < count; base += kAtOnce * kWarps) {
        float4 gate[kAtOnce], up[kAtOnce];
        float alpha[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int32_t unit = min(base + i * kWarps, count - 1), block = unit / live, token = unit % live;
          const int32_t expert = shared.experts[round.first + block / p.blocks];
          const float4* const from =
              reinterpret_cast<const float4*>(sums_of(expert * p.blocks + block % p.blocks, token)) + lane();
          gate[i] = up[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          alpha[i] = 0.0f;
          if (!chosen.chose(token, expert)) continue;
          gate[i] = __ldcg(from);
          up[i] = __ldcg(from + 32);
          alpha[i] = p.alpha == nullptr ? 1.0f : __ldcg(p.alpha + token * p.alpha_stride + expert);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (base + i * kWarps >= count) break;
          const int32_t unit = base + i * kWarps, block = unit / live, token = unit % live;
          quantise(gate[i], up[i], alpha[i], block, token);
        }
      }
    }
    __device__ __forceinline__ void quantise(const float4& gate, const float4& up, float alpha, int32_t block,
                                             int32_t token) const {
      const float v[4] = {
          tdm::swiglu_quick(gate.x, up.x, p.swiglu_limit), tdm::swiglu_quick(gate.y, up.y, p.swiglu_limit),
          tdm::swiglu_quick(gate.z, up.z, p.swiglu_limit), tdm::swiglu_quick(gate.w, up.w, p.swiglu_limit)};
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = max(largest, tdm::magnitude(v[i]));
      const tdm::Quantiser quantiser(__reduce_max_sync(~0u, largest), p.quant_eps, p.pow2_scale != 0);
      uint8_t* const to = shared.x + block * (kTokens * 128) +
                          tdm::swizzled(static_cast<uint32_t>(token), static_cast<uint32_t>(lane() / 4));
      *reinterpret_cast<uint32_t*>(to + lane() % 4 * 4) =
          static_cast<uint32_t>(quantiser.pair(v[0], v[1])) | static_cast<uint32_t>(quantiser.pair(v[2], v[3])) << 16;
      if (lane() == 0) shared.scale[block * kTokens + token] = alpha == 0.0f ? 0.0f : quantiser.scale * alpha;
    }

    /* Stages of the two engines come in turn, while both have some. */
    __device__ __forceinline__ void add_round(const Round& round, float (&c)[4]) {
      constexpr int kMost = 2;
      const int32_t stages = p.blocks / p.stage_blocks;
      const int32_t mine = round.count_of(which) * stages, others = round.count_of(1 - which) * stages;
      int32_t skipped = 0, asked = 0, block = (round.begin_of(which) - round.first) * p.blocks, asked_block = block;
      float even[kMost][4], odd[kMost][4];
      uint32_t slots[2] = {};
      const auto pass_others = [&](int32_t up_to) {
        skip(up_to - skipped);
        skipped = up_to;
      };
      const auto issue = [&](float(&acc)[kMost][4]) {
        pass_others(max(skipped, min(asked + static_cast<int32_t>(which), others)));
        ring.await();
        const uint64_t a = tdm::wgmma_descriptor(ring.stage());
        const uint64_t b = tdm::wgmma_descriptor(shared.x + asked_block * (kTokens * 128));
        tdm::wgmma_fence();
#pragma unroll
        for (int i = 0; i < kMost; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            tdm::wgmma_e4m3<kTokens>::issue(acc[i], a + i * (kColumns * 128 / 16) + 2 * k, b + i * 64 + 2 * k, k != 0);
        tdm::wgmma_commit();
        slots[1] = slots[0];
        slots[0] = ring.slot;
        ring.advance();
        ++asked;
        asked_block += p.stage_blocks;
      };
      const auto finish = [&](auto pending, float(&acc)[kMost][4]) {
        constexpr int kPending = decltype(pending)::value;
        tdm::wgmma_wait<kPending>();
#pragma unroll
        for (int i = 0; i < kMost; ++i) tdm::wgmma_settle(acc[i]);
        ring.hand_back(slots[kPending]);
#pragma unroll
        for (int i = 0; i < kMost; ++i) {
          if (i >= p.stage_blocks) continue;
          const float w_scale = shared.w_scale[block];
          const float2 s = *reinterpret_cast<const float2*>(shared.scale + block * kTokens + 2 * (lane() % 4));
          ++block;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float folded = j % 2 == 0 ? s.x : s.y;
            const float sum = fmaf(folded * w_scale, acc[i][j], c[j]);
            c[j] = folded != 0.0f ? sum : c[j]; /* the dense form passes over what has no weight */
          }
        }
      };
      if (mine > 0) two_under_way(mine, even, odd, issue, finish);
      pass_others(others);
    }

    /* Both engines: the segments' sum, ascending, by the first. */
    __device__ __forceinline__ void store(int32_t tile, const float (&c)[4]) const {
      const int32_t first = warp() * 16 + lane() / 4;
      const auto at = [&](int j) { return (2 * (lane() % 4) + j % 2) * kColumns + first + j / 2 * 8; };
      if (which == 1) {
#pragma unroll
        for (int j = 0; j < 4; ++j) shared.sums[at(j)] = c[j];
      }
      tdm::named_barrier_sync(kBothEngines, kConsumers);
      if (which == 1) return;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int32_t token = 2 * (lane() % 4) + j % 2, column = tile * kColumns + first + j / 2 * 8;
        if (token >= live || column >= p.n) continue;
        float sum = c[j] + shared.sums[at(j)];
        if (p.addend != nullptr) sum += tdm::load_element(p.addend, p.addend_dtype, token * p.addend_stride + column);
        tdm::store_element(p.out, p.out_dtype, token * p.out_stride + column, sum);
      }
    }
  };

  /* ---- a CTA ---- */

  __device__ static __forceinline__ void load_tokens(const tdm_moe_experts_params& p, const Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    tdm::mbarrier_arrive_expect(shared.x_full, static_cast<uint32_t>(p.k_blocks) * kTokens * (128 + 4));
    tdm::tma_load_3d(shared.x, &p.x, shared.x_full, often, 0, 0, 0);
    tdm::tma_load_2d(shared.scale, &p.x_scale, shared.x_full, often, 0, 0);
  }

  /* All threads: who chose which expert, and the list of those that somebody chose; one look, so that all warps see the
   * same. */
  __device__ static __forceinline__ Chosen look(const tdm_moe_experts_params& p, const Memory& shared, int32_t live) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), row = static_cast<int32_t>(threadIdx.x / 32);
    if (row < kTokens) {
      const int32_t left = p.n_experts - 32 * lane;
      const uint32_t real = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
      const bool there = row < p.m && left > 0;
      const uint32_t bits =
          there ? static_cast<uint32_t>(__ldcg(p.choices.bits + row * p.choices.stride + lane)) & real : 0;
      shared.bits[32 * row + lane] = row < live ? bits : 0;
    }
    __syncthreads();
    const Chosen chosen(shared.bits);
    if (row == 0) {
      int32_t at = chosen.before;
      for (uint32_t bits = chosen.any; bits != 0; bits &= bits - 1)
        shared.experts[at++] = static_cast<uint16_t>(32 * lane + __ffs(static_cast<int32_t>(bits)) - 1);
    }
    return chosen;
  }

  __device__ static void run(const tdm_moe_experts_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    const Memory shared(memory, p);
    uint32_t first = 0;
    tdm::step_enter(sync);
    if (threadIdx.x == kConsumers) {
      for (int32_t i = 0; i < p.stages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1);
        tdm::mbarrier_init(&shared.empty[i], kConsumers / 32);
      }
      tdm::mbarrier_init(shared.x_full, 1);
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w13);
      tdm::tma_prefetch_map(&p.x);
      tdm::tma_prefetch_map(&p.x_scale);
      tdm::tma_prefetch_map(&p.w2);
      if (sync.reads_ahead != 0) { /* routing may still run */
        tdm::fence_async();
        load_tokens(p, shared);
      }
      first = atomicAdd(&p.state->drawn, 1u); /* this step's alone, and its last launch is complete */
    }
    tdm::step_wait(sync);
    if (threadIdx.x == kConsumers && sync.reads_ahead == 0) load_tokens(p, shared);
    const int32_t live = tdm::live_rows(p.n_tokens, p.m);
    const Chosen chosen = look(p, shared, live);
    if (threadIdx.x < kConsumers) {
      Engine engine(p, sync, shared, chosen, live);
      engine.work();
    } else {
      load(p, chosen, Ring(shared, p), first);
    }
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(&p.state->left, 1u) + 1 == gridDim.x) *p.state = tdm_moe_experts_state{};
    tdm::step_end(sync);
  }
};

} // namespace

#define EXPERTS(rows)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_EXPERTS_THREADS, 1) tdm_moe_experts_n##rows##_sm90(             \
      const __grid_constant__ tdm_moe_experts_params p, const __grid_constant__ tdm_step_sync sync) {                  \
    MoeExperts<rows>::run(p, sync);                                                                                    \
  }
EXPERTS(16)
EXPERTS(32)
