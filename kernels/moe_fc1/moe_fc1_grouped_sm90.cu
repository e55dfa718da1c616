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
 * 4. All tiles' blocks along K lie one behind the other and are divided evenly among the CTAs, so that it does not
 * matter how many tiles there are. A CTA begins with the first blocks of its last tile and leaves their sums to the
 * next CTA, which ends with the others and finds them there: every sum is still added up from the first block to the
 * last.
 *
 * A CTA waits for the one before it, so their order is that in which they begin to run: they draw numbers. Notes of
 * sums bear the number of the launch, so that what a launch leaves that went wrong misleads nobody.
 *
 * More than 256 rows are gone through in turns, all weights once a turn, tile by tile. Where the dense form cuts K into
 * segments (few tiles), a CTA goes through all of them and adds them up in the same order.
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
  static constexpr bool kTwoCtas = kTokens <= 16;

  using Gathering = tdm::Gathering<kStages, false>;

  /* Rows of a tile's tokens: of the tiles that consumers are at, in turn, and of the one that is gathered. */
  struct Places {
    int32_t multiplied[2][kTokens];
    int32_t gathered[kTokens];
    uint32_t number; /* drawn */
    uint32_t padding[3];
  };
  static_assert(sizeof(Memory) + sizeof(Places) == TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages), "launch size");

  /* Of this CTA: its place in the order, and the number of the launch, never 0. */
  struct Turn {
    int32_t cta;
    uint32_t launch;
  };

  /* Blocks `begin` to `end` - 1 of a tile, for a group of its tokens. */
  struct Piece {
    int32_t index; /* of the expert in the list */
    int32_t first; /* of its rows */
    int32_t count;
    int32_t tile;
    bool alone; /* there are no other rows for these weights */
    int32_t begin, end;
  };

  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Choices& choices;
    int32_t cta, units, pieces;
    int32_t first_unit, first_block, last_unit, last_block; /* of an even share; last ones are not part of it */

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Choices& chosen, const Turn& turn)
        : p(params), choices(chosen), cta(turn.cta), units(choices.before[choices.n] * p.expert_tiles) {
      const int32_t ctas = static_cast<int32_t>(gridDim.x);
      if (p.partials == nullptr) {
        pieces = (units - cta + ctas - 1) / ctas;
        return;
      }
      const int32_t sharing = min(ctas, units); /* each has a tile's blocks at least, so it waits for one other */
      pieces = 0;
      if (cta >= sharing) return;
      const int64_t blocks = int64_t{units} * p.k_blocks, from = blocks * cta / sharing,
                    to = blocks * (cta + 1) / sharing;
      first_unit = static_cast<int32_t>(from / p.k_blocks), first_block = static_cast<int32_t>(from % p.k_blocks);
      last_unit = static_cast<int32_t>(to / p.k_blocks), last_block = static_cast<int32_t>(to % p.k_blocks);
      pieces = last_unit - first_unit + (last_block > 0);
    }
    /* The last tile's first blocks, whole tiles, the first tile's last blocks. */
    __device__ Piece at(int32_t index) const {
      if (p.partials == nullptr) return piece(cta + index * static_cast<int32_t>(gridDim.x), 0, p.k_blocks);
      if (last_block > 0 && index-- == 0) return piece(last_unit, 0, last_block);
      const int32_t unit = first_unit + (first_block > 0) + index;
      return unit < last_unit ? piece(unit, 0, p.k_blocks) : piece(first_unit, first_block, p.k_blocks);
    }
    __device__ Piece piece(int32_t unit, int32_t begin, int32_t end) const {
      const int32_t index = choices.holder(unit / p.expert_tiles);
      const int32_t before = choices.before[index], groups = choices.before[index + 1] - before;
      const int32_t place = unit - before * p.expert_tiles, first = place % groups * kTokens;
      return Piece{index,
                   first,
                   min(choices.rows(index) - first, kTokens),
                   choices.expert(index) * p.expert_tiles + place / groups,
                   groups == 1,
                   begin,
                   end};
    }
  };

  __device__ static void load_weights(const Walk& walk, Memory& shared, tdm::Ring<kStages>& ring) {
    const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
    for (int32_t i = 0; i < walk.pieces; ++i) {
      const Piece piece = walk.at(i);
      tdm::load_in_pairs(ring, shared.full, shared.empty, 256 * 128, piece.begin, piece.end,
                         [&](uint32_t slot, int32_t kb) {
                           tdm::tma_load_3d(shared.w[slot], &walk.p.w, &shared.full[slot], piece.alone ? once : often,
                                            0, piece.tile * 256, kb);
                         });
    }
  }

  /* A warp: 16 bytes of a row a lane, four rows at a time; lane r has the scale of token r. */
  __device__ static void gather_tokens(const tdm_moe_fc1_grouped_params& p, const Walk& walk, Memory& shared,
                                       int32_t* rows, Gathering& gathering) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t piece_of_row = threadIdx.x % 8;
    for (int32_t i = 0; i < walk.pieces; ++i) {
      const Piece piece = walk.at(i);
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
    }
  }

  __device__ static void multiply(const Walk& walk, const Turn& turn, Memory& shared, Places& places,
                                  tdm::Ring<kStages>& ring, const tdm_step_sync& sync) {
    const uint32_t consumer = threadIdx.x / 128 - 1;
    for (int32_t i = 0; i < walk.pieces; ++i) {
      const Piece piece = walk.at(i);
      /* Read behind a barrier of all consumers, of which each piece has one; the other place is read until then. */
      int32_t* rows = places.multiplied[i % 2];
      if (threadIdx.x / 32 == 4) walk.choices.place_rows(piece.index, piece.first, kTokens, rows);
      const ChosenRows chosen{rows, piece.count};
      if constexpr (kSegmented) {
        Swap::template multiply_tile<true>(walk.p, shared, ring, piece.tile, chosen, consumer);
      } else if (piece.count <= 8) {
        multiply_piece<8>(walk.p, turn, shared, ring, piece, chosen, consumer, sync);
      } else {
        multiply_piece<kTokens>(walk.p, turn, shared, ring, piece, chosen, consumer, sync);
      }
    }
  }

  template <int kN>
  __device__ static __forceinline__ void multiply_piece(const tdm_moe_fc1_params& p, const Turn& turn, Memory& shared,
                                                        tdm::Ring<kStages>& ring, const Piece& piece,
                                                        const ChosenRows& chosen, uint32_t consumer,
                                                        const tdm_step_sync& sync) {
    float gate[kN / 2] = {}, up[kN / 2] = {};
    if (piece.begin > 0) take_up<kN>(p, turn, gate, up, sync);
    Swap::template add_blocks<kN>(p, shared, ring, piece.tile, chosen, consumer, piece.begin, piece.end, gate, up);
    if (piece.end < p.k_blocks)
      leave<kN>(p, turn, gate, up);
    else
      Swap::template store<kN>(p, shared, gate, up, chosen, piece.tile, consumer);
  }

  /* Sums lie as [CTA][gate, up][kN / 8][256 threads] float4; counters as the numbers drawn, then a note for each CTA.
   */
  template <int kN> __device__ static __forceinline__ float4* sums_of(const tdm_moe_fc1_params& p, int32_t cta) {
    return reinterpret_cast<float4*>(p.partials) + int64_t{cta} * (kTokens / 4 * 256) + threadIdx.x - 128;
  }

  template <int kN>
  __device__ static __forceinline__ void leave(const tdm_moe_fc1_params& p, const Turn& turn,
                                               const float (&gate)[kN / 2], const float (&up)[kN / 2]) {
    float4* const sums = sums_of<kN>(p, turn.cta);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      __stcg(sums + i * 256, make_float4(gate[4 * i], gate[4 * i + 1], gate[4 * i + 2], gate[4 * i + 3]));
      __stcg(sums + (kN / 8 + i) * 256, make_float4(up[4 * i], up[4 * i + 1], up[4 * i + 2], up[4 * i + 3]));
    }
    __threadfence();
    tdm::named_barrier_sync(Swap::kBothConsumers, 256);
    if (threadIdx.x == 128) tdm::store_release(p.counters + 1 + turn.cta, turn.launch);
  }

  /* The CTA before this one began earlier, and with these sums: there is nothing that it waits for. Where it may have
   * seen other choices, in a launch whose waits ran out of time, the sums may never come, and do not matter. */
  template <int kN>
  __device__ static __forceinline__ void take_up(const tdm_moe_fc1_params& p, const Turn& turn, float (&gate)[kN / 2],
                                                 float (&up)[kN / 2], const tdm_step_sync& sync) {
    if (threadIdx.x == 128) {
      uint32_t* const note = p.counters + turn.cta;
      while (tdm::load_acquire(note) != turn.launch && !tdm::launch_failed(sync)) {
      }
      *note = 0;
    }
    tdm::named_barrier_sync(Swap::kBothConsumers, 256);
    const float4* const sums = sums_of<kN>(p, turn.cta - 1);
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
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.fc1.w);
    }
    __syncthreads();
    tdm::step_wait(sync);
    /* The numbers of so many launches, then from 0 again. */
    constexpr uint32_t kLaunches = 1u << 20;
    if (p.fc1.partials != nullptr && threadIdx.x + 32 == blockDim.x)
      places.number = atomicInc(p.fc1.counters, gridDim.x * kLaunches - 1);
    const int32_t live = tdm::live_rows(p.fc1.n_tokens, p.fc1.m), rows = min(p.fc1.m, int32_t{TDM_CHOICES_ROWS});
    tdm::Ring<kStages> ring;
    Gathering gathering;
    for (int32_t first_row = 0; first_row < live; first_row += TDM_CHOICES_ROWS) {
      const tdm::Choices choices =
          tdm::load_choices(choices_memory, p.fc1.choices, p.fc1.n_experts, rows, first_row, live, kTokens);
      Turn turn{static_cast<int32_t>(blockIdx.x), 0};
      if (p.fc1.partials != nullptr)
        turn = Turn{static_cast<int32_t>(places.number % gridDim.x), places.number / gridDim.x + 1};
      const Walk walk(p.fc1, choices, turn);
      if (threadIdx.x == 0) load_weights(walk, shared, ring);
      if (threadIdx.x / 32 == 1) gather_tokens(p, walk, shared, places.gathered, gathering);
      if (threadIdx.x >= 128) multiply(walk, turn, shared, places, ring, sync);
      __syncthreads();
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define GROUPED(tokens, stages, name, segmented)                                                                       \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC1_THREADS,                                                    \
                                               MoeFc1Grouped<tokens, stages, segmented>::kTwoCtas ? 2 : 1)             \
      tdm_moe_fc1_grouped_##name##_sm90(const __grid_constant__ tdm_moe_fc1_grouped_params p,                          \
                                        const __grid_constant__ tdm_step_sync sync) {                                  \
    MoeFc1Grouped<tokens, stages, segmented>::run(p, sync);                                                            \
  }
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
