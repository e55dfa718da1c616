#ifndef KERNELS_GEMM_BF16_GEMM_BF16_SHORT_CUH
#define KERNELS_GEMM_BF16_GEMM_BF16_SHORT_CUH

/* The BF16 GEMM for a short K and few tokens, MN-major weights and bf16 out: the absorption of k_b. For gemm_bf16 and
 * mla_absorb; products and their order are those of gemm_bf16.cuh.
 *
 * A unit is kRows weight rows and all of K: a CTA has all its weights in shared memory at once, and no ring. A slab is
 * 64 of the rows; where its weights lay, its results go.
 *
 *   slab     w    [128 of K][64 of N] bf16, swizzled     full_w ─ products ┐
 *            out  [kTokens][64 of N]  bf16, swizzled                       └ stmatrix ─ store ─ empty_w
 *   x        2 x [kTokens][64 of K]   bf16, swizzled     full_x ─ products of all slabs ─────── empty_x
 *
 * docs/kernels/gemm_bf16.md has figures and what was tried. */

#include "kernels/device/elements.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/step.cuh"
#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/gemm_bf16/gemm_bf16_short_params.h"

namespace tdm {

template <int kRows, int kTokens> struct GemmBf16ShortShared {
  alignas(1024) uint8_t slab[kRows / 64][TDM_GEMM_BF16_SHORT_K * 128];
  alignas(1024) uint8_t x[2][kTokens * 128];
  uint64_t full_w[kRows / 64];
  uint64_t empty_w[kRows / 64];
  uint64_t full_x;
  uint64_t empty_x;
  uint64_t order[2]; /* as in gemm_bf16.cuh */
  uint32_t spare;    /* for who has this kernel do more */
};

template <int kRows, int kTokens> struct GemmBf16Short {
  using Params = tdm_gemm_bf16_short_params;
  using Shared = GemmBf16ShortShared<kRows, kTokens>;
  static constexpr int kSlabs = kRows / 64, kBox = TDM_GEMM_BF16_SHORT_BOX(kTokens);

  /* From 64 tokens on the warpgroups multiply in turns, a slab at a time, so that one's stores lie under the other's
   * products (M = 64, 128: 7.1 to 6.9 and 10.2 to 9.6 us). With fewer the turns cost more than they give, and a
   * warpgroup multiplies both of its slabs at once. H200, 2026-11-22. */
  static constexpr bool kTurns = kTokens >= 64;
  static constexpr int kTogether = kTurns ? 1 : kSlabs / 2;

  /* Slabs of a CTA that are on their way at once. What all CTAs ask for beyond the memory's latency times its bandwidth
   * makes no copy faster, and the end of the step before and the tokens queue behind it: k_b of 128 heads with all four
   * at once took 5.1, 5.7, 6.9 and 9.6 us at M = 1, 16, 64, 128, with two 4.4, 5.0, 6.2 and 9.0, with one 4.6, 4.8, 6.1
   * and 8.4 (H200, 2026-11-22). */
  static constexpr int kAhead = kRows == 128 || kTokens == 8 ? 2 : 1;
  static constexpr uint32_t kProducer = 256; /* its first thread */
  static_assert(sizeof(Shared) == TDM_GEMM_BF16_SHORT_SHARED(kRows, kTokens), "launch size");
  static_assert(kTokens * 128 <= sizeof(Shared::slab[0]), "results lie where weights lay");

  struct Tile {
    int32_t batch, n0;

    __device__ Tile(const Params& p, int32_t unit) : batch(unit / p.n_tiles), n0(unit % p.n_tiles * kRows) {
    }
  };

  __device__ static __forceinline__ void copy_weights(const Params& p, Shared& shared, const Tile& tile, int slab) {
    mbarrier_arrive_expect(&shared.full_w[slab], sizeof shared.slab[slab]);
    tma_load_3d(shared.slab[slab], &p.w, &shared.full_w[slab], l2_evict_first(), tile.n0 + 64 * slab, 0, tile.batch);
  }

  __device__ static __forceinline__ void copy_tokens(const Params& p, Shared& shared, const Tile& tile) {
    mbarrier_arrive_expect(&shared.full_x, sizeof shared.x);
#pragma unroll
    for (int block = 0; block < 2; ++block)
      tma_load_3d(shared.x[block], &p.x, &shared.full_x, l2_evict_last(), 64 * block, 0, tile.batch);
  }

  /* All threads, first of all: weights of the first unit are asked for, unless a step writes them. */
  __device__ static void prepare(const Params& p, Shared& shared, const tdm_step_sync& sync) {
    step_enter(sync);
    if (threadIdx.x == kProducer) {
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        mbarrier_init(&shared.full_w[i], 1);
        mbarrier_init(&shared.empty_w[i], 1);
      }
      mbarrier_init(&shared.full_x, 1);
      mbarrier_init(&shared.empty_x, 2);
      mbarrier_init(&shared.order[0], 4);
      mbarrier_init(&shared.order[1], 4);
      shared.spare = 0;
      fence_barrier_init();
      if (sync.fetches_ahead != 0) first_weights(p, shared, 0, kAhead);
    }
    if (threadIdx.x == 0) {
      tma_prefetch_map(&p.x);
      tma_prefetch_map(&p.out);
    }
    __syncthreads();
  }

  /* Slabs of the CTA's first unit, of which kAhead are asked for at once. */
  __device__ static __forceinline__ void first_weights(const Params& p, Shared& shared, int begin, int end) {
    const Tile tile(p, static_cast<int32_t>(blockIdx.x));
#pragma unroll
    for (int slab = begin; slab < end; ++slab) {
      if (slab >= kAhead) mbarrier_wait(&shared.full_w[slab - kAhead], 0);
      copy_weights(p, shared, tile, slab);
    }
  }

  /* All threads, before they wait: the other weights of the first unit. */
  __device__ static __forceinline__ void fetch(const Params& p, Shared& shared, const tdm_step_sync& sync) {
    if (threadIdx.x == kProducer && sync.fetches_ahead != 0) first_weights(p, shared, kAhead, kSlabs);
    __syncwarp(); /* lest the other lanes' wait keep this one from its copies */
  }

  /* One thread, which has waited: the weights that are left to ask for. */
  __device__ static void load(const Params& p, Shared& shared, const tdm_step_sync& sync) {
    if (sync.fetches_ahead == 0) first_weights(p, shared, 0, kSlabs);
    uint32_t parity = 0;
    for (int32_t u = static_cast<int32_t>(blockIdx.x + gridDim.x); u < p.units; u += static_cast<int32_t>(gridDim.x)) {
      for (int slab = 0; slab < kSlabs; ++slab) {
        mbarrier_wait(&shared.empty_w[slab], parity);
        copy_weights(p, shared, Tile(p, u), slab);
      }
      parity ^= 1;
    }
  }

  __device__ static __forceinline__ void multiply_slab(Shared& shared, float (&c)[kTokens / 2], int32_t slab) {
    const uint64_t w = wgmma_descriptor(shared.slab[slab]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k)
      wgmma_bf16<kTokens>::template issue<1>(c, w + 128 * k, wgmma_descriptor(shared.x[k / 4]) + 2 * (k % 4), k != 0);
    wgmma_commit();
  }

  /* bf16, a row of 128 bytes a token. */
  __device__ static __forceinline__ void stage(const float (&c)[kTokens / 2], uint8_t* rows) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    uint8_t* const row = rows + lane % 8 * 128 + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
#pragma unroll
    for (int group = 0; group + 1 < kTokens / 8; group += 2) {
      const float* v = &c[4 * group];
      stmatrix_x4_transposed(row + (group + lane / 16) * 1024, bf16x2(v[0], v[1]), bf16x2(v[2], v[3]),
                             bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
    }
    if constexpr (kTokens / 8 % 2 != 0) {
      const float* v = &c[kTokens / 2 - 4];
      stmatrix_x2_transposed(row + (kTokens / 8 - 1) * 1024, bf16x2(v[0], v[1]), bf16x2(v[2], v[3]));
    }
  }

  /* A slab's results. Boxes of live tokens go by the copy engine, one thread asks; the rest by all. */
  __device__ static __forceinline__ void store(const Params& p, const uint8_t* rows, const Tile& tile, int32_t slab,
                                               int32_t live) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x % 128), n0 = tile.n0 + 64 * slab;
    const int32_t boxes = live == p.m ? (live + kBox - 1) / kBox : live / kBox;
    if (thread == 0) {
      for (int32_t box = 0; box < boxes; ++box)
        tma_store_3d(&p.out, rows + box * kBox * 128, n0, box * kBox, tile.batch);
      tma_store_commit();
    }
    for (int32_t chunk = boxes * kBox * 8 + thread; chunk < live * 8; chunk += 128) {
      const int32_t row = chunk / 8, column = chunk % 8;
      __nv_bfloat16* target = static_cast<__nv_bfloat16*>(p.out_data) + tile.batch * p.out_batch_stride +
                              row * p.out_stride + n0 + 8 * column;
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(rows + row * 128 + (column ^ row % 8) * 16);
    }
  }

  /* A warpgroup: multiplies and stores every other slab of its units. The first thread of the first also asks for the
   * tokens. */
  __device__ static void multiply(const Params& p, Shared& shared, uint32_t consumer) {
    const int32_t live = live_rows(p.n_tokens, p.m), stride = static_cast<int32_t>(gridDim.x);
    const uint32_t barrier = 1 + consumer;
    const bool leads = threadIdx.x % 128 == 0;
    uint32_t parity = 0, order_parity = consumer ^ 1;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < p.units; u += stride, parity ^= 1) {
      const Tile tile(p, u);
      if (threadIdx.x == 0) {
        if (u >= stride) mbarrier_wait(&shared.empty_x, parity ^ 1);
        copy_tokens(p, shared, tile);
      }
      for (int32_t first = static_cast<int32_t>(consumer); first < kSlabs; first += 2 * kTogether) {
        float c[kTogether][kTokens / 2];
        if (kTurns) {
          mbarrier_wait(&shared.order[consumer], order_parity);
          order_parity ^= 1;
        }
        mbarrier_wait(&shared.full_x, parity);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          mbarrier_wait(&shared.full_w[first + 2 * i], parity);
          multiply_slab(shared, c[i], first + 2 * i);
        }
        wgmma_wait<0>();
        if (kTurns && threadIdx.x % 32 == 0) mbarrier_arrive(&shared.order[consumer ^ 1]);
        named_barrier_sync(barrier, 128); /* the products of all warps are done: weights and tokens make room */
        if (leads && first + 2 * kTogether >= kSlabs) mbarrier_arrive(&shared.empty_x);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          wgmma_settle(c[i]);
          stage(c[i], shared.slab[first + 2 * i]);
        }
        fence_async_shared();
        named_barrier_sync(barrier, 128);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) store(p, shared.slab[first + 2 * i], tile, first + 2 * i, live);
        if (u + stride >= p.units) continue;
        if (leads) tma_store_wait_read();
        named_barrier_sync(barrier, 128);
        for (int i = 0; leads && i < kTogether; ++i) mbarrier_arrive(&shared.empty_w[first + 2 * i]);
      }
    }
  }

  /* A consumer, last of all. */
  __device__ static void finish() {
    if (threadIdx.x % 128 == 0) tma_store_wait();
  }

  __device__ static void run(const Params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    prepare(p, shared, sync);
    fetch(p, shared, sync);
    step_wait(sync);
    if (threadIdx.x < kProducer) {
      multiply(p, shared, threadIdx.x / 128);
      finish();
    } else if (threadIdx.x == kProducer) {
      load(p, shared, sync);
    }
    step_end(sync);
  }
};

} // namespace tdm

#endif
