#ifndef KERNELS_MOE_FC1_MOE_FC1_SHARES_CUH
#define KERNELS_MOE_FC1_MOE_FC1_SHARES_CUH

/* How the CTAs of an FC1 divide its tiles, so that it does not matter how many there are.
 *
 * Tiles are dealt one by one while there are two more for each CTA: neighbours, which have the same weights for other
 * tokens, run side by side and meet in L2. The blocks along K of those that are left, one to two a CTA, lie one behind
 * the other and are divided evenly. A CTA begins with the first blocks of its last tile and leaves their sums to the
 * next CTA, which ends with the others and finds them there: every sum is still added up from the first block to the
 * last.
 *
 *   counters  those of device/turns.cuh
 *   partials  [CTA][gate, up][elements / 4][threads] float4 */

#include "kernels/device/turns.cuh"
#include "kernels/moe_fc1/moe_fc1.cuh"

namespace tdm {

/* Blocks `begin` to `end` - 1 of a unit: a tile of weights, for some tokens. */
struct Piece {
  int32_t unit;
  int32_t begin, end;
};

/* What of `units` units falls to a CTA. Without memory for sums, whole ones. */
struct Share {
  uint32_t cta, k_blocks;
  uint32_t dealt;    /* units that are dealt to the CTA */
  uint32_t from, to; /* of the blocks of the other units, those before `to` */
  int32_t pieces;

  __device__ __forceinline__ Share(const tdm_moe_fc1_params& p, const Turn& turn, int32_t of_units)
      : cta(turn.cta), k_blocks(static_cast<uint32_t>(p.k_blocks)), dealt(0), from(0), to(0) {
    const uint32_t ctas = gridDim.x, units = static_cast<uint32_t>(of_units);
    const uint32_t sharing = min(ctas, units); /* each has a unit's blocks at least, so it waits for one other */
    if (p.partials == nullptr) {
      dealt = (units + ctas - 1 - cta) / ctas;
    } else if (cta < sharing) {
      dealt = max(units / ctas, 1u) - 1;
      const uint32_t blocks = (units - dealt * ctas) * k_blocks;
      from = blocks * cta / sharing, to = blocks * (cta + 1) / sharing;
    }
    pieces = static_cast<int32_t>(dealt + (to + k_blocks - 1) / k_blocks - from / k_blocks);
  }
  __device__ __forceinline__ uint32_t blocks() const {
    return dealt * k_blocks + to - from;
  }
  /* The last unit's first blocks, whole units, the first unit's last blocks. */
  __device__ __forceinline__ Piece at(int32_t index) const {
    const uint32_t last = to / k_blocks, first = from / k_blocks, all_dealt = dealt * gridDim.x;
    uint32_t i = static_cast<uint32_t>(index);
    if (to > last * k_blocks && i-- == 0) return piece(all_dealt + last, 0, to - last * k_blocks);
    if (i < dealt) return piece(cta + i * gridDim.x, 0, k_blocks);
    const uint32_t unit = first + (from > first * k_blocks) + i - dealt;
    if (unit < last) return piece(all_dealt + unit, 0, k_blocks);
    return piece(all_dealt + first, from - first * k_blocks, k_blocks);
  }
  __device__ static __forceinline__ Piece piece(uint32_t unit, uint32_t begin, uint32_t end) {
    return Piece{static_cast<int32_t>(unit), static_cast<int32_t>(begin), static_cast<int32_t>(end)};
  }
};

/* The pieces of a dense form. For fill_stages, which goes through units that are a grid apart, unit u is piece
 * u / gridDim.x of CTA u % gridDim.x. */
struct DensePiece {
  int32_t m_tile, n_tile;
  int32_t begin, end;
};

template <int kTokens> struct DenseWalk {
  const tdm_moe_fc1_params& p;
  int32_t live, m_tiles;
  const Share share;
  int32_t units;

  __device__ DenseWalk(const tdm_moe_fc1_params& params, const Hits& hits, int32_t live_tokens, const Turn& turn)
      : p(params), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens),
        share(p, turn, m_tiles * listed_tiles(p, hits)),
        units(static_cast<int32_t>(blockIdx.x + static_cast<uint32_t>(share.pieces) * gridDim.x)) {
  }
  __device__ DensePiece piece(int32_t index) const {
    const Piece piece = share.at(index);
    const uint32_t whole = static_cast<uint32_t>(piece.unit), groups = static_cast<uint32_t>(kept(m_tiles));
    const int32_t n_tile = static_cast<int32_t>(whole / groups), m_tile = piece.unit - n_tile * m_tiles;
    const Unit unit = listed_unit(p, Hits{0, p.hits != nullptr}, Unit{m_tile, n_tile, 0, 0});
    return DensePiece{unit.m_tile, unit.n_tile, piece.begin, piece.end};
  }
  __device__ DensePiece at(int32_t index) const {
    return piece(static_cast<int32_t>(static_cast<uint32_t>(index) / gridDim.x));
  }
  __device__ int32_t begin(const DensePiece& piece) const {
    return piece.begin;
  }
  __device__ int32_t end(const DensePiece& piece) const {
    return piece.end;
  }
};

/* Sums of a piece that does not end its unit, and of the one that does: the 256 threads of both consumers, with the
 * same elements of gate and up each time, who meet at the named barrier. */
template <int kTokens> struct Sums {
  static constexpr int kThreads = 256;
  static constexpr int kVectors = TDM_MOE_FC1_SUM_BYTES(kTokens) / 16; /* of a CTA */

  __device__ static __forceinline__ uint32_t thread() {
    return (threadIdx.x - 128) % kThreads;
  }
  __device__ static __forceinline__ float4* of(const tdm_moe_fc1_params& p, uint32_t cta) {
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
    named_barrier_sync(barrier, kThreads);
    if (thread() == 0) tell_next(p.counters, turn);
  }

  /* The CTA before this one began with these sums: there is nothing that it waits for. */
  template <int kCount>
  __device__ static __forceinline__ void take_up(const tdm_moe_fc1_params& p, const Turn& turn, float (&gate)[kCount],
                                                 float (&up)[kCount], uint32_t barrier, const tdm_step_sync& sync) {
    if (thread() == 0) await_previous(p.counters, turn, sync);
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
