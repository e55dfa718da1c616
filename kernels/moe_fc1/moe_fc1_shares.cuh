#ifndef KERNELS_MOE_FC1_MOE_FC1_SHARES_CUH
#define KERNELS_MOE_FC1_MOE_FC1_SHARES_CUH

/* How the CTAs of an FC1 divide its tiles, so that it does not matter how many there are.
 *
 * All tiles' blocks along K lie one behind the other and are divided evenly. A CTA begins with the first blocks of its
 * last tile and leaves their sums to the next CTA, which ends with the others and finds them there: every sum is still
 * added up from the first block to the last.
 *
 * A CTA waits for the one before it, so their order is that in which they begin to run: they draw numbers. Notes of
 * sums bear the number of the launch, so that what a launch leaves that went wrong misleads nobody.
 *
 *   counters  [1 + CTAs] numbers drawn, then a note for each CTA
 *   partials  [CTA][gate, up][elements / 4][threads] float4 */

#include "kernels/moe_fc1/moe_fc1.cuh"

namespace tdm {

/* Of a CTA: its place in the order, and the number of the launch, never 0. */
struct Turn {
  int32_t cta;
  uint32_t launch;
};

/* By one thread, into shared memory. Before step_wait or behind it: counters are this step's alone, and its last launch
 * is complete. */
__device__ __forceinline__ void draw_turn(const tdm_moe_fc1_params& p, Turn& turn) {
  constexpr uint32_t kLaunches = 1u << 20; /* then from 0 again */
  if (p.partials == nullptr) {
    turn = Turn{static_cast<int32_t>(blockIdx.x), 0};
    return;
  }
  const uint32_t number = atomicInc(p.counters, gridDim.x * kLaunches - 1);
  turn = Turn{static_cast<int32_t>(number % gridDim.x), number / gridDim.x + 1};
}

/* Blocks `begin` to `end` - 1 of a unit: a tile of weights, for some tokens. */
struct Piece {
  int32_t unit;
  int32_t begin, end;
};

/* What of `units` units falls to a CTA. Without memory for sums, whole ones. */
struct Share {
  int32_t pieces;
  int32_t cta, k_blocks;
  int32_t first_unit, first_block, last_unit, last_block; /* last ones are not part of it */

  __device__ __forceinline__ Share(const tdm_moe_fc1_params& p, const Turn& turn, int32_t units)
      : pieces(0), cta(turn.cta), k_blocks(p.k_blocks), first_unit(0), first_block(0), last_unit(0), last_block(0) {
    const int32_t ctas = static_cast<int32_t>(gridDim.x);
    if (p.partials == nullptr) {
      pieces = (units - cta + ctas - 1) / ctas;
      return;
    }
    const int32_t sharing = min(ctas, units); /* each has a unit's blocks at least, so it waits for one other */
    if (cta >= sharing) return;
    const int64_t blocks = int64_t{units} * k_blocks, from = blocks * cta / sharing, to = blocks * (cta + 1) / sharing;
    first_unit = static_cast<int32_t>(from / k_blocks), first_block = static_cast<int32_t>(from % k_blocks);
    last_unit = static_cast<int32_t>(to / k_blocks), last_block = static_cast<int32_t>(to % k_blocks);
    pieces = last_unit - first_unit + (last_block > 0);
  }
  /* The last unit's first blocks, whole units, the first unit's last blocks. */
  __device__ __forceinline__ Piece at(int32_t index) const {
    if (last_unit == 0) return Piece{cta + index * static_cast<int32_t>(gridDim.x), 0, k_blocks};
    if (last_block > 0 && index-- == 0) return Piece{last_unit, 0, last_block};
    const int32_t unit = first_unit + (first_block > 0) + index;
    return unit < last_unit ? Piece{unit, 0, k_blocks} : Piece{first_unit, first_block, k_blocks};
  }
};

/* Sums of a piece that does not end its unit, and of the one that does: kThreads threads (128: a consumer; 256: both)
 * with the same elements of gate and up each time, who meet at the named barrier. */
template <int kTokens, int kThreads> struct Sums {
  static constexpr int kVectors = TDM_MOE_FC1_SUM_BYTES(kTokens) / 16; /* of a CTA */

  __device__ static __forceinline__ uint32_t thread() {
    return (threadIdx.x - 128) % kThreads;
  }
  __device__ static __forceinline__ float4* of(const tdm_moe_fc1_params& p, int32_t cta) {
    return reinterpret_cast<float4*>(p.partials) + int64_t{cta} * kVectors + thread();
  }

  template <int kCount>
  __device__ static __forceinline__ void leave(const tdm_moe_fc1_params& p, const Turn& turn,
                                               const float (&gate)[kCount], const float (&up)[kCount],
                                               uint32_t barrier) {
    float4* const sums = of(p, turn.cta);
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      __stcg(sums + i * kThreads, make_float4(gate[4 * i], gate[4 * i + 1], gate[4 * i + 2], gate[4 * i + 3]));
      __stcg(sums + (kCount / 4 + i) * kThreads, make_float4(up[4 * i], up[4 * i + 1], up[4 * i + 2], up[4 * i + 3]));
    }
    __threadfence();
    named_barrier_sync(barrier, kThreads);
    if (thread() == 0) store_release(p.counters + 1 + turn.cta, turn.launch);
  }

  /* The CTA before this one began earlier, and with these sums: there is nothing that it waits for. Where it may have
   * seen other units, in a launch whose waits ran out of time, the sums may never come, and do not matter. */
  template <int kCount>
  __device__ static __forceinline__ void take_up(const tdm_moe_fc1_params& p, const Turn& turn, float (&gate)[kCount],
                                                 float (&up)[kCount], uint32_t barrier, const tdm_step_sync& sync) {
    if (thread() == 0) {
      uint32_t* const note = p.counters + turn.cta;
      while (load_acquire(note) != turn.launch && !launch_failed(sync)) {
      }
      *note = 0;
    }
    named_barrier_sync(barrier, kThreads);
    const float4* const sums = of(p, turn.cta - 1);
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 g = __ldcg(sums + i * kThreads), u = __ldcg(sums + (kCount / 4 + i) * kThreads);
      gate[4 * i] = g.x, gate[4 * i + 1] = g.y, gate[4 * i + 2] = g.z, gate[4 * i + 3] = g.w;
      up[4 * i] = u.x, up[4 * i + 1] = u.y, up[4 * i + 2] = u.z, up[4 * i + 3] = u.w;
    }
  }
};

} // namespace tdm

#endif
