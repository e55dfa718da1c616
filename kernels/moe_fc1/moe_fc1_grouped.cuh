#ifndef KERNELS_MOE_FC1_MOE_FC1_GROUPED_CUH
#define KERNELS_MOE_FC1_MOE_FC1_GROUPED_CUH

/* FC1 of each expert for the rows that chose it: moe_fc1_grouped_sm90.cu has the steps. */

#include "kernels/device/choices.cuh"
#include "kernels/moe_fc1/moe_fc1_grouped_params.h"
#include "kernels/moe_fc1/moe_fc1_swap.cuh"

namespace tdm {

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
    const int32_t runs;
    const tdm::Share share;

    __device__ Walk(const tdm_moe_fc1_grouped_params& params, const tdm::Choices& chosen, const tdm::Turn& turn)
        : p(params.fc1), choices(chosen), runs(params.runs),
          share(params.fc1, turn, chosen.before[chosen.n] * params.fc1.expert_tiles) {
    }
    /* Groups of tokens in the order in which they are computed: the first of each run, then the second of each, ... */
    __device__ int32_t in_turn(int32_t group) const {
      const int32_t all = choices.before[choices.n], run = group % runs;
      return run * (all / runs) + min(run, all % runs) + group / runs;
    }
    __device__ Piece at(int32_t i) const {
      const auto [at_turn, begin, end] = share.at(i);
      const int32_t unit = in_turn(at_turn / p.expert_tiles) * p.expert_tiles + at_turn % p.expert_tiles;
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

  /* before_last(): in front of the last piece, if there is one. */
  template <class BeforeLast>
  __device__ static void load_weights(const Walk& walk, Memory& shared, tdm::Ring<kStages>& ring,
                                      BeforeLast before_last) {
    const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
    for (int32_t i = 0; i < walk.share.pieces; ++i) {
      const Piece piece = walk.at(i);
      if (i + 1 == walk.share.pieces) before_last();
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

  /* stored(piece): by all threads, when a tile's results are there. */
  template <class Stored>
  __device__ static void multiply(const Walk& walk, Memory& shared, Places& places, tdm::Ring<kStages>& ring,
                                  const tdm_step_sync& sync, Stored stored) {
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
      if (piece.end == walk.p.k_blocks) stored(piece);
    }
  }

  __device__ static void run(const tdm_moe_fc1_grouped_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Places& places = *reinterpret_cast<Places*>(memory + sizeof(Memory));
    void* const choices_memory = memory + TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages);
    step_enter(sync, false);
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
    step_wait(sync);
    step_admit_next(); /* late: FC2 may then look at what routing chose */
    const int32_t live = tdm::live_rows(p.fc1.n_tokens, p.fc1.m), rows = min(p.fc1.m, int32_t{TDM_CHOICES_ROWS});
    tdm::Ring<kStages> ring;
    Gathering gathering;
    int32_t first_row = 0;
    do { /* once at least: the choices are asked for beside `live` */
      const tdm::Choices choices =
          tdm::load_choices(choices_memory, p.fc1.choices, p.fc1.n_experts, rows, first_row, p.fc1.m, live, kTokens);
      const Walk walk(p, choices, shared.turn);
      if (threadIdx.x == 0) load_weights(walk, shared, ring, [] {});
      if (threadIdx.x / 32 == 1) gather_tokens(p, walk, shared, places.gathered, gathering);
      if (threadIdx.x >= 128) multiply(walk, shared, places, ring, sync, [](const Piece&) {});
      __syncthreads();
      first_row += TDM_CHOICES_ROWS;
    } while (first_row < live);
    step_end(sync);
  }
};

} // namespace tdm

#endif
