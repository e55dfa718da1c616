/* RMSNorm and router of few rows for sm_90a, the first of two launches: moe_gate_route is the second. A CTA a unit of
 * the router, which is a tile of 64 experts and a segment of the sum over K, as in router_gemm.
 *
 *   before the wait    weights of the unit and of the norm
 *   all rows           x + delta ─ squares, 256 columns a warp ─ sums, in rmsnorm's order          every CTA
 *   the segment        its columns of x + delta, kept in shared memory ─ normalised ─ bf16; tile 0 stores them
 *   products           64 experts x 8 rows ─ partials in the workspace
 *
 * Every CTA reads whole rows for itself, from L2: that takes less than to wait for one that has done it. Where units
 * outnumber CTAs a CTA begins from the rows again for each. CTAs beyond them ask for what is to be prefetched.
 *
 * Block: 512 threads, of which 128 multiply. Limit: latency: rows, sums, products, partials. docs/kernels/small_ops.md
 * has figures. */

#include "kernels/device/gemm.cuh"
#include "kernels/device/prefetch.cuh"
#include "kernels/moe_norm_gate/moe_norm_gate_params.h"
#include "kernels/rmsnorm/rmsnorm.cuh"

namespace {

constexpr int32_t kThreads = TDM_MOE_NORM_GATE_THREADS, kWarps = kThreads / 32, kRows = TDM_MOE_NORM_GATE_ROWS;
constexpr int32_t kBlockOfW = 64 * 128, kBlockOfX = kRows * 128; /* bytes of 64 along K */
static_assert(TDM_MOE_NORM_GATE_COLUMNS == 2 * 8 * kThreads, "a thread has eight columns of either half of a row");

struct Shared {
  float sums[kRows][2 * kWarps]; /* of the squares, by runs of 256 columns */
  uint64_t full;
};

struct Unit {
  int32_t n0, segment;
  int32_t begin, blocks; /* along K */

  __device__ Unit(const tdm_gemm_bf16_params& p, int32_t index)
      : n0(index / p.segments * 64), segment(index % p.segments),
        begin(tdm::segment_begin(segment, p.segments, p.k_blocks, p.granule)),
        blocks(tdm::segment_begin(segment + 1, p.segments, p.k_blocks, p.granule) - begin) {
  }
};

struct Gate {
  const tdm_moe_norm_gate_params& p;
  Shared& shared;
  uint8_t *const w, *const x;
  float *const kept, *const weight; /* [rows][columns of a segment] before the norm; [columns] */
  const int32_t thread = static_cast<int32_t>(threadIdx.x), lane = thread % 32, warp = thread / 32;

  __device__ Gate(const tdm_moe_norm_gate_params& params, Shared& shared_memory, uint8_t* memory)
      : p(params), shared(shared_memory), w(memory), x(w + p.segment_blocks * kBlockOfW),
        kept(reinterpret_cast<float*>(x + p.segment_blocks * kBlockOfX)), weight(kept + p.segment_blocks * kRows * 64) {
  }

  /* The router's weights; by one thread. */
  __device__ void ask_weights(const Unit& unit) const {
    const uint64_t once = tdm::l2_evict_first();
    tdm::mbarrier_arrive_expect(&shared.full, static_cast<uint32_t>(unit.blocks * kBlockOfW));
    for (int32_t block = 0; block < unit.blocks; ++block)
      tdm::tma_load_3d(w + block * kBlockOfW, &p.gemm.w, &shared.full, once, 64 * (unit.begin + block), unit.n0, 0);
  }
  /* The norm's, those that a thread brings to shared memory. */
  struct Weights {
    float of[2];
  };
  __device__ __forceinline__ Weights load_weights(const Unit& unit) const {
    Weights weights{};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t column = thread + i * kThreads;
      if (p.norm.weight != nullptr && column < 64 * unit.blocks)
        weights.of[i] = tdm::load_element(p.norm.weight, p.norm.weight_dtype, 64 * unit.begin + column);
    }
    return weights;
  }
  __device__ __forceinline__ void keep_weights(const Unit& unit, const Weights& weights) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (thread + i * kThreads < 64 * unit.blocks) weight[thread + i * kThreads] = weights.of[i];
  }

  /* All rows, and what the segment needs of them. Answers the live rows, whose number is asked for beside the first
   * rows. */
  __device__ __forceinline__ int32_t sum_squares(const Unit& unit) const {
    tdm::RmsnormRow8 rows[2][2] = {};
    int32_t live = 0, first = 0;
    do {
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t column = 8 * (thread + half * kThreads);
          if (first + i < p.norm.rows && column < p.norm.cols)
            tdm::rmsnorm_fetch_8(p.norm, first + i, column, rows[i][half]);
        }
      if (first == 0) live = tdm::live_rows(p.norm.n_tokens, p.norm.rows);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t row = first + i;
        if (row >= live) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t column = 8 * (thread + half * kThreads), of_segment = column - 64 * unit.begin;
          const bool mine = of_segment >= 0 && of_segment < 64 * unit.blocks;
          float v[8], squares = 0.0f;
          if (column < p.norm.cols) {
            tdm::rmsnorm_add_8(p.norm, row, column, mine && unit.n0 == 0, rows[i][half], v);
#pragma unroll
            for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
            if (mine) tdm::store_8(v, kept, TDM_KERNEL_F32, row * 64 * unit.blocks + of_segment, true);
          }
          squares = tdm::lanes_sum<32>(squares);
          if (lane == 0) shared.sums[row][warp + half * kWarps] = squares;
        }
      }
      first += 2;
    } while (first < live);
    return live;
  }

  /* The segment's columns of all rows, eight an item; a block of 128 is half a warp's. */
  __device__ __forceinline__ void normalise(const Unit& unit, int32_t live) const {
    const bool stores = unit.n0 == 0;
    const int32_t groups = 8 * unit.blocks, items = live * groups;
#pragma unroll 1
    for (int32_t base = 32 * warp; base < items; base += kThreads) {
      const int32_t item = base + lane;
      const bool inside = item < items;
      const int32_t row = inside ? item / groups : 0, group = inside ? item - row * groups : 0;
      float v[8], by[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
      tdm::load_8(v, kept, TDM_KERNEL_F32, 8 * (row * groups + group), true);
      if (p.norm.weight != nullptr) tdm::load_8(by, weight, TDM_KERNEL_F32, 8 * group, true);
      /* As block_sum adds them, whose first step is lanes 16 apart. */
      const float squares = tdm::lanes_sum<16>(shared.sums[row][lane % 16] + shared.sums[row][lane % 16 + 16]);
      tdm::rmsnorm_scale_8(v, tdm::rmsnorm_inverse(p.norm, squares), by);
      if (inside)
        *reinterpret_cast<uint4*>(x + group / 8 * kBlockOfX + row * 128 + (group % 8 ^ row) * 16) = make_uint4(
            tdm::bf16x2(v[0], v[1]), tdm::bf16x2(v[2], v[3]), tdm::bf16x2(v[4], v[5]), tdm::bf16x2(v[6], v[7]));
      if (stores) tdm::rmsnorm_store_8(p.norm, row, 64 * unit.begin + 8 * group, inside, true, v);
    }
    if (stores && p.norm.out_q != nullptr && thread < unit.blocks / 2)
      for (int32_t row = live; row < (live + 3) / 4 * 4; ++row)
        p.norm.out_scale[(unit.begin / 2 + thread) * p.norm.out_scale_stride + row] = 0.0f;
  }

  /* A warpgroup. */
  __device__ __forceinline__ void multiply(const Unit& unit, int32_t live, uint32_t parity) const {
    const uint32_t of_w = tdm::same_in_warp(tdm::wgmma_descriptor_lower(w)),
                   of_x = tdm::same_in_warp(tdm::wgmma_descriptor_lower(x));
    float c[kRows / 2];
    tdm::mbarrier_wait(&shared.full, parity);
#pragma unroll 1
    for (int32_t block = 0; block < unit.blocks; ++block) {
      tdm::wgmma_fence();
#pragma unroll
      for (int32_t k = 0; k < 4; ++k)
        tdm::wgmma_bf16<kRows>::template issue<0>(
            c, tdm::wgmma_descriptor_whole(of_w + static_cast<uint32_t>(block * (kBlockOfW / 16) + 2 * k)),
            tdm::wgmma_descriptor_whole(of_x + static_cast<uint32_t>(block * (kBlockOfX / 16) + 2 * k)),
            block + k != 0);
      tdm::wgmma_commit();
    }
    tdm::wgmma_wait<0>();
    tdm::wgmma_settle(c);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int32_t row = 2 * (lane % 4) + i % 2, expert = unit.n0 + 16 * warp + lane / 4 + 8 * (i / 2);
      if (row < live) __stcg(p.gemm.partials + (unit.segment * p.gemm.m + row) * p.gemm.n + expert, c[i]);
    }
  }

  /* All units of this CTA. */
  __device__ __forceinline__ void work(int32_t units, const tdm_step_sync& sync) const {
    bool waits = true;
    uint32_t parity = 0;
#pragma unroll 1
    for (int32_t index = static_cast<int32_t>(blockIdx.x); index < units; index += static_cast<int32_t>(gridDim.x)) {
      const Unit unit(p.gemm, index);
      if (waits && sync.fetches_ahead == 0) tdm::step_wait(sync);
      if (thread == 0) ask_weights(unit);
      const Weights weights = load_weights(unit);
      if (waits && sync.fetches_ahead != 0) tdm::step_wait(sync);
      waits = false;
      const int32_t live = sum_squares(unit);
      keep_weights(unit, weights);
      __syncthreads();
      normalise(unit, live);
      tdm::fence_async_shared();
      __syncthreads();
      if (warp < 4) multiply(unit, live, parity);
      __syncthreads();
      parity ^= 1;
    }
  }
};

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MOE_NORM_GATE_THREADS, 1)
    tdm_moe_norm_gate_sm90(const __grid_constant__ tdm_moe_norm_gate_params p,
                           const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  __shared__ Shared shared;
  const Gate gate(p, shared, memory);
  const int32_t units = p.gemm.n / 64 * p.gemm.segments;
  tdm::step_enter(sync);
  if (threadIdx.x == 0) { /* who asks; the others wait for the weights behind a barrier of the CTA */
    tdm::tma_prefetch_map(&p.gemm.w);
    tdm::mbarrier_init(&shared.full, 1);
    tdm::fence_barrier_init();
  }
  const int32_t beyond = static_cast<int32_t>(blockIdx.x) - units;
  if (beyond < 0) {
    gate.work(units, sync);
  } else {
    for (const tdm_prefetch& then : p.prefetch)
      tdm::prefetch_lines(then, kThreads * beyond + gate.thread, kThreads * (static_cast<int32_t>(gridDim.x) - units));
    tdm::step_wait(sync);
  }
  tdm::step_end(sync);
}
