/* FC1 with SwiGLU and FP8 requantisation for sm_90a, of each expert for the tokens alone that chose it.
 *
 * The swapped form of moe_fc1 (moe_fc1_swap.cuh), the same sums and roundings in the same order, so the same bits, with
 * four differences:
 *
 * 1. A tile's tokens are those that chose its expert, kTokens of them at a time. Every CTA turns the bits that routing
 * left (device/choices.cuh) and walks the experts that somebody chose: a group of tokens fastest, so that tiles of the
 * same weights meet in L2, then the expert's tiles.
 * 2. A warp gathers the tokens' rows and scales into the stages by plain asynchronous copies.
 * 3. Results go to the rows they belong to; nothing else in an expert's columns is written.
 * 4. SMs are not equally quick while they share the bandwidth: of equal parts some are done after three quarters of the
 * time. So each CTA has some tiles of its own, and the others are cut into chunks along K and drawn: first chunks of all
 * those tiles, then second ones, and so on. A chunk's sums are left in the workspace for the next one of its tile, so
 * every sum is still added up from the first block to the last.
 *
 * A chunk waits for the one before it, which was drawn earlier, by a CTA that runs and waits for earlier ones alone: one
 * always goes on. Notes of sums bear the number of the launch, so that what a launch leaves that went wrong misleads
 * nobody.
 *
 * More than 256 rows are gone through in turns, all weights once a turn, in whole tiles. So are few tiles, whose sums the
 * dense form adds up in segments of K: a CTA goes through all segments in the same order.
 *
 *   warpgroup 0   thread 0: weights, TMA             warpgroups 1, 2   as in the swapped form
 *                 warp 1: tokens, gathered
 *
 * Block: 384 threads. Limit: device bandwidth on w13 of the experts that were chosen. */

#include "kernels/device/choices.cuh"
#include "kernels/moe_fc1/moe_fc1_grouped_params.h"
#include "kernels/moe_fc1/moe_fc1_swap.cuh"

namespace {

/* Some of the rows that chose an expert. */
struct ChosenRows {
  static constexpr bool kGathered = true;
  const int32_t* rows;
  int32_t count;

  __device__ int32_t row(int32_t token) const {
    return rows[token];
  }
  __device__ bool counts(int32_t token) const {
    return token < count;
  }
  __device__ bool has_scale(int32_t token) const {
    return token < count;
  }
  __device__ bool counts_eight(int i) const {
    return 8 * i < count;
  }
};

template <int kTokens, int kStages, bool kSegmented> struct MoeFc1Grouped {
  using Swap = tdm::MoeFc1Swap<kTokens, kStages>;
  using Memory = typename Swap::Memory;
  using Gathering = tdm::Gathering<kStages, false>;
  static constexpr int kQueue = TDM_MOE_FC1_GROUPED_QUEUE;
  static constexpr uint32_t kReaders = 9; /* of the queue: the gathering warp, the consumers' */

  struct Places {
    /* Rows of a tile's tokens: of the tiles that consumers are at, in turn, and of the one that is gathered. */
    int32_t multiplied[2][kTokens];
    int32_t gathered[kTokens];
    uint32_t number; /* drawn by the CTA */
    int32_t drawn[kQueue];
    uint64_t told[kQueue];
    uint64_t heard[kQueue];
  };
  static_assert(sizeof(Memory) + sizeof(Places) == TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages), "launch size");

  /* Blocks `begin` to `end` - 1 of a tile, for a group of its tokens. */
  struct Piece {
    int32_t index; /* of the expert in the list */
    int32_t first; /* of its rows */
    int32_t count;
    int32_t tile;
    bool alone; /* there are no other rows for these weights */
    int32_t begin, end;
    int32_t slot;  /* of the sums, if the tile is cut */
    uint32_t note; /* that chunk `begin` waits for; the next one's is one more */
  };

  /* Tiles 0 .. own * CTAs - 1 in turn, whole; of the others chunks. */
  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Choices& choices;
    uint32_t launch;
    int32_t units, own, first_drawn, drawn, chunks;

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Choices& chosen, uint32_t number_of_launch)
        : p(params), choices(chosen), launch(number_of_launch), units(choices.before[choices.n] * p.expert_tiles) {
      const int32_t ctas = static_cast<int32_t>(gridDim.x), cta = static_cast<int32_t>(blockIdx.x);
      own = (units - cta + ctas - 1) / ctas, first_drawn = units, drawn = 0, chunks = 1;
      if (p.partials == nullptr) return;
      own = max(0, (units - TDM_MOE_FC1_GROUPED_DRAWN(ctas)) / ctas);
      first_drawn = own * ctas;
      chunks = min(p.k_blocks, int32_t{TDM_MOE_FC1_GROUPED_CHUNKS});
      drawn = (units - first_drawn) * chunks;
    }
    __device__ Piece whole(int32_t index) const {
      return piece(static_cast<int32_t>(blockIdx.x) + index * static_cast<int32_t>(gridDim.x), 0, 1);
    }
    __device__ Piece chunk(int32_t number) const {
      const int32_t tiles = units - first_drawn;
      return piece(first_drawn + number % tiles, number / tiles, chunks);
    }
    __device__ Piece piece(int32_t unit, int32_t chunk, int32_t of) const {
      const int32_t index = choices.holder(unit / p.expert_tiles);
      const int32_t before = choices.before[index], groups = choices.before[index + 1] - before;
      const int32_t place = unit - before * p.expert_tiles, first = place % groups * kTokens;
      return Piece{index,
                   first,
                   min(choices.rows(index) - first, kTokens),
                   choices.expert(index) * p.expert_tiles + place / groups,
                   groups == 1,
                   tdm::segment_begin(chunk, of, p.k_blocks, 1),
                   tdm::segment_begin(chunk + 1, of, p.k_blocks, 1),
                   unit - first_drawn,
                   launch * 2 * TDM_MOE_FC1_GROUPED_CHUNKS + static_cast<uint32_t>(chunk)};
    }
    __device__ uint32_t* draws() const {
      return p.counters + 1 + launch % 2;
    }
    __device__ uint32_t* note(const Piece& piece) const {
      return p.counters + 3 + piece.slot;
    }
  };

  /* Numbers of chunks, from the thread of the weights to the other roles. Only threads that arrive read or write. */
  struct Queue {
    Places& places;
    tdm::Ring<kQueue> ring;

    __device__ void tell(int32_t number) {
      tdm::mbarrier_wait(&places.heard[ring.slot], ring.parity ^ 1);
      places.drawn[ring.slot] = number;
      tdm::mbarrier_arrive(&places.told[ring.slot]);
      ring.advance();
    }
    /* By a warp. */
    __device__ int32_t hear() {
      int32_t number = 0;
      if (threadIdx.x % 32 == 0) {
        tdm::mbarrier_wait(&places.told[ring.slot], ring.parity);
        number = places.drawn[ring.slot];
        tdm::mbarrier_arrive(&places.heard[ring.slot]);
      }
      ring.advance();
      return __shfl_sync(~0u, number, 0);
    }
  };

  /* While routing is under way and the memory idle: of the first tiles the first weights to L2, 128 KB a CTA, as if all
   * experts were chosen. Of 8 in 256 experts 64 tokens choose 7 of 8. */
  __device__ static void fetch_ahead(const tdm_moe_fc1_params& p) {
    const int32_t tile = static_cast<int32_t>(blockIdx.x);
    if (p.m < 48 || tile >= p.n_tiles) return;
    for (int32_t kb = 0; kb < min(p.k_blocks, 4); ++kb) tdm::tma_prefetch_3d(&p.w, 0, tile * 256, kb);
  }

  __device__ static void load_weights(const Walk& walk, Memory& shared, Places& places, tdm::Ring<kStages>& ring) {
    const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
    const auto load = [&](const Piece& piece) {
      for (int32_t kb = piece.begin; kb < piece.end; ++kb) {
        tdm::mbarrier_wait(&shared.empty[ring.slot], ring.parity ^ 1);
        tdm::mbarrier_arrive_expect(&shared.full[ring.slot], 256 * 128);
        tdm::tma_load_3d(shared.w[ring.slot], &walk.p.w, &shared.full[ring.slot], piece.alone ? once : often, 0,
                         piece.tile * 256, kb);
        ring.advance();
      }
    };
    if (walk.drawn == 0) {
      for (int32_t i = 0; i < walk.own; ++i) load(walk.whole(i));
      return;
    }
    uint32_t next = walk.own > 0 ? 0 : atomicAdd(walk.draws(), 1u);
    for (int32_t i = 0; i < walk.own; ++i) {
      if (i + 1 == walk.own) next = atomicAdd(walk.draws(), 1u);
      load(walk.whole(i));
    }
    Queue queue{places, {}};
    while (next < static_cast<uint32_t>(walk.drawn)) {
      const int32_t number = static_cast<int32_t>(next);
      next = atomicAdd(walk.draws(), 1u); /* needed when this chunk has been asked for */
      queue.tell(number);
      load(walk.chunk(number));
    }
    queue.tell(-1);
  }

  /* body(piece) for each of the CTA's pieces, by a warp that is no thread of the weights. */
  template <class Body>
  __device__ static __forceinline__ void each_piece(const Walk& walk, Places& places, Body body) {
    for (int32_t i = 0; i < walk.own; ++i) body(walk.whole(i));
    if (walk.drawn == 0) return;
    Queue queue{places, {}};
    for (int32_t number = queue.hear(); number >= 0; number = queue.hear()) body(walk.chunk(number));
  }

  /* A warp: 16 bytes of a row a lane, four rows at a time; lane r has the scale of token r. */
  __device__ static void gather_tokens(const tdm_moe_fc1_grouped_params& p, const Walk& walk, Memory& shared,
                                       Places& places, Gathering& gathering) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t piece_of_row = threadIdx.x % 8;
    int32_t* const rows = places.gathered;
    each_piece(walk, places, [&](const Piece& piece) {
      walk.choices.place_rows(piece.index, piece.first, kTokens, rows);
      __syncwarp();
      uint32_t from[kTokens / 4];
#pragma unroll
      for (int j = 0; j < kTokens / 4; ++j) {
        const int32_t token = 4 * j + lane / 8;
        from[j] = token < piece.count ? static_cast<uint32_t>(rows[token] * p.x_stride) + piece_of_row * 16 : 0;
      }
      const float* scale = p.x_scale + piece.begin * p.x_scale_stride + (lane < piece.count ? rows[lane] : 0);
      __syncwarp();
      for (int32_t kb = piece.begin; kb < piece.end; ++kb, scale += p.x_scale_stride) {
        gathering.begin(shared.empty);
        const tdm::Ring<kStages>& at = gathering.ring;
        const uint8_t* x = p.x + kb * 128;
#pragma unroll
        for (int j = 0; j < kTokens / 4; ++j) {
          const int32_t token = 4 * j + lane / 8;
          if (token < piece.count)
            tdm::copy_async_16(shared.x[at.slot] + tdm::swizzled(static_cast<uint32_t>(token), piece_of_row),
                               x + from[j]);
        }
        if (lane < piece.count) tdm::copy_async_4(&shared.scale[at.parity][at.slot][lane], scale);
        gathering.end(shared.full);
      }
    });
  }

  __device__ static void multiply(const Walk& walk, Memory& shared, Places& places, tdm::Ring<kStages>& ring,
                                  const tdm_step_sync& sync) {
    const uint32_t consumer = threadIdx.x / 128 - 1;
    uint32_t turn = 0;
    each_piece(walk, places, [&](const Piece& piece) {
      /* Read behind a barrier of all consumers, of which each piece has one; the other place is read until then. */
      int32_t* rows = places.multiplied[turn];
      turn ^= 1;
      if (threadIdx.x / 32 == 4) walk.choices.place_rows(piece.index, piece.first, kTokens, rows);
      const ChosenRows chosen{rows, piece.count};
      if constexpr (kSegmented) {
        Swap::template multiply_tile<true>(walk.p, shared, ring, piece.tile, chosen, consumer);
      } else if (piece.count <= 8) {
        multiply_piece<8>(walk, shared, ring, piece, chosen, consumer, sync);
      } else {
        multiply_piece<kTokens>(walk, shared, ring, piece, chosen, consumer, sync);
      }
    });
  }

  template <int kN>
  __device__ static __forceinline__ void multiply_piece(const Walk& walk, Memory& shared, tdm::Ring<kStages>& ring,
                                                        const Piece& piece, const ChosenRows& chosen,
                                                        uint32_t consumer, const tdm_step_sync& sync) {
    float gate[kN / 2] = {}, up[kN / 2] = {};
    if (piece.begin > 0) take_up<kN>(walk, piece, gate, up, sync);
    Swap::template add_blocks<kN>(walk.p, shared, ring, piece.tile, chosen, consumer, piece.begin, piece.end, gate, up);
    if (piece.end < walk.p.k_blocks)
      leave<kN>(walk, piece, gate, up);
    else
      Swap::template store<kN>(walk.p, shared, gate, up, chosen, piece.tile, consumer);
  }

  /* Sums lie as [tile][gate, up][kN / 8][256 threads] float4. */
  __device__ static __forceinline__ float4* sums_of(const Walk& walk, const Piece& piece) {
    return reinterpret_cast<float4*>(walk.p.partials) + int64_t{piece.slot} * (kTokens / 4 * 256) + threadIdx.x - 128;
  }

  template <int kN>
  __device__ static __forceinline__ void leave(const Walk& walk, const Piece& piece, const float (&gate)[kN / 2],
                                               const float (&up)[kN / 2]) {
    float4* const sums = sums_of(walk, piece);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      __stcg(sums + i * 256, make_float4(gate[4 * i], gate[4 * i + 1], gate[4 * i + 2], gate[4 * i + 3]));
      __stcg(sums + (kN / 8 + i) * 256, make_float4(up[4 * i], up[4 * i + 1], up[4 * i + 2], up[4 * i + 3]));
    }
    __threadfence();
    tdm::named_barrier_sync(Swap::kBothConsumers, 256);
    if (threadIdx.x == 128) tdm::store_release(walk.note(piece), piece.note + 1);
  }

  /* Where the CTA before may have seen other choices, in a launch whose waits ran out of time, the sums may never come,
   * and do not matter. */
  template <int kN>
  __device__ static __forceinline__ void take_up(const Walk& walk, const Piece& piece, float (&gate)[kN / 2],
                                                 float (&up)[kN / 2], const tdm_step_sync& sync) {
    if (threadIdx.x == 128) {
      while (tdm::load_acquire(walk.note(piece)) != piece.note && !tdm::launch_failed(sync)) {
      }
    }
    tdm::named_barrier_sync(Swap::kBothConsumers, 256);
    const float4* const sums = sums_of(walk, piece);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const float4 g = __ldcg(sums + i * 256), u = __ldcg(sums + (kN / 8 + i) * 256);
      gate[4 * i] = g.x, gate[4 * i + 1] = g.y, gate[4 * i + 2] = g.z, gate[4 * i + 3] = g.w;
      up[4 * i] = u.x, up[4 * i + 1] = u.y, up[4 * i + 2] = u.z, up[4 * i + 3] = u.w;
    }
  }

  __device__ static void run(const tdm_moe_fc1_grouped_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Places& places = *reinterpret_cast<Places*>(memory + sizeof(Memory));
    void* const choices_memory = memory + TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages);
    tdm::step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1 + Gathering::kArrivals);
        tdm::mbarrier_init(&shared.empty[i], 8);
      }
      for (int i = 0; i < kQueue; ++i) {
        tdm::mbarrier_init(&places.told[i], 1);
        tdm::mbarrier_init(&places.heard[i], kReaders);
      }
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.fc1.w);
    }
    __syncthreads();
    if (sync.fetches_ahead != 0 && threadIdx.x == 0) fetch_ahead(p.fc1);
    tdm::step_wait(sync);
    /* Every CTA draws a number once a launch, which tells it the launch; they begin again at 0 after so many. Chunks
     * are drawn from one of two counters in turn; the other is made ready for the next launch. */
    constexpr uint32_t kLaunches = 1u << 20;
    if (p.fc1.partials != nullptr && threadIdx.x + 32 == blockDim.x) {
      const uint32_t number = atomicInc(p.fc1.counters, gridDim.x * kLaunches - 1);
      places.number = number;
      if (number % gridDim.x == 0) p.fc1.counters[1 + (number / gridDim.x) % 2] = 0;
    }
    const int32_t live = tdm::live_rows(p.fc1.n_tokens, p.fc1.m), rows = min(p.fc1.m, int32_t{TDM_CHOICES_ROWS});
    tdm::Ring<kStages> ring;
    Gathering gathering;
    for (int32_t first_row = 0; first_row < live; first_row += TDM_CHOICES_ROWS) {
      const tdm::Choices choices =
          tdm::load_choices(choices_memory, p.fc1.choices, p.fc1.n_experts, rows, first_row, live, kTokens);
      const Walk walk(p.fc1, choices, p.fc1.partials != nullptr ? places.number / gridDim.x + 1 : 0);
      if (threadIdx.x == 0) load_weights(walk, shared, places, ring);
      if (threadIdx.x / 32 == 1) gather_tokens(p, walk, shared, places, gathering);
      if (threadIdx.x >= 128) multiply(walk, shared, places, ring, sync);
      __syncthreads();
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define GROUPED(tokens, stages, name, segmented)                                                                       \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS, 1)                                                 \
      tdm_moe_fc1_grouped_##name##_sm90(const __grid_constant__ tdm_moe_fc1_grouped_params p,                          \
                                        const __grid_constant__ tdm_step_sync sync) {                                  \
    MoeFc1Grouped<tokens, stages, segmented>::run(p, sync);                                                            \
  }
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
