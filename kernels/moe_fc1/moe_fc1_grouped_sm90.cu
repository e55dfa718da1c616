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

#include "kernels/moe_fc1/moe_fc1_grouped.cuh"

namespace {

/* The most that each thread of one CTA of an SM can have. */
constexpr int kRegisters = 65536 / TDM_MOE_FC1_THREADS / 8 * 8;

} // namespace

#define GROUPED(tokens, stages, name, segmented)                                                                       \
  extern "C" __global__ void __maxnreg__(kRegisters) tdm_moe_fc1_grouped_##name##_sm90(                                \
      const __grid_constant__ tdm_moe_fc1_grouped_params p, const __grid_constant__ tdm_step_sync sync) {              \
    tdm::MoeFc1Grouped<tokens, stages, segmented>::run(p, sync);                                                       \
  }
#include "kernels/moe_fc1/moe_fc1_grouped_variants.inc"
