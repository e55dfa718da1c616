/* FC1 and FC2 of each expert for the tokens alone that chose it, in one launch, for sm_90a: the kernels of
 * moe_fc1_grouped_sm90.cu and moe_fc2_grouped_sm90.cu one behind the other, with the bits of both.
 *
 * 1. Shares of FC1 are drawn until none is left, one by each CTA where all have an SM; so no CTA waits for one that has
 * none. A tile that is stored counts for its expert.
 * 2. The thread that asks for weights goes on to FC2's when it has asked for FC1's last, so that the memory always has
 * something to do. FC2's weights lie in three of the stages that FC1 had, beginning with the one that is free first,
 * its sums in the others; whoever writes there first waits until FC1 is done with it. Its tokens have a place of their
 * own.
 * 3. Before an expert's tokens are gathered they are waited for, expert by expert. FC1 goes through the experts of
 * FC2's segments side by side, so that those which FC2 begins with are there early.
 *
 *   warp 0, a thread    weights of FC1          weights of FC2
 *   warp 1              tokens of FC1           tokens of FC2
 *   warp 2                                      tokens of FC2
 *   warp 3              groups of eight tokens  ends of FC2's pieces
 *   warps 4 - 11        multiply FC1            multiply FC2
 *
 * Block: 384 threads. Limit: device bandwidth on the weights of the experts that were chosen. */

#include "kernels/moe_experts/moe_experts_many_params.h"
#include "kernels/moe_fc1/moe_fc1_grouped.cuh"
#include "kernels/moe_fc2/moe_fc2_grouped.cuh"

namespace {

template <int kTokens, int kStages, int kBlocks> struct Many {
  using First = tdm::MoeFc1Grouped<kTokens, kStages, false>;
  using Memory = typename First::Memory;
  static constexpr int kGroup = 8;
  static constexpr uint32_t kConsumers = 128;                                  /* the first thread */
  static constexpr uint32_t kOfSlot = 256 * 128 / TDM_MOE_FC2_GROUPED_W_BYTES; /* FC2's stages in one of FC1's */
  using Second = tdm::fc2::Memory<kGroup>;
  using Ends = tdm::fc2::Ends<kGroup>;

  struct Between {
    uint64_t drawn;     /* who asks for weights has drawn once more */
    uint64_t regrouped; /* groups of eight are counted */
    uint32_t next;      /* the number that was drawn */
    uint32_t padding[3];
  };

  /* Numbers below the grid are shares of FC1. Every CTA draws until it gets none, so twice the grid in a launch, and
   * its last number less the grid is its place in FC2's order. */
  __device__ static uint32_t draw(const tdm_moe_experts_many_params& p) {
    constexpr uint32_t kLaunches = 1u << 20;
    return atomicInc(p.fc1.fc1.counters, 2 * gridDim.x * kLaunches - 1);
  }

  /* Until FC1, of whose blocks so many went through the ring, is done with a stage. By those who filled it, or who read
   * all of it: to others the phase that ends with its last reader may look like one before. */
  __device__ static __forceinline__ void await_stage(Memory& shared, uint32_t stage, uint32_t blocks) {
    const uint32_t fills = (blocks + kStages - 1 - stage) / kStages;
    if (fills > 0) tdm::mbarrier_wait(&shared.empty[stage], (fills - 1) & 1);
  }
  __device__ static __forceinline__ void await_tail(Memory& shared, uint32_t blocks) {
    for (uint32_t stage = TDM_MOE_EXPERTS_MANY_W_SLOTS; stage < kStages; ++stage) await_stage(shared, stage, blocks);
  }

  /* A warp: groups of kGroup rows before each expert of the list, and before each segment. */
  __device__ static void regroup(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& choices, int32_t* before,
                                 int32_t* bounds) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const auto begin_of = [&](int32_t s) { return tdm::segment_begin(s, p.segments, p.n_experts, 1); };
    int32_t all = 0;
    for (int32_t base = 0; base < choices.n; base += 32) {
      const int32_t i = base + lane;
      const int32_t own = i < choices.n ? (choices.rows(i) + kGroup - 1) / kGroup : 0;
      const int32_t up_to = all + tdm::sum_up(own);
      if (i < choices.n) {
        before[i] = up_to - own;
        for (int32_t s = 0; s < p.segments; ++s)
          if (choices.expert(i) >= begin_of(s) && (i == 0 || choices.expert(i - 1) < begin_of(s)))
            bounds[s] = up_to - own;
      }
      all = __shfl_sync(~0u, up_to, 31);
    }
    const int32_t last = choices.n > 0 ? choices.expert(choices.n - 1) : -1;
    if (lane != 0) return;
    before[choices.n] = all;
    for (int32_t s = 0; s <= p.segments; ++s)
      if (s == p.segments || last < begin_of(s)) bounds[s] = all;
  }

  /* The last CTA sets back what FC1 has counted. A warp, when the CTA's consumers and its gatherers are done. */
  __device__ static void leave(const tdm_moe_experts_many_params& p) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), experts = p.fc2.n_experts;
    uint32_t left = 0;
    if (lane == 0) left = atomicAdd(p.fc1.done + experts, 1u) + 1;
    if (__shfl_sync(~0u, left, 0) != gridDim.x) return;
    for (int32_t i = lane; i <= experts; i += 32) p.fc1.done[i] = 0;
  }

  __device__ static void run(const tdm_moe_experts_many_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    uint8_t* const x = memory + sizeof(Memory);
    Between& between = *reinterpret_cast<Between*>(x + p.fc2.x_stages * Second::kXBytes);
    auto& places = *reinterpret_cast<typename First::Places*>(&between + 1);
    Second second(shared.w[0], x, shared.w[TDM_MOE_EXPERTS_MANY_W_SLOTS], &places + 1, p.fc2);
    int32_t* const before = second.bounds + TDM_MOE_FC2_GROUPED_SEGMENTS + 1;
    void* const choices_memory = before + p.fc2.n_experts + 1;
    tdm::fc2::Ring weights = second.weights(p.fc2), tokens = second.tokens(p.fc2);
    const uint32_t warp = threadIdx.x / 32;
    tdm::step_enter(sync, false);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1 + First::Gathering::kArrivals);
        tdm::mbarrier_init(&shared.empty[i], 256);
      }
      for (int32_t i = 0; i < p.fc2.stages; ++i) {
        tdm::mbarrier_init(&weights.full[i], 1);
        tdm::mbarrier_init(&weights.empty[i], 4);
      }
      for (int32_t i = 0; i < p.fc2.x_stages; ++i) {
        tdm::mbarrier_init(&tokens.full[i], 2 * kGroup);
        tdm::mbarrier_init(&tokens.empty[i], 4);
      }
      for (int32_t i = 0; i < 8; ++i) tdm::mbarrier_init(&second.order[i], 32);
      for (int32_t i = 0; i < 2; ++i) tdm::mbarrier_init(&second.kept[i], 4), tdm::mbarrier_init(&second.seen[i], 1);
      tdm::mbarrier_init(&between.drawn, 1);
      tdm::mbarrier_init(&between.regrouped, 32);
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.fc1.fc1.w);
      tdm::tma_prefetch_map(&p.fc2.w);
    }
    if (threadIdx.x == 32) {
      const uint32_t number = draw(p), numbers = 2 * gridDim.x;
      shared.turn = tdm::Turn{number % numbers, number / numbers + 1};
    }
    __syncthreads();
    tdm::step_wait(sync);
    tdm::step_admit_next();
    const int32_t live = tdm::live_rows(p.fc1.fc1.n_tokens, p.fc1.fc1.m), rows = p.fc1.fc1.m;
    tdm::Choices choices =
        tdm::load_choices(choices_memory, p.fc1.fc1.choices, p.fc2.n_experts, rows, 0, rows, live, kTokens);

    /* FC1. */
    tdm::Ring<kStages> ring;
    typename First::Gathering gathering;
    uint32_t blocks = 0;
    for (uint32_t turn = 0;; ++turn) {
      const uint32_t share = shared.turn.cta;
      uint32_t next = share; /* drawn already, if there is none */
      if (share < gridDim.x) {
        const typename First::Walk walk(p.fc1, choices, shared.turn);
        blocks += walk.share.blocks();
        bool drew = false;
        const auto draw_next = [&] { next = draw(p) % (2 * gridDim.x), drew = true; };
        if (threadIdx.x == 0) {
          First::load_weights(walk, shared, ring,
                              draw_next); /* nobody needs the number before the copies are asked for */
          if (!drew) draw_next();
        }
        if (warp == 1) First::gather_tokens(p.fc1, walk, shared, places.gathered, gathering);
        if (warp == 3 && turn == 0) {
          regroup(p.fc2, choices, before, second.bounds);
          tdm::mbarrier_arrive(&between.regrouped);
        }
        if (threadIdx.x >= kConsumers)
          First::multiply(walk, shared, places, ring, sync, [&](const typename First::Piece& piece) {
            tdm::named_barrier_sync(First::Swap::kBothConsumers, 256);
            if (threadIdx.x == kConsumers) tdm::add_release(p.fc1.done + choices.expert(piece.index), piece.count);
          });
      } else if (warp == 3 && turn == 0) {
        regroup(p.fc2, choices, before, second.bounds);
        tdm::mbarrier_arrive(&between.regrouped);
      }
      if (threadIdx.x == 0) {
        between.next = next;
        *second.turn = tdm::Turn{next - gridDim.x, shared.turn.launch}; /* if there is no other share */
        tdm::mbarrier_arrive(&between.drawn);
      }
      tdm::mbarrier_wait(&between.drawn, turn & 1);
      if (*const_cast<volatile uint32_t*>(&between.next) >= gridDim.x) break;
      __syncthreads(); /* a CTA has no SM: another share */
      if (threadIdx.x == 0) shared.turn.cta = between.next;
      __syncthreads();
    }

    /* FC2. */
    const uint32_t free_first = blocks % kStages;
    if (free_first < TDM_MOE_EXPERTS_MANY_W_SLOTS) second.rotation = free_first * kOfSlot % weights.stages;
    tdm::mbarrier_wait(&between.regrouped, 0);
    choices.before = before;
    const int32_t n_tiles = (p.fc2.n + tdm::fc2::kColumns - 1) / tdm::fc2::kColumns;
    tdm::fc2::Work work(p.fc2, choices, second.bounds);
    work.share(n_tiles, second.turn->cta);
    const Ends ends{p.fc2, second, work, live};
    if (threadIdx.x >= kConsumers) {
      const bool leads = threadIdx.x < kConsumers + 128;
      tdm::fc2::Order order{leads, leads ? 1u : 0u, 0};
      if (!leads) {
        weights.advance_by(static_cast<uint32_t>(p.fc2.blocks / kBlocks));
        tokens.advance_by(static_cast<uint32_t>(p.fc2.blocks / kBlocks));
      }
      await_tail(shared, blocks);
      const tdm::fc2::Consumer<kBlocks, kGroup, kConsumers> consumer{p.fc2, sync,    second, work,
                                                                     ends,  weights, tokens, order};
      consumer.multiply();
      if (work.groups == 0 && leads)
        for (int32_t t = static_cast<int32_t>(second.turn->cta); t < n_tiles; t += static_cast<int32_t>(gridDim.x))
          consumer.store_nothing(t);
    } else if (threadIdx.x == 0) {
      uint32_t filled = 0;
      tdm::fc2::load_weights<kBlocks, kGroup>(p.fc2, work, second, weights, [&](uint32_t place) {
        if (filled++ < weights.stages) await_stage(shared, place / kOfSlot, blocks);
      });
      *second.flag = ends.comes_last();
    } else if (warp == 1 || warp == 2) {
      int32_t turn = 0;
      tdm::fc2::Gatherer<kBlocks, kGroup> gatherer(p.fc2, second, choices, tokens, static_cast<int32_t>(warp) - 1,
                                                   turn);
      if (gatherer.mine < gatherer.warps)
        gatherer.gather(work, [&](int32_t index) {
          const uint32_t* const done = p.fc1.done + choices.expert(index);
          const uint32_t all = static_cast<uint32_t>(choices.rows(index) * p.fc2.blocks);
          while (tdm::load_acquire(done) < all && !tdm::launch_failed(sync)) {
          }
        });
    } else if (warp == 3) {
      tdm::fc2::finish(ends);
    }
    __syncthreads();
    if (warp == 3) leave(p);
    if (work.from < work.to) ends.end_work();
    tdm::step_end(sync);
  }
};

} // namespace

#define MANY(tokens, stages, blocks)                                                                                   \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_EXPERTS_MANY_THREADS, 1)                                        \
      tdm_moe_experts_many_t##tokens##_b##blocks##_sm90(const __grid_constant__ tdm_moe_experts_many_params p,         \
                                                        const __grid_constant__ tdm_step_sync sync) {                  \
    Many<tokens, stages, blocks>::run(p, sync);                                                                        \
  }
#include "kernels/moe_experts/moe_experts_many_variants.inc"
