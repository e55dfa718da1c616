/* FC2 with routing weights for sm_90a, of each expert for the tokens alone that chose it, FP8.
 *
 * 1. A unit is 64 columns of the output and a segment of the experts, the dense form's; its sums, of up to `tokens`
 * tokens, are kept in shared memory. A CTA goes through the experts that somebody chose, ascending, up to 8 or 16
 * of their tokens at a time, and reads each expert's weights once for each group.
 * 2. The groups of all units lie one behind the other and are divided evenly among the CTAs. A CTA begins with the
 * first groups of its last unit and leaves their sums to the next CTA (device/turns.cuh), which ends with the others
 * and finds them there. Where tokens are few, or too many for one pass, CTAs have whole tiles instead, all segments of
 * them.
 * 3. Producers: a thread asks for weights, up to two blocks of 128 along K a stage, by TMA; warps gather the tokens'
 * rows, scales and routing weights by plain asynchronous copies (device/choices.cuh).
 * 4. Two warpgroups multiply groups in turn. Then, one after the other, a token's sum comes to registers, takes the
 * expert's blocks, and goes back: the same operations in the same order as in the dense form, so the same bits. Warp w
 * of both has the same 16 columns of all tokens' sums, so that turns pass from warp to warp.
 * 5. Segments of a tile meet in the workspace, and are added in ascending order. A unit's sums go there as soon as they
 * are complete, and a warp that does nothing else tells others of them and adds up; all warps end the last piece.
 *
 *   two warpgroups         multiply         ring of weights  w     [2][64][128] e4m3, swizzled
 *   a warp                 lane 0: weights  ring of tokens   x     [2][group][128] e4m3, swizzled
 *   a warp                 finishes pieces                   note  scales, weights and places of the tokens
 *   two or three warps     tokens           sums             [tokens][64] f32
 *
 * Where sync.reads_ahead, routing is done before FC1 begins: choices are looked at and the first weights asked for
 * while the last CTAs of FC1 still run.
 *
 * Block: 384 or 416 threads. Limit: device bandwidth on w2 of the experts that were chosen. */

#include "kernels/moe_fc2/moe_fc2_grouped.cuh"

namespace {

using namespace tdm::fc2;

template <int kBlocks, int kGroup> __device__ void run(const tdm_moe_fc2_grouped_params& p, const tdm_step_sync& sync) {
  constexpr uint32_t kProducer = 256, kFinisher = kProducer + 32; /* the thread that asks for weights; a warp's first */
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  const Memory<kGroup> shared(memory, p);
  Ring weights = shared.weights(p), tokens = shared.tokens(p);
  const bool ahead = sync.reads_ahead != 0;
  tdm::step_enter(sync);
  if (threadIdx.x == 32) tdm::draw_turn(p.counters, *shared.turn);
  if (threadIdx.x == 0) {
    for (int32_t i = 0; i < p.stages; ++i) {
      tdm::mbarrier_init(&weights.full[i], 1);
      tdm::mbarrier_init(&weights.empty[i], 4);
    }
    for (int32_t i = 0; i < p.x_stages; ++i) {
      tdm::mbarrier_init(&tokens.full[i], 2 * kGroup);
      tdm::mbarrier_init(&tokens.empty[i], 4);
    }
    for (int32_t i = 0; i < 8; ++i) tdm::mbarrier_init(&shared.order[i], 32);
    for (int32_t i = 0; i < 2; ++i) tdm::mbarrier_init(&shared.kept[i], 4), tdm::mbarrier_init(&shared.seen[i], 1);
    tdm::fence_barrier_init();
    tdm::tma_prefetch_map(&p.w);
  }
  if (!ahead) tdm::step_wait(sync);
  const int32_t live = tdm::live_rows(p.n_tokens, p.m), n_tiles = (p.n + kColumns - 1) / kColumns;
  const bool shares = p.counters != nullptr;
  /* With shares there is one pass: the choices are asked for beside `live`. */
  const int32_t passes = shares ? 1 : (live + p.tokens - 1) / p.tokens, units = shares ? 1 : passes * n_tiles;
  Order order{threadIdx.x < 128, threadIdx.x < 128 ? 1u : 0u, 0}; /* the first turn is there already */
  if (threadIdx.x >= 128 && threadIdx.x < kProducer) {
    weights.advance_by(static_cast<uint32_t>(p.blocks / kBlocks));
    tokens.advance_by(static_cast<uint32_t>(p.blocks / kBlocks));
  }
  int32_t turn = 0;
  bool waits = ahead;
  for (int32_t u = shares ? 0 : static_cast<int32_t>(blockIdx.x); u < units; u += static_cast<int32_t>(gridDim.x)) {
    const int32_t first_row = u % passes * p.tokens, tile = u / passes;
    const tdm::Choices choices = tdm::load_choices(
        shared.choices, p.choices, p.n_experts, min(p.m, p.tokens), first_row, p.m, live, kGroup,
        p.tokens > 32 ? reinterpret_cast<uint32_t*>(shared.sums) : nullptr, [&](int32_t expert, int32_t groups) {
          for (int32_t s = 0; s <= p.segments; ++s)
            if (expert == tdm::segment_begin(s, p.segments, p.n_experts, 1)) shared.bounds[s] = groups;
        });
    Work work(p, choices, shared.bounds);
    const uint32_t cta = shared.turn->cta;
    if (shares)
      work.share(n_tiles, cta);
    else
      work.from = static_cast<uint32_t>(tile) * work.groups, work.to = work.from + work.groups;
    const Ends<kGroup> ends{p, shared, work, min(live - first_row, p.tokens)};
    if (threadIdx.x == kProducer) {
      load_weights<kBlocks, kGroup>(p, work, shared, weights, [](uint32_t) {});
      *shared.flag = ends.comes_last();
    }
    if (waits) tdm::step_wait(sync);
    waits = false;
    if (threadIdx.x < kProducer) {
      const Consumer<kBlocks, kGroup> consumer{p, sync, shared, work, ends, weights, tokens, order};
      consumer.multiply();
      if (work.groups == 0 && threadIdx.x < 128) {
        const int32_t step = shares ? static_cast<int32_t>(gridDim.x) : n_tiles;
        for (int32_t t = shares ? static_cast<int32_t>(cta) : tile; t < n_tiles; t += step) consumer.store_nothing(t);
      }
    } else if (threadIdx.x >= kFinisher && threadIdx.x < kFinisher + 32) {
      if (shares) finish(ends);
    } else if (threadIdx.x >= kFinisher + 32) {
      const int32_t warp = static_cast<int32_t>((threadIdx.x - kFinisher) / 32) - 1;
      Gatherer<kBlocks, kGroup> gatherer(p, shared, choices, tokens, warp, turn);
      if (gatherer.mine < gatherer.warps) gatherer.gather(work, [](int32_t) {});
    }
    __syncthreads();
    if (work.from < work.to) ends.end_work();
    __syncthreads();
  }
  if (waits) tdm::step_wait(sync);
  tdm::step_end(sync);
}

} // namespace

#define GROUPED(blocks, group)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC2_GROUPED_THREADS(group), 1)                                  \
      tdm_moe_fc2_grouped_b##blocks##_t##group##_sm90(const __grid_constant__ tdm_moe_fc2_grouped_params p,            \
                                                      const __grid_constant__ tdm_step_sync sync) {                    \
    run<blocks, group>(p, sync);                                                                                       \
  }
#include "kernels/moe_fc2/moe_fc2_grouped_variants.inc"
