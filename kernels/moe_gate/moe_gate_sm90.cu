/* Router logits and routing in one launch, for sm_90a: router_gemm, moe_route and its list of hit experts.
 *
 * 1. The product as in router_gemm_sm90.cu: the same plan, the same bits. Logits go to device memory.
 * 2. Tokens are routed in groups: those of a slice of the segments' sum (add_segments), so 16 where the tile has 32
 *    tokens and more. When the logits of a group are there for all tiles of 64 experts is told by a counter, where the
 *    tiles meet as segments do (meet): each takes a share of the group's rows or, if it did not wait, leaves it to the
 *    last.
 * 3. A warp routes a row as moe_route does (moe_route.cuh), so the same bits.
 * 4. The list: rows leave a bit an expert in the workspace, the warp that routed the last row writes them out.
 *
 *   tile 0   segments ─ sum, store ─┐
 *   tile 1   segments ─ sum, store ─┼─ meet ─ rows 0, 4, ..        ─┐
 *   tile 2   segments ─ sum, store ─┤         rows 1, 5, ..        ─┼─ last row ─ list
 *   tile 3   segments ─ sum, store ─┘         rows 2, 6, .. and 3  ─┘
 *
 * Grid: any; block: 384 threads, of which the consumers route. Shared: as the product's. Limit: latency. */

#include "kernels/gemm_bf16/gemm_bf16.cuh"
#include "kernels/moe_gate/moe_gate_params.h"
#include "kernels/moe_route/moe_route.cuh"

namespace {

template <int kTokens> struct Router {
  static constexpr bool kApart = false;
  static constexpr int kGroups = kTokens < 32 ? 1 : kTokens / 16, kGroupRows = kTokens / kGroups, kWarps = 4;
  static_assert(kGroups <= TDM_MOE_GATE_GROUPS && kGroupRows <= 32, "a lane a row of the group");
  static constexpr bool kRegisters = true;
  const tdm_moe_gate_params& p;

  /* The bias into L2, which the weights of other layers have swept. */
  __device__ void ahead() const {
    if (blockIdx.x != 0 || p.route.bias == nullptr) return;
    for (int32_t e = 0; e < p.route.experts; e += 32) tdm::l2_prefetch(p.route.bias + e);
  }

  /* By the warpgroup that stored them: the groups of a tile whose bits are set. */
  __device__ void stored(const tdm::Unit& unit, uint32_t groups, int32_t live, bool one_wave, uint32_t* flag,
                         uint32_t barrier) const {
    const int32_t tiles = (p.gemm.n + 63) / 64;
#pragma unroll 1
    for (int32_t group = 0; group < kGroups; ++group) {
      const int32_t first = group * kGroupRows, rows = min(live - first, kGroupRows);
      if (rows <= 0) break;
      if ((groups >> group & 1) == 0) continue;
      tdm::named_barrier_sync(barrier, 128);
      if (threadIdx.x % 128 == 0) {
        /* The last to arrive can do few rows at once, without a word to the others. Nobody waits for an empty share. */
        const bool waits = one_wave && rows > kWarps && rows >= tiles;
        *flag = tdm::meet(&p.state->meetings[group], unit.n_tile, tiles, waits);
      }
      tdm::named_barrier_sync(barrier, 128);
      const uint32_t shares = *flag;
      if (shares == 0) continue;
      if (p.route.experts == 256)
        route<8>(first, rows, shares, live);
      else
        route<12>(first, rows, shares, live);
    }
  }

  /* Row r of the group is in share r % kTiles; the rows that are this CTA's go round its warps. */
  template <int kPer>
  __device__ __forceinline__ void route(int32_t first, int32_t rows, uint32_t shares, int32_t live) const {
    constexpr int kTiles = kPer / 2; /* of 64 experts */
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32) % kWarps;
    const bool here = lane < rows && (shares >> lane % kTiles & 1) != 0;
    const uint32_t all = __ballot_sync(~0u, here);
    const uint32_t mine = __ballot_sync(~0u, here && __popc(all & ((1u << lane) - 1)) % kWarps == warp);
    uint32_t hits = 0;
#pragma unroll 1
    for (uint32_t left = mine; left != 0; left &= left - 1) {
      const int32_t row = first + __ffs(static_cast<int32_t>(left)) - 1;
      const float* from = p.route.logits + row * p.route.logits_stride + lane;
      float logits[kPer], bias[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) logits[i] = __ldcg(from + 32 * i);
#pragma unroll
      for (int i = 0; i < kPer; ++i) bias[i] = p.route.bias == nullptr ? 0.0f : p.route.bias[32 * i + lane];
      hits |= tdm::route_row<kPer>(p.route, row, logits, bias, lane);
    }
    if (mine != 0) end_rows<kPer>(hits, __popc(mine), live, lane);
  }

  /* A warp; lane i has the bits of experts 32 i to 32 i + 31. When the last rows are routed nobody is at a meeting any
   * more: zeros are left instead of leaving one by one. */
  template <int kPer> __device__ void end_rows(uint32_t hits, int32_t rows, int32_t live, int32_t lane) const {
    static_assert(kPer <= TDM_MOE_GATE_WORDS, "words");
    if (p.hits != nullptr && lane < kPer) atomicOr(&p.state->hits[lane], hits);
    __syncwarp();
    int32_t routed = 0;
    if (lane == 0) {
      tdm::fence_gpu();
      routed = static_cast<int32_t>(atomicAdd(&p.state->routed, static_cast<uint32_t>(rows))) + rows;
      tdm::fence_gpu();
    }
    __syncwarp();
    if (__shfl_sync(~0u, routed, 0) != live) return;
    if (lane < kGroups) p.state->meetings[lane] = 0;
    if (lane == 0) p.state->routed = 0;
    if (p.hits != nullptr) list_hits<kPer>(lane);
  }

  template <int kPer> __device__ __forceinline__ void list_hits(int32_t lane) const {
    const uint32_t word = lane < kPer ? atomicExch(&p.state->hits[lane], 0u) : 0;
    int32_t up_to = __popc(word);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t lower = __shfl_up_sync(~0u, up_to, distance);
      if (lane >= distance) up_to += lower;
    }
    const int32_t chosen = __shfl_sync(~0u, up_to, 31);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const uint32_t bits = __shfl_sync(~0u, word, i);
      const int32_t at = __shfl_sync(~0u, up_to, i) - __popc(bits) + __popc(bits & ((1u << lane) - 1));
      if ((bits >> lane & 1) != 0) p.hits[1 + at] = 32 * i + lane;
    }
    for (int32_t e = lane; e < p.route.n_shared; e += 32) p.hits[1 + chosen + e] = 32 * kPer + e;
    if (lane == 0) p.hits[0] = chosen + p.route.n_shared;
  }

  __device__ void no_tokens() const {
    if (p.hits != nullptr && blockIdx.x == 0 && threadIdx.x == 128) p.hits[0] = 0;
  }
};

} // namespace

#define ROUTER(tokens, stages)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 32 ? 2 : 1)                          \
      tdm_moe_gate_t##tokens##_sm90(const __grid_constant__ tdm_moe_gate_params p,                                     \
                                    const __grid_constant__ tdm_step_sync sync) {                                      \
    tdm::GemmBf16<64, tokens, stages, false>::run(p.gemm, sync, Router<tokens>{p});                                    \
  }
#include "kernels/router_gemm/router_gemm_variants.inc"
