/* FC1 with SwiGLU and requantisation and FC2 in one launch for sm_90a, of the experts that up to 8 tokens chose.
 *
 * So few tokens have few experts, so that each of the two kernels would spend about as long on beginning and ending as
 * on its weights: 33 and 17 MB for one token of DeepSeek-V3, of one of 8 ranks.
 *
 * 1. Items of work: pieces of FC1, up to kRows gate rows of an expert and their up rows, along all of K; then tiles of
 * FC2, 64 columns, all experts. CTAs draw them in this order, as they get through: whoever waits for pieces knows that
 * CTAs that run have them. So nothing depends on how many CTAs have an SM, nor do bits on who has which item.
 * 2. One thread asks for weights, item after item, into a ring of stages: while pieces of FC1 end and meet, the first
 * weights of FC2 are on their way already. An item begins with a stage that holds nothing but its number.
 * 3. Two warpgroups multiply, weights on the 64-row side of wgmma, two stages' products under way; both go through all
 * stages. A piece is one engine's, a segment of FC2's sum too; where both have something of an item, their stages come
 * in turn. Same products and sums in the same order as in the other forms, so the same bits. Of the 64 rows of a
 * fragment kRows are gate rows, as many up rows, the others whatever lies behind.
 * 4. All of FC1's activations come to shared memory once, by the engines' threads. Pieces leave their f32 sums in the
 * workspace. When all of them are done, a CTA that has a tile takes the sums up, applies SwiGLU and quantises, for as
 * many experts at a time as there is room for where FC1's activations were. Who comes late, the engine that has the
 * last piece, finds all done that does not need the sums.
 *
 *   warps 0 .. 3, 4 .. 7   the engines                     ring   [stages][16 KB]
 *   warp 8                 lane 0: weights                 x      [blocks of H][8][128], swizzled
 *
 * Block: 288 threads. Limit: device bandwidth on w13 and w2 of the experts that were chosen. */

#include "kernels/device/choices.cuh"
#include "kernels/moe_experts/moe_experts_params.h"
#include "kernels/moe_fc1/moe_fc1.cuh"

namespace {

constexpr int kTokens = TDM_MOE_EXPERTS_TOKENS, kColumns = TDM_MOE_EXPERTS_COLUMNS;
constexpr uint32_t kEngineThreads = 128, kConsumers = 2 * kEngineThreads, kBothEngines = 3;
constexpr int32_t kWarps = kConsumers / 32, kUnits = TDM_MOE_EXPERTS_MOST_BLOCKS * kTokens / kWarps;

/* Where things lie in shared memory, in the order of tdm_moe_experts_bytes. */
struct Memory {
  uint8_t* w;
  uint8_t* x;     /* of FC1; then of FC2, of some experts */
  float* scale;   /* [blocks][kTokens] of x; of FC2 times the routing weight, 0 where a token did not choose */
  float* w_scale; /* [blocks] of a tile's weights, of FC2 */
  float* sums;    /* [kTokens][kColumns] of a tile, the first engine's */
  uint64_t* full;
  uint64_t* empty;
  uint64_t* x_full;
  uint64_t* past;    /* both engines: FC1 is behind them, their pieces counted and the others' waited for */
  uint2* units;      /* [kWarps][kUnits] of a round, what each warp takes up: unit_of, and the routing weight */
  uint32_t* items;   /* of a stage that begins one */
  int32_t* counts;   /* experts that somebody chose; of these, in the first segment of FC2 */
  uint32_t* experts; /* those, ascending; from bit 16 on a bit a token that chose it */

  __device__ __forceinline__ Memory(uint8_t* memory, const tdm_moe_experts_params& p)
      : w(memory), x(w + p.stages * TDM_MOE_EXPERTS_STAGE_BYTES) {
    const int32_t blocks = TDM_MOE_EXPERTS_BLOCKS(p.k_blocks);
    scale = reinterpret_cast<float*>(x + blocks * kTokens * 128);
    w_scale = scale + blocks * kTokens;
    sums = w_scale + blocks;
    full = reinterpret_cast<uint64_t*>(sums + kTokens * kColumns);
    empty = full + p.stages;
    x_full = empty + p.stages;
    past = x_full + 1;
    units = reinterpret_cast<uint2*>(past + 1);
    items = reinterpret_cast<uint32_t*>(units + kWarps * kUnits);
    counts = reinterpret_cast<int32_t*>(items + p.stages);
    experts = reinterpret_cast<uint32_t*>(counts + 2);
  }
  __device__ __forceinline__ int32_t expert(int32_t index) const {
    return static_cast<int32_t>(experts[index] & 0xffff);
  }
};

/* Of stages of weights; one that begins an item holds the item's number instead. */
struct Ring : tdm::SizedRing {
  const Memory& shared;

  __device__ __forceinline__ Ring(const Memory& memory, const tdm_moe_experts_params& p)
      : tdm::SizedRing{memory.full, memory.empty, static_cast<uint32_t>(p.stages)}, shared(memory) {
  }
  __device__ __forceinline__ uint8_t* stage() const {
    return shared.w + slot * TDM_MOE_EXPERTS_STAGE_BYTES;
  }
  /* Any slot, by a warp whose lanes have all read it: an engine has two under way. */
  __device__ __forceinline__ void hand_back_slot(uint32_t which) const {
    if (threadIdx.x % 32 == 0) tdm::mbarrier_arrive(&empty[which]);
  }
  /* A stage that `bytes` are copied to. */
  __device__ __forceinline__ uint64_t* begin_copy(uint32_t bytes) const {
    uint64_t* const barrier = begin_fill();
    tdm::mbarrier_arrive_expect(barrier, bytes);
    return barrier;
  }
  __device__ __forceinline__ void fill_item(uint32_t item) {
    uint64_t* const barrier = begin_fill();
    shared.items[slot] = item;
    tdm::mbarrier_arrive(barrier);
    advance();
  }
};

/* A warp's way through an item's stages: of its engine and of the other, which come in turn while both have some. Up to
 * two of its own may be under way. */
struct Way {
  Ring& ring;
  const int32_t which, others;
  int32_t asked = 0, passed = 0;
  uint32_t last = 0, before_last = 0; /* slots */

  __device__ __forceinline__ Way(Ring& at, uint32_t engine, int32_t others_stages)
      : ring(at), which(static_cast<int32_t>(engine)), others(others_stages) {
  }
  __device__ __forceinline__ void pass(int32_t up_to) {
    for (; passed < up_to; ++passed) {
      ring.await();
      __syncwarp();
      ring.hand_back();
    }
  }
  __device__ __forceinline__ const uint8_t* next() {
    pass(min(asked + which, others));
    ring.await();
    const uint8_t* const stage = ring.stage();
    before_last = last;
    last = ring.slot;
    ring.advance();
    ++asked;
    return stage;
  }
  /* The older one, or the only one that is under way. */
  __device__ __forceinline__ void hand_back(bool of_two) const {
    ring.hand_back_slot(of_two ? before_last : last);
  }
  __device__ __forceinline__ void end() {
    pass(others);
  }
};

/* Numbers of items: pieces of FC1, then tiles of FC2. */
struct Items {
  uint32_t pieces, all;

  __device__ __forceinline__ Items(const tdm_moe_experts_params& p, const Memory& shared, int32_t pieces_of_tile)
      : pieces(static_cast<uint32_t>(shared.counts[0] * p.blocks * pieces_of_tile)),
        all(pieces + static_cast<uint32_t>((p.n + kColumns - 1) / kColumns)) {
  }
};

/* Experts of a tile that are gone through together, as indices of the list, and which engine has which of them: those
 * below `second` the first. */
struct Round {
  int32_t first, second, end;

  __device__ __forceinline__ Round(const tdm_moe_experts_params& p, const Memory& shared, int32_t from)
      : first(from), end(min(from + p.k_blocks / p.blocks, shared.counts[0])) {
    second = min(max(shared.counts[1], first), end);
  }
  __device__ __forceinline__ int32_t begin_of(uint32_t engine) const {
    return engine == 0 ? first : second;
  }
  __device__ __forceinline__ int32_t count_of(uint32_t engine) const {
    return (engine == 0 ? second : end) - begin_of(engine);
  }
};

template <int kRows> struct MoeExperts {
  static constexpr int kPieces = TDM_MOE_EXPERTS_PIECES(kRows), kBlocks = TDM_MOE_EXPERTS_STAGE_BLOCKS(kRows);
  static constexpr int kBlockBytes = TDM_MOE_EXPERTS_BLOCK_BYTES(kRows);
  static constexpr int kCopyBlocks = TDM_MOE_EXPERTS_COPY_BLOCKS(kRows), kCopyBytes = kCopyBlocks * 2 * kRows * 128;

  __device__ static __forceinline__ int32_t piece_stages(const tdm_moe_experts_params& p) {
    return (p.k_blocks + kBlocks - 1) / kBlocks;
  }
  /* Of a piece: 128 columns of FC1's output, its first row among them and how many it has, kRows or one less. */
  struct Place {
    int32_t tile, row, rows;
  };
  __device__ static __forceinline__ Place place_of(const tdm_moe_experts_params& p, const Memory& shared,
                                                   int32_t piece) {
    const int32_t tile = piece / kPieces, part = piece % kPieces, row = 128 * part / kPieces;
    return Place{shared.expert(tile / p.blocks) * p.blocks + tile % p.blocks, row, 128 * (part + 1) / kPieces - row};
  }

  /* ---- a thread that asks for weights ---- */

  __device__ static __forceinline__ void load_piece(const tdm_moe_experts_params& p, const Place& place, Ring& ring,
                                                    uint64_t policy) {
    for (int32_t kb = 0; kb < p.k_blocks; kb += kBlocks) {
      uint64_t* const full = ring.begin_copy(kBlocks / kCopyBlocks * kCopyBytes);
#pragma unroll
      for (int i = 0; i < kBlocks; i += kCopyBlocks) /* what is beyond K comes as zeros */
        tdm::tma_load_4d(ring.stage() + i * kBlockBytes, &p.w13, full, policy, 0, place.row, 2 * place.tile, kb + i);
      ring.advance();
    }
  }

  __device__ static __forceinline__ void load_tile(const tdm_moe_experts_params& p, const Memory& shared, int32_t tile,
                                                   Ring& ring, uint64_t policy) {
    const int32_t stages = p.blocks / p.stage_blocks; /* of an expert */
    for (int32_t from = 0; from < shared.counts[0];) {
      const Round round(p, shared, from);
      int32_t index[2] = {round.begin_of(0), round.begin_of(1)}, stage[2] = {};
      const int32_t end[2] = {round.second, round.end};
      while (index[0] < end[0] || index[1] < end[1]) {
#pragma unroll
        for (int engine = 0; engine < 2; ++engine) {
          if (index[engine] >= end[engine]) continue;
          uint64_t* const full = ring.begin_copy(static_cast<uint32_t>(p.stage_blocks) * kColumns * 128);
          tdm::tma_load_3d(ring.stage(), &p.w2, full, policy, 0, tile * kColumns,
                           shared.expert(index[engine]) * p.blocks + stage[engine] * p.stage_blocks);
          ring.advance();
          if (++stage[engine] == stages) stage[engine] = 0, ++index[engine];
        }
      }
      from = round.end;
    }
  }

  /* Who has a tile draws the next one when it has asked for all of it, so that tiles go to those who have time. The
   * last CTA that draws and waits no more sets everything back, while others still multiply. */
  __device__ static void load(const tdm_moe_experts_params& p, const Memory& shared, uint32_t item) {
    const Items items(p, shared, kPieces);
    const uint64_t once = tdm::l2_evict_first();
    Ring ring(shared, p);
    for (;;) {
      ring.fill_item(item);
      if (item >= items.all) break;
      uint32_t next = 0;
      if (item < items.pieces) {
        next = atomicAdd(&p.state->drawn, 1u);
        load_piece(p, place_of(p, shared, static_cast<int32_t>(item)), ring, once);
      } else {
        load_tile(p, shared, static_cast<int32_t>(item - items.pieces), ring, once);
        next = atomicAdd(&p.state->drawn, 1u);
      }
      item = next;
    }
    tdm::mbarrier_wait(shared.past, 0);
    tdm::fence_gpu();
    if (atomicAdd(&p.state->left, 1u) + 1 != gridDim.x) return;
    tdm::fence_gpu();
    *p.state = tdm_moe_experts_state{};
  }

  /* ---- an engine ---- */

  struct Engine {
    const tdm_moe_experts_params& p;
    const tdm_step_sync& sync;
    const Memory& shared;
    const int32_t live;
    const uint32_t which;
    Ring ring;
    uint32_t pieces_seen = 0;
    bool fc1_done = false;
    int32_t prepared = -1; /* first expert of the round whose activations are there */
    int32_t listed = -1;   /* and of the one whose units are listed, `units` of them this warp's */
    int32_t units = 0;

    __device__ __forceinline__ Engine(const tdm_moe_experts_params& params, const tdm_step_sync& step,
                                      const Memory& memory, int32_t live_tokens)
        : p(params), sync(step), shared(memory), live(live_tokens), which(threadIdx.x / kEngineThreads),
          ring(memory, params) {
    }
    __device__ static __forceinline__ int32_t lane() {
      return static_cast<int32_t>(threadIdx.x % 32);
    }
    __device__ static __forceinline__ int32_t warp() { /* of the engine */
      return static_cast<int32_t>(threadIdx.x % kEngineThreads / 32);
    }
    __device__ __forceinline__ void sync_engine() const {
      if (which == 0)
        tdm::named_barrier_sync(1, kEngineThreads);
      else
        tdm::named_barrier_sync(2, kEngineThreads);
    }
    __device__ static __forceinline__ void sync_both() {
      tdm::named_barrier_sync(kBothEngines, kConsumers);
    }

    __device__ __forceinline__ void work() {
      const Items items(p, shared, kPieces);
      list_units(Round(p, shared, 0)); /* while the first weights are on their way */
      tdm::mbarrier_wait(shared.x_full, 0);
      for (;;) {
        ring.await();
        const uint32_t item = __shfl_sync(~0u, lane() == 0 ? shared.items[ring.slot] : 0, 0);
        ring.hand_back();
        if (item >= items.all) break;
        if (item >= items.pieces)
          tile(static_cast<int32_t>(item - items.pieces), items.pieces);
        else if (pieces_seen++ % 2 == which)
          piece(place_of(p, shared, static_cast<int32_t>(item)));
        else
          pass_piece();
      }
      pass_fc1();
    }
    /* The other engine's. The barrier is for racecheck, which counts barriers: both engines pass the same number. */
    __device__ __forceinline__ void pass_piece() {
      Way(ring, which, piece_stages(p)).end();
      sync_engine();
    }
    __device__ __forceinline__ void pass_fc1() {
      if (!fc1_done && threadIdx.x % kEngineThreads == 0) tdm::mbarrier_arrive(shared.past);
      fc1_done = true;
    }

    /* ---- FC1 ---- */

    __device__ __forceinline__ void piece(const Place& place) {
      Way way(ring, which, 0);
      const int32_t first = warp() * 16 + lane() / 4; /* of two rows, of gate and then of up; the other is 8 on */
      /* Lane l holds the weight scales of blocks l and 32 + l, handed around by shuffles. */
      const auto scales_of = [&](int32_t up) {
        const float* const from = p.w13_scale + (2 * place.tile + up) * p.w13_scale_stride;
        return make_float2(lane() < p.k_blocks ? __ldg(from + lane()) : 0.0f,
                           32 + lane() < p.k_blocks ? __ldg(from + 32 + lane()) : 0.0f);
      };
      constexpr bool kMixed = kRows % 16 != 0; /* a warp has rows of both */
      const float2 scales = scales_of(!kMixed && first >= kRows), up_scales = kMixed ? scales_of(1) : scales;
      float c[4] = {}, even[kBlocks][4], odd[kBlocks][4];
      /* Of a piece's last stage as many blocks as of the others: those beyond K are multiplied and not added. */
      int32_t block = 0;
      uint32_t x_next = tdm::wgmma_descriptor_lower(shared.x + block * (kTokens * 128));
      const auto issue = [&](float(&acc)[kBlocks][4]) {
        const uint32_t w = tdm::same_in_warp(tdm::wgmma_descriptor_lower(way.next()));
        const uint32_t x = tdm::same_in_warp(x_next);
        tdm::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < kBlocks; ++i)
            tdm::wgmma_e4m3<kTokens>::issue(acc[i], tdm::wgmma_descriptor_whole(w + i * (kBlockBytes / 16) + 2 * k),
                                            tdm::wgmma_descriptor_whole(x + i * 64 + 2 * k), k != 0);
        tdm::wgmma_commit();
        x_next += kBlocks * 64;
      };
      const auto finish = [&](auto pending, float(&acc)[kBlocks][4]) {
        tdm::wgmma_wait<decltype(pending)::value>();
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) tdm::wgmma_settle(acc[i]);
        way.hand_back(decltype(pending)::value != 0);
#pragma unroll
        for (int i = 0; i < kBlocks; ++i, ++block) {
          float w_scale[2];
          w_scale[0] = w_scale[1] = __shfl_sync(~0u, block < 32 ? scales.x : scales.y, block % 32);
          if constexpr (kMixed) {
            const float of_up = __shfl_sync(~0u, block < 32 ? up_scales.x : up_scales.y, block % 32);
#pragma unroll
            for (int half = 0; half < 2; ++half)
              if (first + 8 * half >= kRows) w_scale[half] = of_up;
          }
          if (block >= p.k_blocks) continue;
          const float2 s = *reinterpret_cast<const float2*>(shared.scale + block * kTokens + 2 * (lane() % 4));
#pragma unroll
          for (int j = 0; j < 4; ++j) c[j] = fmaf((j % 2 == 0 ? s.x : s.y) * w_scale[j / 2], acc[i][j], c[j]);
        }
      };
      two_under_way(piece_stages(p), even, odd, issue, finish);
      float* const mine = sums_of(place.tile, 2 * (lane() % 4)) + place.row;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int32_t row = first + j / 2 * 8, of_run = row >= kRows ? row - kRows : row;
        if (of_run < place.rows && 2 * (lane() % 4) + j % 2 < live)
          __stcg(mine + j % 2 * 256 + (row >= kRows ? 128 : 0) + of_run, c[j]);
      }
      sync_engine();
      if (threadIdx.x % kEngineThreads == 0) tdm::add_release(&p.state->done, 1u);
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
    /* In a launch whose waits ran out of time what is waited for may never come, and does not matter. */
    __device__ __forceinline__ void await(const uint32_t* count, uint32_t least) const {
      while (tdm::load_acquire(count) < least && !tdm::launch_failed(sync)) {
      }
    }

    /* ---- FC2 ---- */

    __device__ __forceinline__ void tile(int32_t at, uint32_t pieces) {
      const int32_t experts = shared.counts[0];
      float c[4] = {}, addend[4];
      load_addend(at, addend);
      if (experts == 0) sync_both(); /* the last tile's sums have been read */
      for (int32_t from = 0; from < experts;) {
        const Round round(p, shared, from);
        prepare(round, at, pieces);
        add_round(round, c);
        from = round.end;
      }
      store(at, c, addend);
    }

    /* Both engines: the activations and scales of a round's experts, the scales of a tile's weights. The second engine
     * is the one that comes early where a CTA has one piece: what can be done before FC1's sums are there is done by
     * it. */
    __device__ __forceinline__ void prepare(const Round& round, int32_t tile, uint32_t pieces) {
      const int32_t thread = static_cast<int32_t>(threadIdx.x % kEngineThreads);
      const bool has_scale = which == 1 && thread < (round.end - round.first) * p.blocks;
      float w_scale = 0.0f;
      if (has_scale) {
        const int32_t kb = shared.expert(round.first + thread / p.blocks) * p.blocks + thread % p.blocks;
        w_scale = __ldg(p.w2_scale + tile * kColumns / 128 * p.w2_scale_stride + kb);
      }
      if (listed != round.first) list_units(round);
      if (!fc1_done && which == 1 && thread == 0) await(&p.state->done, pieces);
      sync_both();
      pass_fc1();
      if (prepared != round.first) {
        take_up(round);
        prepared = round.first;
      }
      if (has_scale) shared.w_scale[thread] = w_scale;
      tdm::fence_async_shared();
      sync_both();
    }

    /* A unit: 128 columns of FC1's output, of a token that chose their expert. Where it comes to lie, block of the
     * round and token, below; above, where its sums lie, tile of FC1 and token. All warps have some, by turns. */
    __device__ static __forceinline__ uint32_t unit_of(int32_t tile, int32_t block, int32_t token) {
      return static_cast<uint32_t>(tile << 9 | block * kTokens | token);
    }
    __device__ __forceinline__ uint2* own_units() const {
      return shared.units + threadIdx.x / 32 * kUnits;
    }
    __device__ __forceinline__ void list_units(const Round& round) {
      const int32_t mine = static_cast<int32_t>(threadIdx.x / 32), token = lane() % kTokens;
      int32_t before = 0; /* units of all warps */
#pragma unroll 1
      for (int32_t base = round.first; base < round.end; base += 32 / kTokens) {
        const int32_t index = base + lane() / kTokens;
        const bool chose = index < round.end && (shared.experts[index] >> (16 + token) & 1) != 0;
        const uint32_t all = __ballot_sync(~0u, chose);
        int32_t unit = before + __popc(all & ((1u << lane()) - 1)) * p.blocks;
        if (chose) {
          const int32_t expert = shared.expert(index);
          const float alpha = p.alpha == nullptr ? 1.0f : __ldcg(p.alpha + token * p.alpha_stride + expert);
#pragma unroll 1
          for (int32_t b = 0; b < p.blocks; ++b, ++unit)
            if (unit % kWarps == mine)
              own_units()[unit / kWarps] = make_uint2(
                  unit_of(expert * p.blocks + b, (index - round.first) * p.blocks + b, token), __float_as_uint(alpha));
        }
        before += __popc(all) * p.blocks;
      }
      __syncwarp();
      listed = round.first;
      units = (before - mine + kWarps - 1) / kWarps;
    }

    struct Pair {
      uint2 unit[2];
      float4 gate[2], up[2];
    };
    __device__ __forceinline__ void load_pair(int32_t next, Pair& pair) const {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        pair.gate[u] = pair.up[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        pair.unit[u] = make_uint2(0, 0);
        if (next + u >= units) continue;
        pair.unit[u] = own_units()[next + u];
        const int32_t tile = static_cast<int32_t>(pair.unit[u].x >> 9);
        const float4* const from =
            reinterpret_cast<const float4*>(sums_of(tile, static_cast<int32_t>(pair.unit[u].x % kTokens))) + lane();
        pair.gate[u] = __ldcg(from);
        pair.up[u] = __ldcg(from + 32);
      }
    }
    /* A warp at a time has two units and waits for two more. */
    __device__ __forceinline__ void take_up(const Round& round) const {
      Pair now, then;
      load_pair(0, now);
      load_pair(2, then);
      clear_scales(round);
#pragma unroll 1
      for (int32_t next = 0; next < units; next += 2) {
        quantise(now, units - next);
        now = then;
        load_pair(next + 4, then);
      }
    }
    /* Of tokens that did not choose an expert. */
    __device__ __forceinline__ void clear_scales(const Round& round) const {
      const int32_t places = (round.end - round.first) * p.blocks * kTokens;
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < places; i += kConsumers) {
        const int32_t index = round.first + i / kTokens / p.blocks;
        if ((shared.experts[index] >> (16 + i % kTokens) & 1) == 0) shared.scale[i] = 0.0f;
      }
    }
    /* `n`: 1 or more; of one, the second is reckoned and goes nowhere. */
    __device__ __forceinline__ void quantise(const Pair& pair, int32_t n) const {
      float v[2][4];
      uint32_t largest[2] = {};
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float4 &gate = pair.gate[u], &up = pair.up[u];
        v[u][0] = tdm::swiglu_quick(gate.x, up.x, p.swiglu_limit);
        v[u][1] = tdm::swiglu_quick(gate.y, up.y, p.swiglu_limit);
        v[u][2] = tdm::swiglu_quick(gate.z, up.z, p.swiglu_limit);
        v[u][3] = tdm::swiglu_quick(gate.w, up.w, p.swiglu_limit);
#pragma unroll
        for (int i = 0; i < 4; ++i) largest[u] = max(largest[u], tdm::magnitude(v[u][i]));
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) largest[u] = __reduce_max_sync(~0u, largest[u]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const tdm::Quantiser quantiser(largest[u], p.quant_eps, p.pow2_scale != 0);
        if (u >= n) continue;
        const uint32_t place = pair.unit[u].x % 512, token = place % kTokens;
        const float alpha = __uint_as_float(pair.unit[u].y);
        uint8_t* const to =
            shared.x + place / kTokens * (kTokens * 128) + tdm::swizzled(token, static_cast<uint32_t>(lane() / 4));
        *reinterpret_cast<uint32_t*>(to + lane() % 4 * 4) = static_cast<uint32_t>(quantiser.pair(v[u][0], v[u][1])) |
                                                            static_cast<uint32_t>(quantiser.pair(v[u][2], v[u][3]))
                                                                << 16;
        if (lane() == 0) shared.scale[place] = alpha == 0.0f ? 0.0f : quantiser.scale * alpha;
      }
    }

    __device__ __forceinline__ void add_round(const Round& round, float (&c)[4]) {
      constexpr int kMost = 2;
      const int32_t stages = p.blocks / p.stage_blocks, mine = round.count_of(which) * stages;
      int32_t block = (round.begin_of(which) - round.first) * p.blocks;
      uint32_t x_next = tdm::wgmma_descriptor_lower(shared.x + block * (kTokens * 128));
      float even[kMost][4], odd[kMost][4];
      Way way(ring, which, round.count_of(1 - which) * stages);
      const auto issue = [&](float(&acc)[kMost][4]) {
        const uint32_t w = tdm::same_in_warp(tdm::wgmma_descriptor_lower(way.next()));
        const uint32_t x = tdm::same_in_warp(x_next);
        tdm::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < kMost; ++i)
            tdm::wgmma_e4m3<kTokens>::issue(acc[i], tdm::wgmma_descriptor_whole(w + i * (kColumns * 128 / 16) + 2 * k),
                                            tdm::wgmma_descriptor_whole(x + i * 64 + 2 * k), k != 0);
        tdm::wgmma_commit();
        x_next += static_cast<uint32_t>(p.stage_blocks) * 64;
      };
      const auto finish = [&](auto pending, float(&acc)[kMost][4]) {
        tdm::wgmma_wait<decltype(pending)::value>();
#pragma unroll
        for (int i = 0; i < kMost; ++i) tdm::wgmma_settle(acc[i]);
        way.hand_back(decltype(pending)::value != 0);
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
      way.end();
    }

    /* Of the tile's columns, those a thread has, and of the tokens. */
    __device__ static __forceinline__ int32_t column_of(int j) {
      return warp() * 16 + lane() / 4 + j / 2 * 8;
    }
    __device__ static __forceinline__ int32_t token_of(int j) {
      return 2 * (lane() % 4) + j % 2;
    }
    __device__ __forceinline__ bool stores(int32_t tile, int j) const {
      return token_of(j) < live && tile * kColumns + column_of(j) < p.n;
    }
    __device__ __forceinline__ void load_addend(int32_t tile, float (&addend)[4]) const {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        addend[j] = 0.0f;
        if (which == 1 && p.addend != nullptr && stores(tile, j))
          addend[j] = tdm::load_element(p.addend, p.addend_dtype,
                                        token_of(j) * p.addend_stride + tile * kColumns + column_of(j));
      }
    }

    /* Both engines: the segments' sum, by the second. */
    __device__ __forceinline__ void store(int32_t tile, const float (&c)[4], const float (&addend)[4]) const {
      const auto at = [&](int j) { return token_of(j) * kColumns + column_of(j); };
      if (which == 0) {
#pragma unroll
        for (int j = 0; j < 4; ++j) shared.sums[at(j)] = c[j];
      }
      sync_both();
      if (which == 0) return;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!stores(tile, j)) continue;
        float sum = shared.sums[at(j)] + c[j];
        if (p.addend != nullptr) sum += addend[j];
        tdm::store_element(p.out, p.out_dtype, token_of(j) * p.out_stride + tile * kColumns + column_of(j), sum);
      }
    }
  };

  /* ---- a CTA ---- */

  /* FC1's activations, by the threads of both engines: they are few, and asked for by copies of boxes they would stand
   * before the first weights in the copy engine's way. */
  struct Tokens {
    static constexpr int32_t kBatch = 4, kScales = TDM_MOE_EXPERTS_MOST_BLOCKS * kTokens / kConsumers;
    const tdm_moe_experts_params& p;
    const Memory& shared;
    uint4 values[kBatch];
    float scales[kScales];

    __device__ __forceinline__ Tokens(const tdm_moe_experts_params& params, const Memory& memory)
        : p(params), shared(memory) {
    }
    __device__ __forceinline__ int32_t chunk(int32_t base, int32_t i) const { /* of 16 bytes */
      return base + i * static_cast<int32_t>(kConsumers) + static_cast<int32_t>(threadIdx.x);
    }
    __device__ __forceinline__ int32_t chunks() const {
      return p.m * 8 * p.k_blocks;
    }
    __device__ __forceinline__ void load_values(int32_t base) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int32_t at = chunk(base, i), row = at / (8 * p.k_blocks), column = at - row * 8 * p.k_blocks;
        if (at < chunks()) values[i] = __ldcg(reinterpret_cast<const uint4*>(p.x + row * p.x_stride) + column);
      }
    }
    /* The first ones on their way. */
    __device__ __forceinline__ void begin() {
      load_values(0);
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        const int32_t at = chunk(0, i), row = at / p.k_blocks, block = at - row * p.k_blocks;
        if (row < p.m) scales[i] = __ldcg(p.x_scale + block * p.x_scale_stride + row);
      }
    }
    __device__ __forceinline__ void end() {
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        const int32_t at = chunk(0, i), row = at / p.k_blocks, block = at - row * p.k_blocks;
        if (row < p.m) shared.scale[block * kTokens + row] = scales[i];
      }
      for (int32_t base = 0;;) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int32_t at = chunk(base, i), row = at / (8 * p.k_blocks), column = at - row * 8 * p.k_blocks;
          if (at >= chunks()) continue;
          uint8_t* const to = shared.x + column / 8 * (kTokens * 128) +
                              tdm::swizzled(static_cast<uint32_t>(row), static_cast<uint32_t>(column % 8));
          *reinterpret_cast<uint4*>(to) = values[i];
        }
        base += kBatch * static_cast<int32_t>(kConsumers);
        if (base >= chunks()) break;
        load_values(base);
      }
      tdm::fence_async_shared();
      tdm::mbarrier_arrive(shared.x_full);
    }
  };

  /* A warp: the list of experts that somebody chose. */
  __device__ static __forceinline__ void look(const tdm_moe_experts_params& p, const Memory& shared, int32_t live) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const auto below = [&](int32_t expert) { /* those of the lane's 32 that are below */
                                             const int32_t left = expert - 32 * lane;
                                             return left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
    };
    const uint32_t real = below(p.n_experts);
    uint32_t rows[kTokens], any = 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r)
      rows[r] =
          r < p.m && real != 0 ? static_cast<uint32_t>(__ldcg(p.choices.bits + r * p.choices.stride + lane)) & real : 0;
#pragma unroll
    for (int r = 0; r < kTokens; ++r) any |= rows[r] = r < live ? rows[r] : 0;
    const int32_t up_to = tdm::sum_up(__popc(any));
    const int32_t bound = p.segments == 1 ? p.n_experts : tdm::segment_begin(1, p.segments, p.n_experts, 1);
    const uint32_t in_first = __reduce_add_sync(~0u, __popc(any & below(bound)));
    if (lane == 31) shared.counts[0] = up_to, shared.counts[1] = static_cast<int32_t>(in_first);
    uint32_t* to = shared.experts + up_to - __popc(any);
    for (uint32_t left = any; left != 0; left &= left - 1) {
      const int32_t bit = __ffs(static_cast<int32_t>(left)) - 1;
      uint32_t tokens = 0;
#pragma unroll
      for (int r = 0; r < kTokens; ++r) tokens |= (rows[r] >> bit & 1) << r;
      *to++ = static_cast<uint32_t>(32 * lane + bit) | tokens << 16;
    }
  }

  __device__ static void run(const tdm_moe_experts_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    const Memory shared(memory, p);
    uint32_t first = 0;
    tdm::step_enter(sync);
    if (threadIdx.x == kConsumers) {
      for (int32_t i = 0; i < p.stages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1);
        tdm::mbarrier_init(&shared.empty[i], kWarps);
      }
      tdm::mbarrier_init(shared.x_full, kConsumers);
      tdm::mbarrier_init(shared.past, 2);
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w13);
      tdm::tma_prefetch_map(&p.w2);
      first = atomicAdd(&p.state->drawn, 1u); /* this step's alone, and its last launch is complete */
    }
    Tokens tokens(p, shared);
    const bool consumes = threadIdx.x < kConsumers;
    if (consumes && sync.reads_ahead != 0) tokens.begin(); /* routing may still run */
    tdm::step_wait(sync);
    if (consumes && sync.reads_ahead == 0) tokens.begin();
    const int32_t live = tdm::live_rows(p.n_tokens, p.m);
    if (!consumes) look(p, shared, live);
    __syncthreads();
    if (consumes) {
      tokens.end();
      Engine(p, sync, shared, live).work();
    } else if (threadIdx.x == kConsumers)
      load(p, shared, first);
    tdm::step_end(sync);
  }
};

} // namespace

#define EXPERTS(rows)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_EXPERTS_THREADS, 1) tdm_moe_experts_n##rows##_sm90(             \
      const __grid_constant__ tdm_moe_experts_params p, const __grid_constant__ tdm_step_sync sync) {                  \
    MoeExperts<rows>::run(p, sync);                                                                                    \
  }
EXPERTS(19)
EXPERTS(32)
