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
 * 4. CTAs share tiles (moe_fc1_shares.cuh).
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

  using Gathering = tdm::Gathering<kStages>;

  /* Rows of a tile's tokens: of the tiles that consumers are at, in turn, and of the one that is gathered. */
  struct Places {
    int32_t multiplied[2][kTokens];
    int32_t gathered[kTokens];
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
  };

  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Choices& choices;
    const tdm::Share share;

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Choices& chosen, const tdm::Turn& turn)
        : p(params), choices(chosen), share(params, turn, chosen.before[chosen.n] * params.expert_tiles) {
    }
    __device__ Piece at(int32_t i) const {
      const auto [unit, begin, end] = share.at(i);
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
    for (int32_t i = 0; i < walk.share.pieces; ++i) {
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
    for (int32_t i = 0; i < walk.share.pieces; ++i) {
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

  __device__ static void multiply(const Walk& walk, Memory& shared, Places& places, tdm::Ring<kStages>& ring,
                                  const tdm_step_sync& sync) {
    const uint32_t consumer = threadIdx.x / 128 - 1;
    for (int32_t i = 0; i < walk.share.pieces; ++i) {
      const Piece piece = walk.at(i);
      /* Read behind a barrier of all consumers, of which each piece has one; the other place is read until then. */
      int32_t* rows = places.multiplied[i % 2];
      if (threadIdx.x / 32 == 4) walk.choices.place_rows(piece.index, piece.first, kTokens, rows);
      const ChosenRows chosen{rows, piece.count};
      if constexpr (kSegmented) {
        Swap::multiply_segments(walk.p, shared, ring, piece.tile, chosen, consumer);
      } else if (piece.count <= 8) {
        Swap::template multiply_piece<8>(walk.p, shared, ring, piece.tile, chosen, consumer, piece.begin, piece.end,
                                         sync);
      } else {
        Swap::template multiply_piece<kTokens>(walk.p, shared, ring, piece.tile, chosen, consumer, piece.begin,
                                               piece.end, sync);
      }
    }
  }

  __device__ static void run(const tdm_moe_fc1_grouped_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Places& places = *reinterpret_cast<Places*>(memory + sizeof(Memory));
    void* const choices_memory = memory + TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages);
    tdm::step_enter(sync, false);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1 + Gathering::kArrivals);
        tdm::mbarrier_init(&shared.empty[i], 256); /* every lane says so: racecheck follows no one else's reads */
      }
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.fc1.w);
    }
    if (threadIdx.x == 32) tdm::draw_turn(p.fc1.counters, shared.turn);
    __syncthreads();
    tdm::step_wait(sync);
    tdm::step_admit_next(); /* late: FC2 may then look at what routing chose */
    const int32_t live = tdm::live_rows(p.fc1.n_tokens, p.fc1.m), rows = min(p.fc1.m, int32_t{TDM_CHOICES_ROWS});
    tdm::Ring<kStages> ring;
    Gathering gathering;
    int32_t first_row = 0;
    do { /* once at least: the choices are asked for beside `live` */
      const tdm::Choices choices =
          tdm::load_choices(choices_memory, p.fc1.choices, p.fc1.n_experts, rows, first_row, p.fc1.m, live, kTokens);
      const Walk walk(p.fc1, choices, shared.turn);
      if (threadIdx.x == 0) load_weights(walk, shared, ring);
      if (threadIdx.x / 32 == 1) gather_tokens(p, walk, shared, places.gathered, gathering);
      if (threadIdx.x >= 128) multiply(walk, shared, places, ring, sync);
      __syncthreads();
      first_row += TDM_CHOICES_ROWS;
    } while (first_row < live);
    tdm::step_end(sync);
  }
};

/* The most that each thread of one CTA of an SM can have. */
constexpr int kRegisters = 65536 / TDM_MOE_FC1_THREADS / 8 * 8;

} // namespace

#define GROUPED(tokens, stages, name, segmented)                                                                       \
  extern "C" __global__ void __maxnreg__(kRegisters) tdm_moe_fc1_grouped_##name##_sm90(                                \
      const __grid_constant__ tdm_moe_fc1_grouped_params p, const __grid_constant__ tdm_step_sync sync) {              \
    MoeFc1Grouped<tokens, stages, segmented>::run(p, sync);                                                            \
  }
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
