#ifndef KERNELS_MLA_ABSORB_MLA_ABSORB_CUH
#define KERNELS_MLA_ABSORB_MLA_ABSORB_CUH

/* The part of mla_absorb that is no GEMM: the rotation of the columns beside it. */

#include "kernels/rope/rope.cuh"

namespace tdm {

/* A warp: items of the CTA's share until all are taken. An item is so many heads of a token: two loads each are under
 * way, in 56 registers. */
__device__ inline void mla_absorb_rotate(const tdm_rope_params& p, uint32_t* taken) {
  constexpr int kHeads = 8;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), groups = (p.heads + kHeads - 1) / kHeads;
  const int64_t items = int64_t{live_rows(p.n_tokens, p.rows)} * groups;
  const int64_t begin = items * blockIdx.x / gridDim.x, end = items * (blockIdx.x + 1) / gridDim.x;
  for (;;) {
    uint32_t turn = 0;
    if (lane == 0) turn = atomicAdd(taken, 1u);
    const int64_t item = begin + __shfl_sync(~0u, turn, 0);
    if (item >= end) return;
    const int64_t row = item / groups;
    int64_t head = item % groups * kHeads;
    if (head + kHeads <= p.heads) {
      rope_heads<kHeads>(p, row, head, lane);
    } else {
      for (; head < p.heads; ++head) rope_heads<1>(p, row, head, lane);
    }
  }
}

} // namespace tdm

#endif
