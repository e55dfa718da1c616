/* FC1 with SwiGLU and FP8 requantisation for sm_90a, of each expert for the tokens alone that chose it.
 *
 * The swapped form of moe_fc1 (moe_fc1_swap.cuh), the same sums and roundings in the same order, so the same bits, with
 * three differences:
 *
 * 1. A tile's tokens are those that chose its expert, kTokens of them at a time. Every CTA turns the bits that routing
 * left (device/choices.cuh) and walks the experts that somebody chose: a group of tokens fastest, so that tiles of the
 * same weights meet in L2, then the expert's tiles.
 * 2. A warp gathers the tokens' rows and scales into the stages by plain asynchronous copies.
 * 3. Results go to the rows they belong to; nothing else in an expert's columns is written.
 *
 * More than 256 rows are gone through in turns, all weights once a turn. Where the dense form cuts K into segments (few
 * tiles), a CTA goes through all of them and adds them up in the same order.
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

  /* Rows of a tile's tokens: of the tiles that consumers are at, in turn, and of the one that is gathered. */
  struct Places {
    int32_t multiplied[2][kTokens];
    int32_t gathered[kTokens];
  };
  static_assert(sizeof(Memory) + sizeof(Places) == TDM_MOE_FC1_GROUPED_SHARED(kTokens, kStages), "launch size");

  struct Work {
    int32_t index; /* of the expert in the list */
    int32_t first; /* of its rows */
    int32_t count;
    int32_t tile;
    bool alone; /* there are no other rows for these weights */
  };

  struct Walk {
    const tdm_moe_fc1_params& p;
    const tdm::Choices& choices;
    int32_t units;

    __device__ Walk(const tdm_moe_fc1_params& params, const tdm::Choices& chosen)
        : p(params), choices(chosen), units(choices.before[choices.n] * p.expert_tiles) {
    }
    __device__ Work at(int32_t unit) const {
      const int32_t index = choices.holder(unit / p.expert_tiles);
      const int32_t begin = choices.before[index], groups = choices.before[index + 1] - begin;
      const int32_t place = unit - begin * p.expert_tiles, first = place % groups * kTokens;
      return Work{index, first, min(choices.rows(index) - first, kTokens),
                  choices.expert(index) * p.expert_tiles + place / groups, groups == 1};
    }
  };

  __device__ static void load_weights(const tdm_moe_fc1_params& p, const tdm::Choices& choices, Memory& shared,
                                      tdm::Ring<kStages>& ring) {
    const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
    const Walk walk(p, choices);
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const Work work = walk.at(u);
      for (int32_t kb = 0; kb < p.k_blocks; ++kb) {
        tdm::mbarrier_wait(&shared.empty[ring.slot], ring.parity ^ 1);
        tdm::mbarrier_arrive_expect(&shared.full[ring.slot], 256 * 128);
        tdm::tma_load_3d(shared.w[ring.slot], &p.w, &shared.full[ring.slot], work.alone ? once : often, 0,
                         work.tile * 256, kb);
        ring.advance();
      }
    }
  }

  /* A warp: 16 bytes of a row a lane, four rows at a time; lane r has the scale of token r. */
  __device__ static void gather_tokens(const tdm_moe_fc1_grouped_params& p, const tdm::Choices& choices, Memory& shared,
                                       int32_t* rows, tdm::Gathering<kStages, 1>& gathering) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t piece = threadIdx.x % 8;
    const Walk walk(p.fc1, choices);
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const Work work = walk.at(u);
      choices.place_rows(work.index, work.first, kTokens, rows);
      __syncwarp();
      uint32_t from[kTokens / 4];
#pragma unroll
      for (int i = 0; i < kTokens / 4; ++i) {
        const int32_t token = 4 * i + lane / 8;
        from[i] = token < work.count ? static_cast<uint32_t>(rows[token] * p.x_stride) + piece * 16 : 0;
      }
      const float* scale = p.x_scale + (lane < work.count ? rows[lane] : 0);
      __syncwarp();
      for (int32_t kb = 0; kb < p.fc1.k_blocks; ++kb, scale += p.x_scale_stride) {
        gathering.begin(shared.empty);
        const tdm::Ring<kStages>& at = gathering.ring;
        const uint8_t* x = p.x + kb * 128;
#pragma unroll
        for (int i = 0; i < kTokens / 4; ++i) {
          const int32_t token = 4 * i + lane / 8;
          if (token < work.count)
            tdm::copy_async_16(shared.x[at.slot] + tdm::swizzled(static_cast<uint32_t>(token), piece), x + from[i]);
        }
        if (lane < work.count) tdm::copy_async_4(&shared.scale[at.parity][at.slot][lane], scale);
        gathering.end(shared.full);
      }
    }
    gathering.finish(shared.full);
  }

  __device__ static void multiply(const tdm_moe_fc1_params& p, const tdm::Choices& choices, Memory& shared,
                                  Places& places, tdm::Ring<kStages>& ring, uint32_t consumer) {
    const Walk walk(p, choices);
    uint32_t turn = 0;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units;
         u += static_cast<int32_t>(gridDim.x), turn ^= 1) {
      const Work work = walk.at(u);
      /* Read behind the first barrier of the epilogue; the other place is read until the barriers of this one. */
      int32_t* rows = places.multiplied[turn];
      if (threadIdx.x / 32 == 4) choices.place_rows(work.index, work.first, kTokens, rows);
      Swap::template multiply_tile<kSegmented>(p, shared, ring, work.tile, ChosenRows{rows, work.count}, consumer);
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
        tdm::mbarrier_init(&shared.full[i], 2);
        tdm::mbarrier_init(&shared.empty[i], 8);
      }
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.fc1.w);
    }
    __syncthreads();
    tdm::step_wait(sync);
    const int32_t live = tdm::live_rows(p.fc1.n_tokens, p.fc1.m), rows = min(p.fc1.m, int32_t{TDM_CHOICES_ROWS});
    tdm::Ring<kStages> ring;
    tdm::Gathering<kStages, 1> gathering;
    for (int32_t first_row = 0; first_row < live; first_row += TDM_CHOICES_ROWS) {
      const tdm::Choices choices =
          tdm::load_choices(choices_memory, p.fc1.choices, p.fc1.n_experts, rows, first_row, live, kTokens);
      if (threadIdx.x == 0) load_weights(p.fc1, choices, shared, ring);
      if (threadIdx.x / 32 == 1) gather_tokens(p, choices, shared, places.gathered, gathering);
      if (threadIdx.x >= 128) multiply(p.fc1, choices, shared, places, ring, threadIdx.x / 128 - 1);
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
