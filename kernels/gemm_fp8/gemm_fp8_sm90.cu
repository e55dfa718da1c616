/* Block-scaled FP8 GEMM for sm_90a: out[m, n] = sum over blocks kb of (sx[kb][m] * sw[n/128][kb]) * dot(x, w over the
 * block).
 *
 * 1. Persistent CTAs walk the units: tile of the output x segment of K. gridDim.x is the SM budget.
 * 2. Producer: one lane keeps a ring of shared-memory stages filled by TMA (weights, activations, activation scales).
 * 3. Consumers: two warpgroups, wgmma e4m3 into f32, a fresh accumulator for each block of 128, promoted by its two
 * scales.
 * 4. Segments of one tile meet in the workspace as f32; the last to arrive adds them in ascending order and stores. How
 * K is cut depends on N and K alone, so a row has the same bits in every batch, on every lane and in both forms.
 * 5. Rows from the live count on are not stored; tiles without live rows are not computed.
 *
 * Swapped form (gemm_fp8_swap.cuh) up to 128 tokens; limit: device bandwidth on the weights.
 * Plain form above: tile 128 x 128, the 64-row side holds tokens; segments are summed in registers; limit: tensor
 * cores.
 *
 *   warpgroup 0 (producer)   warp 0, one lane: TMA        stage:  x      [128][128] e4m3, swizzled
 *   warpgroup 1              tokens   0 ..  63                    w      [128][128] e4m3, swizzled
 *   warpgroup 2              tokens  64 .. 127                    scale  [128] f32 */

#include "kernels/gemm_fp8/gemm_fp8_swap.cuh"
#include "kernels/gemm_fp8/gemm_fp8_upright.cuh"

namespace {

using tdm::Ring;

template <int kStages> struct PlainShared {
  alignas(1024) uint8_t x[kStages][128 * 128];
  alignas(1024) uint8_t w[kStages][128 * 128];
  alignas(128) float scale[kStages][128];
  alignas(16) uint8_t staged[8][16 * 272]; /* a warp's 16 rows of 128 bf16, padded by 16 bytes */
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

/* Tiles in bands of 8 weight tiles, tokens fastest inside, so that a wave's tiles share both operands in L2. */
struct PlainWalk {
  int32_t live, m_tiles, n_tiles;

  __device__ explicit PlainWalk(const tdm_gemm_fp8_params& p)
      : live(tdm::live_rows(p.n_tokens, p.m)), m_tiles((live + 127) / 128), n_tiles((p.n + 127) / 128) {
  }
  __device__ int32_t tiles() const {
    return m_tiles * n_tiles;
  }
  __device__ void at(int32_t index, int32_t* m0, int32_t* n0) const {
    constexpr int32_t kBand = 8;
    const int32_t band = index / (kBand * m_tiles), first = band * kBand, width = min(kBand, n_tiles - first);
    const int32_t inside = index - first * m_tiles;
    *n0 = (first + inside % width) * 128;
    *m0 = inside / width * 128;
  }
};

template <int kStages> __device__ void plain_load(const tdm_gemm_fp8_params& p, PlainShared<kStages>& shared) {
  const uint64_t often = tdm::l2_evict_last();
  const PlainWalk walk(p);
  Ring<kStages> ring;
  for (int32_t t = static_cast<int32_t>(blockIdx.x); t < walk.tiles(); t += static_cast<int32_t>(gridDim.x)) {
    int32_t m0, n0;
    walk.at(t, &m0, &n0);
    for (int32_t kb = 0; kb < p.k_blocks; ++kb) {
      tdm::mbarrier_wait(&shared.empty[ring.slot], ring.parity ^ 1);
      uint64_t* full = &shared.full[ring.slot];
      tdm::mbarrier_arrive_expect(full, 2 * 128 * 128 + 512);
      tdm::tma_load_3d(shared.x[ring.slot], &p.x, full, often, 0, m0, kb);
      tdm::tma_load_3d(shared.w[ring.slot], &p.w, full, often, 0, n0, kb);
      tdm::tma_load_2d(shared.scale[ring.slot], &p.x_scale, full, often, m0, kb);
      ring.advance();
    }
  }
}

/* A warp's 16 tokens: through shared memory to 16-byte stores. */
__device__ void plain_store(const float (&c)[64], const tdm::Output& out, int32_t m0, int32_t n0, uint8_t* staged) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  if (out.dtype == TDM_KERNEL_F32) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int32_t m = m0 + lane / 4 + 8 * (i / 2 % 2), n = n0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      if (m < out.rows && n < out.cols) static_cast<float*>(out.data)[m * out.stride + n] = c[i];
    }
    return;
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 64; i += 8) {
    uint8_t* row = staged + (lane % 16) * 272 + (2 * i + 8 * (lane / 16)) * 2;
    tdm::stmatrix_x4(row, tdm::bf16x2(c[i], c[i + 1]), tdm::bf16x2(c[i + 2], c[i + 3]), tdm::bf16x2(c[i + 4], c[i + 5]),
                     tdm::bf16x2(c[i + 6], c[i + 7]));
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int32_t row = 2 * i + lane / 16, n = n0 + lane % 16 * 8;
    if (m0 + row < out.rows && n < out.cols)
      tdm::store_bf16_8(out, m0 + row, n, *reinterpret_cast<const uint4*>(staged + row * 272 + lane % 16 * 16));
  }
}

template <int kStages>
__device__ void plain_multiply(const tdm_gemm_fp8_params& p, PlainShared<kStages>& shared, uint32_t consumer) {
  const PlainWalk walk(p);
  const uint32_t thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const uint32_t token = 64 * consumer + 16 * warp + lane / 4;
  Ring<kStages> ring;
  for (int32_t t = static_cast<int32_t>(blockIdx.x); t < walk.tiles(); t += static_cast<int32_t>(gridDim.x)) {
    int32_t m0, n0;
    walk.at(t, &m0, &n0);
    const float* w_scales = p.w_scale + n0 / 128 * p.w_scale_stride;
    const auto fetch = [&](int32_t batch) {
      const int32_t block = batch + static_cast<int32_t>(lane);
      return block < p.k_blocks ? __ldg(w_scales + block) : 0.0f;
    };
    float scales = 0.0f, next_scales = fetch(0);

    float total[64], c[64], acc[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) total[i] = c[i] = 0.0f;
    int32_t segment = 0, segment_end = tdm::segment_begin(1, p.segments, p.k_blocks, p.granule);

    for (int32_t kb = 0; kb < p.k_blocks; ++kb) {
      if (kb % 32 == 0) {
        scales = next_scales;
        next_scales = fetch(kb + 32);
      }
      tdm::mbarrier_wait(&shared.full[ring.slot], ring.parity);
      tdm::wgmma_fence();
      const uint64_t x = tdm::wgmma_descriptor(shared.x[ring.slot] + consumer * 64 * 128);
      const uint64_t w = tdm::wgmma_descriptor(shared.w[ring.slot]);
#pragma unroll
      for (int k = 0; k < 4; ++k) tdm::wgmma_e4m3<128>::issue(acc, x + 2 * k, w + 2 * k, k != 0);
      tdm::wgmma_commit();
      const float w_scale = __shfl_sync(~0u, scales, kb % 32);
      const float upper = shared.scale[ring.slot][token] * w_scale,
                  lower = shared.scale[ring.slot][token + 8] * w_scale;
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(acc);
      __syncwarp();
      if (lane == 0) tdm::mbarrier_arrive(&shared.empty[ring.slot]);
#pragma unroll
      for (int i = 0; i < 64; ++i) c[i] = fmaf(i / 2 % 2 == 0 ? upper : lower, acc[i], c[i]);
      if (kb + 1 == segment_end) {
        ++segment;
        segment_end = tdm::segment_begin(segment + 1, p.segments, p.k_blocks, p.granule);
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          total[i] += c[i];
          c[i] = 0.0f;
        }
      }
      ring.advance();
    }
    const tdm::Output out{p.out, p.out_stride, p.out_dtype, walk.live, p.n};
    plain_store(total, out, m0 + static_cast<int32_t>(64 * consumer + 16 * warp), n0,
                shared.staged[4 * consumer + warp]);
  }
}

template <int kStages> __device__ void plain_run(const tdm_gemm_fp8_params& p, const tdm_step_sync& sync) {
  using Shared = PlainShared<kStages>;
  static_assert(sizeof(Shared) == TDM_GEMM_FP8_PLAIN_SHARED(kStages), "launch size");
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 8);
    }
    tdm::fence_barrier_init();
  }
  tdm::step_begin(sync);
  __syncthreads();
  if (threadIdx.x < 128) {
    tdm::registers_lower<40>();
    if (threadIdx.x == 0) plain_load(p, shared);
  } else {
    tdm::registers_raise<232>();
    plain_multiply(p, shared, threadIdx.x / 128 - 1);
  }
  tdm::step_end(sync);
}

} // namespace

#define SWAP(rows, tokens, stages)                                                                                     \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, (tokens) <= 16 ? 2 : 1)                           \
      tdm_gemm_fp8_swap_n##rows##t##tokens##_sm90(const __grid_constant__ tdm_gemm_fp8_params p,                       \
                                                  const __grid_constant__ tdm_step_sync sync) {                        \
    tdm::GemmFp8Swap<rows, tokens, stages, false>::run(p, sync);                                                       \
  }
#define UPRIGHT(rows, tokens, stages)                                                                                  \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, 1) tdm_gemm_fp8_n##rows##t##tokens##_sm90(        \
      const __grid_constant__ tdm_gemm_fp8_params p, const __grid_constant__ tdm_step_sync sync) {                     \
    tdm::GemmFp8Upright<rows, tokens, stages, false>::run(p, sync);                                                    \
  }
#define PLAIN(stages)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_FP8_THREADS, 1) tdm_gemm_fp8_m128n128_sm90(                    \
      const __grid_constant__ tdm_gemm_fp8_params p, const __grid_constant__ tdm_step_sync sync) {                     \
    plain_run<stages>(p, sync);                                                                                        \
  }
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
