#ifndef KERNELS_GEMM_FP8_GEMM_FP8_PLAIN_CUH
#define KERNELS_GEMM_FP8_GEMM_FP8_PLAIN_CUH

/* The plain form of the block-scaled FP8 GEMM: d[m, n] = x[m, :] w[n, :], tokens on the 64-row side of wgmma.
 *
 *   warpgroup 0 (producer)      warp 0, one lane: TMA       stage:  x       [kTokens][128] e4m3, swizzled
 *   warpgroups 1 .. kGroups     wgmma, promotion,                   w       [128][128] e4m3, swizzled
 *                               epilogue                            scale   [kTokens] f32
 *   warpgroup g                 tokens (g - 1) * 64 * kPieces and on, in kPieces fragments of 64 x 128
 *
 *   tensor cores   | g1 p0 | g2 p0 | g1 p1 | g2 p1 | g1 p0 ...       a fragment of a block is 4 wgmma, 256 clocks
 *   g1                     |promote|       |promote|                 64 FFMA a thread, beside the others' wgmma
 *   g2                             |promote|       |promote|
 *
 * With two pieces the warpgroups take turns by named barriers; without, their order comes out by itself.
 * kCluster = 2: two CTAs with neighbouring weight tiles each fetch half of the tokens for both.
 * kSegments: for weights whose sum over K is cut. Either a tile's segments are added up in registers, or (p.split: few
 * tiles) each is a unit of its own and they meet in the workspace.
 * kGrouped: for grouped_gemm_fp8; a tile belongs to one group of rows, which has weights of its own.
 * docs/kernels/gemm_fp8_plain.md has the arithmetic and what was tried. */

#include <type_traits>

#include "kernels/device/cluster.cuh"
#include "kernels/device/gemm.cuh"
#include "kernels/gemm_fp8/gemm_fp8_params.h"

namespace tdm {

template <int kGroups, int kPieces, int kStages, int kSpare = 0> struct GemmFp8PlainShared {
  static constexpr int kTokens = 64 * kGroups * kPieces;
  alignas(1024) uint8_t x[kStages][kTokens * 128];
  alignas(1024) uint8_t w[kStages][128 * 128];
  alignas(1024) uint8_t staged[4 * kGroups][kPieces][2][16 * 128]; /* by warp: 16 tokens x 64 bf16, swizzled */
  alignas(128) float scale[2][kStages][kTokens + kSpare];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t flag[4];
};

/* Groups of rows of a grouped GEMM, checked against the operands. */
struct GemmFp8PlainTable {
  int32_t first_unit[TDM_GEMM_FP8_MAX_GROUPS + 1];
  int32_t row[TDM_GEMM_FP8_MAX_GROUPS];
  int32_t end[TDM_GEMM_FP8_MAX_GROUPS];
};

template <int kGroups, int kPieces, int kStages>
struct GemmFp8GroupedShared : GemmFp8PlainShared<kGroups, kPieces, kStages, 32> {
  alignas(1024) GemmFp8PlainTable table;
};

template <int kGroups, int kPieces, int kCluster, int kStages, bool kSegments, bool kGrouped = false>
struct GemmFp8Plain {
  using Shared = std::conditional_t<kGrouped, GemmFp8GroupedShared<kGroups, kPieces, kStages>,
                                    GemmFp8PlainShared<kGroups, kPieces, kStages>>;
  using Staged = uint8_t[2][16 * 128];
  static_assert(sizeof(Shared) == (kGrouped ? TDM_GEMM_FP8_GROUPED_SHARED(kGroups, kPieces, kStages)
                                            : TDM_GEMM_FP8_PLAIN_SHARED(kGroups, kPieces, kStages)),
                "launch size");
  static_assert(sizeof(Shared) <= 232448, "shared memory of a Hopper CTA");
  static_assert(!kSegments || (kPieces == 1 && kCluster == 1), "registers for a second sum; units of single CTAs");
  static constexpr int32_t kTokens = 64 * kGroups * kPieces;
  static constexpr bool kTurns = kPieces > 1, kRaises = kGroups > 1;
  static constexpr uint32_t kThreads = 128 * (kGroups + 1);

  struct Work {
    int32_t m0, n0, rows; /* first token, first column of out, live rows */
    int32_t w0;           /* first weight row; n0, but in a grouped GEMM */
    int32_t tile, segment;
    int32_t begin, end; /* blocks along K */
  };

  /* Tiles in bands of 8 weight tiles, tokens slowest inside, so that what runs at a time shares both operands in L2;
   * segments of a tile follow each other. Grouped: group by group, tokens fastest. CTAs of a cluster walk alike. */
  struct Walk {
    const tdm_gemm_fp8_params& p;
    const Shared& shared;
    int32_t live, m_tiles, n_tiles, segments, units, first, step;

    __device__ Walk(const tdm_gemm_fp8_params& params, const tdm_gemm_fp8_groups& groups, const Shared& shared_memory)
        : p(params), shared(shared_memory), live(live_rows(p.n_tokens, p.m)), m_tiles((live + kTokens - 1) / kTokens),
          n_tiles((p.n + 128 * kCluster - 1) / (128 * kCluster)), segments(kSegments && p.split != 0 ? p.segments : 1),
          units(m_tiles * n_tiles * segments), first(static_cast<int32_t>(blockIdx.x) / kCluster),
          step(static_cast<int32_t>(gridDim.x) / kCluster) {
      if constexpr (kGrouped) {
        m_tiles = groups.n_groups;
        units = shared.table.first_unit[m_tiles];
      }
    }
    __device__ Work at(int32_t index) const {
      const int32_t rank = kCluster > 1 ? static_cast<int32_t>(blockIdx.x) % kCluster : 0;
      if constexpr (kGrouped) {
        const GemmFp8PlainTable& table = shared.table;
        int32_t group = 0; /* the last whose first unit is not past index */
        for (int32_t width = m_tiles; width > 1;) {
          const int32_t half = width / 2;
          if (table.first_unit[group + half] <= index) {
            group += half;
            width -= half;
          } else {
            width = half;
          }
        }
        const int32_t inside = index - table.first_unit[group], row = table.row[group], rows = table.end[group];
        const int32_t tiles = (rows - row + kTokens - 1) / kTokens, n_tile = inside / tiles;
        const int32_t n0 = (n_tile * kCluster + rank) * 128;
        return {row + (inside - n_tile * tiles) * kTokens, n0, rows, group * p.n + n0, 0, group, 0, p.k_blocks};
      } else {
        constexpr int32_t kBand = 8 / kCluster;
        const int32_t tile = kSegments ? index / segments : index;
        const int32_t band = tile / (kBand * m_tiles), from = band * kBand, width = min(kBand, n_tiles - from);
        const int32_t inside = tile - from * m_tiles, row = inside / width;
        const int32_t n0 = ((from + inside - row * width) * kCluster + rank) * 128;
        Work work{row * kTokens, n0, live, n0, tile, 0, 0, p.k_blocks};
        if (kSegments && segments > 1) {
          work.segment = index - tile * segments;
          work.begin = segment_begin(work.segment, segments, p.k_blocks, p.granule);
          work.end = end(work.segment);
        }
        return work;
      }
    }
    /* Last block of a segment and one. */
    __device__ int32_t end(int32_t segment) const {
      return segment_begin(segment + 1, p.segments, p.k_blocks, p.granule);
    }
    __device__ const float* scales(const Work& work) const {
      const int32_t row = min(work.n0, p.n - 1) / 128 + (kGrouped ? work.segment * ((p.n + 127) / 128) : 0);
      return p.w_scale + row * p.w_scale_stride;
    }
  };

  /* One warp: bounds of the groups and their first units. */
  __device__ static void find_groups(const tdm_gemm_fp8_params& p, const tdm_gemm_fp8_groups& groups,
                                     GemmFp8PlainTable& table) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t n_tiles = (p.n + 128 * kCluster - 1) / (128 * kCluster);
    int32_t before = 0;
    if (lane == 0) table.first_unit[0] = 0;
    for (int32_t base = 0; base < groups.n_groups; base += 32) {
      const int32_t group = base + lane;
      int32_t units = 0;
      if (group < groups.n_groups) {
        const int32_t row = min(max(groups.row_start[group], 0), p.m);
        const int32_t count = min(max(groups.row_count[group], 0), min(groups.max_rows, p.m - row));
        table.row[group] = row;
        table.end[group] = row + count;
        units = (count + kTokens - 1) / kTokens * n_tiles;
      }
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int32_t other = __shfl_up_sync(~0u, units, offset);
        if (lane >= offset) units += other;
      }
      if (group < groups.n_groups) table.first_unit[group + 1] = before + units;
      before += __shfl_sync(~0u, units, 31);
    }
  }

  __device__ static void load(const tdm_gemm_fp8_params& p, const tdm_gemm_fp8_groups& groups, Shared& shared) {
    constexpr int32_t kPart = kTokens / kCluster;
    const int32_t x_rows = kGrouped ? groups.x_rows : kTokens;
    /* A copy begins at a multiple of 16 bytes and a group at any token: up to 3 scales come before the first. */
    const uint32_t bytes = static_cast<uint32_t>(128 * 128 + 132 * x_rows + (kGrouped ? 16 : 0));
    const uint64_t often = l2_evict_last();
    const Walk walk(p, groups, shared);
    const int32_t rank = kCluster > 1 ? static_cast<int32_t>(cluster_rank()) : 0;
    Ring<kStages> ring;
    for (int32_t u = walk.first; u < walk.units; u += walk.step) {
      const Work work = walk.at(u);
      for (int32_t kb = work.begin; kb < work.end; ++kb) {
        mbarrier_wait(&shared.empty[ring.slot], ring.parity ^ 1);
        uint64_t* full = &shared.full[ring.slot];
        mbarrier_arrive_expect(full, bytes);
        if constexpr (kCluster > 1) {
          tma_load_3d_multicast(shared.x[ring.slot] + rank * kPart * 128, &p.x, full, often, (1 << kCluster) - 1, 0,
                                work.m0 + rank * kPart, kb);
        } else {
          tma_load_3d(shared.x[ring.slot], &p.x, full, often, 0, work.m0, kb);
        }
        tma_load_3d(shared.w[ring.slot], &p.w, full, often, 0, work.w0, kb);
        tma_load_2d(shared.scale[ring.parity][ring.slot], &p.x_scale, full, often, kGrouped ? work.m0 & ~3 : work.m0,
                    kb);
        ring.advance();
      }
    }
  }

  /* c += (activation scale * weight scale) * acc, the order of the reference. */
  __device__ static __forceinline__ void promote(float (&c)[64], const float (&acc)[64], float upper, float lower) {
#pragma unroll
    for (int i = 0; i < 64; ++i) c[i] = fmaf(i / 2 % 2 == 0 ? upper : lower, acc[i], c[i]);
  }

  /* A warp's kPieces times 16 tokens, the pieces 64 apart. bf16 goes through shared memory: swizzled, and copied by the
   * copy engine beside the next tile; or by the threads, where a row is not live or out has strides that the engine
   * cannot take. */
  __device__ static __forceinline__ void store(const tdm_gemm_fp8_params& p, const float (&c)[kPieces][64],
                                               const Output& out, int32_t m0, int32_t n0, Staged (&staged)[kPieces]) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    if (out.dtype == TDM_KERNEL_F32) {
#pragma unroll
      for (int i = 0; i < 64 * kPieces; ++i) {
        const int32_t m = m0 + i / 64 * 64 + lane / 4 + 8 * (i / 2 % 2),
                      n = n0 + 8 * (i % 64 / 4) + 2 * (lane % 4) + i % 2;
        if (m < out.rows && n < out.cols) static_cast<float*>(out.data)[m * out.stride + n] = c[i / 64][i % 64];
      }
      return;
    }
    if (lane == 0) tma_store_wait_read();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 64 * kPieces; i += 8) {
      const float* v = &c[i / 64][i % 64];
      const int chunk = i / 4 % 8 + lane / 16;
      uint8_t* row = staged[i / 64][i / 32 % 2] + lane % 16 * 128 + (chunk ^ lane % 8) * 16;
      stmatrix_x4(row, bf16x2(v[0], v[1]), bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
    }
    fence_async_shared();
    __syncwarp();
    for (int piece = 0; piece < kPieces; ++piece) {
      const int32_t m = m0 + 64 * piece;
      if (p.store_boxes != 0 && m + 16 <= out.rows) {
        if (lane == 0 && n0 < out.cols) tma_store_2d(&p.out_map, staged[piece][0], n0, m);
        if (lane == 0 && n0 + 64 < out.cols) tma_store_2d(&p.out_map, staged[piece][1], n0 + 64, m);
        continue;
      }
      for (int i = 0; i < 8; ++i) {
        const int32_t row = 4 * (i % 4) + lane / 8, n = n0 + 64 * (i / 4) + lane % 8 * 8;
        if (m + row < out.rows && n < out.cols)
          store_bf16_8(out, m + row, n,
                       *reinterpret_cast<const uint4*>(staged[piece][i / 4] + row * 128 + (lane % 8 ^ row % 8) * 16));
      }
    }
    if (lane == 0) tma_store_commit();
  }

  __device__ static void multiply(const tdm_gemm_fp8_params& p, const tdm_gemm_fp8_groups& groups, Shared& shared,
                                  uint32_t consumer) {
    const Walk walk(p, groups, shared);
    if (walk.first >= walk.units) return;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const uint32_t row = 64 * kPieces * consumer + 16 * warp + lane / 4;
    /* A stage goes back to both producers of a pair. */
    const uint32_t others_empty =
        kCluster > 1 ? cluster_address(shared.empty, cluster_rank() ^ 1) : 0; /* a cluster has one CTA or two */
    const uint64_t x_first = wgmma_descriptor(shared.x[0] + consumer * (kPieces * 64 * 128)),
                   w_first = wgmma_descriptor(shared.w[0]);
    uint64_t x = x_first, w = w_first;
    Ring<kStages> ring;
    /* Lane l holds the weight scale of block `batch + l`: one load for 32 blocks, handed around by shuffles. */
    const auto fetch = [&](const Work& work, int32_t batch) {
      const int32_t block = batch + static_cast<int32_t>(lane);
      return block < work.end ? __ldg(walk.scales(work) + block) : 0.0f;
    };
    Work work = walk.at(walk.first), next = work;
    float scales = 0.0f, next_scales = fetch(work, work.begin);
    if (kTurns && consumer == kGroups - 1) named_barrier_arrive(1, 256);

    for (int32_t u = walk.first; u < walk.units; u += walk.step, work = next) {
      float c[kPieces][64], acc[64], total[1][kSegments ? 64 : 1];
#pragma unroll
      for (int i = 0; i < 64 * kPieces; ++i) c[i / 64][i % 64] = 0.0f;
#pragma unroll
      for (float& sum : total[0]) sum = 0.0f;
      int32_t segment = work.segment, segment_end = kSegments ? walk.end(segment) : 0;

      for (int32_t kb = work.begin; kb < work.end; ++kb) {
        const int32_t in_batch = (kb - work.begin) % 32;
        mbarrier_wait(&shared.full[ring.slot], ring.parity);
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          if (kTurns) named_barrier_sync(1 + consumer, 256);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma_e4m3<128>::issue(acc, x + piece * (64 * 128 / 16) + 2 * k, w + 2 * k, k != 0);
          wgmma_commit();
          if (kTurns) named_barrier_arrive(1 + (consumer + 1) % kGroups, 256);
          if (piece == 0 && in_batch == 0) {
            /* Beside the tensor cores: the next weight scales, and where the next tile lies. */
            scales = next_scales;
            if (kb + 32 < work.end) {
              next_scales = fetch(work, kb + 32);
            } else if (u + walk.step < walk.units) {
              next = walk.at(u + walk.step);
              next_scales = fetch(next, next.begin);
            }
          }
          const float w_scale = __shfl_sync(~0u, scales, in_batch);
          const float* x_scale = shared.scale[ring.parity][ring.slot] + row + 64 * piece + (kGrouped ? work.m0 & 3 : 0);
          const float upper = x_scale[0] * w_scale, lower = x_scale[8] * w_scale;
          wgmma_wait<0>();
          wgmma_settle(acc);
          if (piece + 1 == kPieces) {
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&shared.empty[ring.slot]);
            if (kCluster > 1 && lane == 1) mbarrier_arrive_at(others_empty + 8 * ring.slot);
          }
          promote(c[piece], acc, upper, lower);
        }
        ring.advance();
        x = ring.slot == 0 ? x_first : x + kTokens * 128 / 16;
        w = ring.slot == 0 ? w_first : w + 128 * 128 / 16;
        if constexpr (kSegments) {
          if (kb + 1 == segment_end) {
            segment_end = walk.end(++segment);
#pragma unroll
            for (int i = 0; i < 64; ++i) {
              total[0][i] += c[0][i];
              c[0][i] = 0.0f;
            }
          }
        }
      }
      const Output out{p.out, p.out_stride, p.out_dtype, work.rows, p.n};
      const int32_t m0 = work.m0 + static_cast<int32_t>(64 * kPieces * consumer + 16 * warp);
      if constexpr (kSegments) {
        if (walk.segments > 1 &&
            !add_segments(total[0], p.partials, p.counters, int64_t{work.tile} * kGroups + consumer, work.segment,
                          p.segments, false, &shared.flag[consumer], 8 + consumer))
          continue;
        store(p, total, out, m0, work.n0, shared.staged[4 * consumer + warp]);
      } else {
        store(p, c, out, m0, work.n0, shared.staged[4 * consumer + warp]);
      }
    }
    if (lane == 0) tma_store_wait();
  }

  __device__ static void run(const tdm_gemm_fp8_params& p, const tdm_gemm_fp8_groups& groups,
                             const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&shared.full[i], 1);
        mbarrier_init(&shared.empty[i], 4 * kGroups * kCluster);
      }
      fence_barrier_init();
      tma_prefetch_map(&p.w);
      tma_prefetch_map(&p.x);
      tma_prefetch_map(&p.x_scale);
    }
    if constexpr (kGrouped) {
      if (threadIdx.x < 32) {
        step_wait(sync);
        find_groups(p, groups, shared.table);
      }
    }
    __syncthreads();
    if constexpr (kCluster > 1) cluster_sync_relaxed();
    /* From lane 0, so that the compiler knows it to be the same for a warp. */
    const uint32_t group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 0) {
      if constexpr (kRaises) registers_lower<kGroups == 3 ? 32 : 24>();
      if (threadIdx.x == 0) {
        if constexpr (!kGrouped) step_wait(sync);
        load(p, groups, shared);
      }
    } else {
      if constexpr (kRaises) registers_raise<kGroups == 3 ? 160 : 240>();
      step_wait(sync);
      multiply(p, groups, shared, group - 1);
    }
    /* A CTA must not end while the other may still write to it. */
    if constexpr (kCluster > 1) cluster_sync_relaxed();
    step_end(sync);
  }
};

} // namespace tdm

#endif
