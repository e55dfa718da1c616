/* Paged MLA attention over the latent cache, absorbed form, for sm_90a.
 *
 * 1. A unit is a token and a tile of 64 heads; persistent CTAs walk the units. A token attends to the tokens of its
 * sequence up to its own, a page of 64 at a time.
 * 2. Producer: one lane brings q of the unit and then page after page, each as 9 swizzled boxes of 64 rows x 64 values.
 * 3. Consumers: both warpgroups have all 64 heads x 64 keys of scores (q k^T, 576 deep), so nothing is exchanged;
 * softmax runs online in f32; probabilities, rounded to bf16, go from registers into p v, where each warpgroup has 256
 * of the 512 value columns. The page serves as k and, transposed by the tensor cores, as v.
 * 4. Slots past the last key may hold NaN: their rows are zeroed in shared memory before use, their scores are minus
 * infinity.
 * 5. Division by the sum of the unrounded probabilities, one rounding, store. Tokens of sequences of another kind get
 * zeros.
 *
 *   warpgroup 0 (producer)   warp 0, one lane: TMA      q     9 x [64 heads][64] bf16, swizzled
 *   warpgroup 1              value columns   0 .. 255   page  2 stages of 9 x [64 tokens][64] bf16, swizzled
 *   warpgroup 2              value columns 256 .. 511
 *
 * Grid: up to one CTA an SM; block: 384 threads. Limit: with few tokens, the latency of one CTA walking a whole
 * context, since the keys of a token are not split over CTAs; with many, tensor cores (scores are computed twice) and
 * device bandwidth. */

#include "kernels/device/elements.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/softmax.cuh"
#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/mla_decode/mla_decode_params.h"

namespace {

constexpr int kStages = TDM_MLA_DECODE_STAGES, kChunks = 9, kChunkBytes = 64 * 128;
constexpr int32_t kAbsorbed = 1; /* TDM_SEQ_ABSORBED */

struct Shared {
  alignas(1024) uint8_t q[kChunks * kChunkBytes];
  alignas(1024) uint8_t page[kStages][kChunks * kChunkBytes];
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
static_assert(sizeof(Shared) == TDM_MLA_DECODE_SHARED, "launch size");

/* What a unit is about. keys 0: a row that gets zeros. */
struct Work {
  int32_t row;
  int32_t head0;
  int32_t sequence;
  int32_t keys;
};

struct Walk {
  int32_t seqs, first_row, head_tiles, units;

  __device__ explicit Walk(const tdm_mla_decode_params& p) {
    seqs = min(max(*p.n_seqs, 0), p.max_seqs);
    first_row = p.seq_start[0];
    head_tiles = (p.heads + TDM_MLA_DECODE_HEADS - 1) / TDM_MLA_DECODE_HEADS;
    units = seqs > 0 ? (p.seq_start[seqs] - first_row) * head_tiles : 0;
  }

  __device__ Work at(const tdm_mla_decode_params& p, int32_t unit) const {
    Work work;
    work.row = first_row + unit / head_tiles;
    work.head0 = unit % head_tiles * TDM_MLA_DECODE_HEADS;
    int32_t low = 0, high = seqs; /* seq_start[low] <= row < seq_start[high] */
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      if (p.seq_start[middle] <= work.row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    work.sequence = low;
    work.keys = 0;
    if (p.seq_kind[low] == kAbsorbed)
      work.keys = min(p.kv_len[low] - (p.seq_start[low + 1] - work.row) + 1, p.max_keys);
    return work;
  }
};

struct Stage {
  uint32_t slot = 0, parity = 0;
  __device__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ void load(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
  const Walk walk(p);
  Stage stage;
  uint32_t q_parity = 1;
  for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
    const Work work = walk.at(p, u);
    if (work.keys <= 0) continue;
    tdm::mbarrier_wait(&shared.q_empty, q_parity);
    q_parity ^= 1;
    tdm::mbarrier_arrive_expect(&shared.q_full, kChunks * kChunkBytes);
    for (int chunk = 0; chunk < kChunks; ++chunk)
      tdm::tma_load_3d(shared.q + chunk * kChunkBytes, &p.q, &shared.q_full, once, chunk * 64, work.head0, work.row);
    const int32_t* pages = p.block_table + work.sequence * p.block_table_stride;
    for (int32_t key = 0; key < work.keys; key += 64) {
      const int32_t page = pages[key / 64];
      tdm::mbarrier_wait(&shared.empty[stage.slot], stage.parity ^ 1);
      uint64_t* full = &shared.full[stage.slot];
      tdm::mbarrier_arrive_expect(full, kChunks * kChunkBytes);
      for (int chunk = 0; chunk < kChunks; ++chunk)
        tdm::tma_load_3d(shared.page[stage.slot] + chunk * kChunkBytes, &p.cache, full, often, chunk * 64, 0, page);
      stage.advance();
    }
  }
}

/* Zeroes the page's rows from `valid` on. A row of 128 bytes stays one under the swizzle. */
__device__ void clear_rows(uint8_t* page, int32_t valid) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x) - 128, rows = 64 - valid;
  for (int32_t i = thread; i < kChunks * rows * 8; i += 256) {
    const int32_t chunk = i / (rows * 8), row = valid + i / 8 % rows;
    *reinterpret_cast<uint4*>(page + chunk * kChunkBytes + row * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
  }
  tdm::fence_async_shared();
  tdm::named_barrier_sync(1, 256);
}

__device__ void store(const tdm_mla_decode_params& p, const Work& work, const float (&o)[128], const float (&factor)[2],
                      uint32_t consumer) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t head = work.head0 + 16 * warp + lane / 4 + 8 * half;
    if (head >= p.heads) continue;
    const int64_t start = work.row * p.out_stride + head * p.out_head_stride + 256 * consumer + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float first = __fdiv_rn(o[4 * i + 2 * half], factor[half]),
                  second = __fdiv_rn(o[4 * i + 2 * half + 1], factor[half]);
      if (p.out_dtype == TDM_KERNEL_BF16 && start % 2 == 0) {
        *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + start + 8 * i) = tdm::bf16x2(first, second);
      } else {
        tdm::store_element(p.out, p.out_dtype, start + 8 * i, first);
        tdm::store_element(p.out, p.out_dtype, start + 8 * i + 1, second);
      }
    }
  }
}

__device__ void attend(const tdm_mla_decode_params& p, Shared& shared, uint32_t consumer) {
  const Walk walk(p);
  const uint32_t lane = threadIdx.x % 32;
  Stage stage;
  uint32_t q_parity = 0;
  for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
    const Work work = walk.at(p, u);
    float o[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.0f;
    tdm::Softmax softmax;
    if (work.keys <= 0) {
      store(p, work, o, {1.0f, 1.0f}, consumer);
      continue;
    }
    tdm::mbarrier_wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    for (int32_t key = 0; key < work.keys; key += 64) {
      tdm::mbarrier_wait(&shared.full[stage.slot], stage.parity);
      uint8_t* page = shared.page[stage.slot];
      const int32_t valid = min(work.keys - key, 64);
      if (valid < 64) clear_rows(page, valid);

      float s[32];
      tdm::wgmma_fence();
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const uint64_t a = tdm::wgmma_descriptor(shared.q + chunk * kChunkBytes);
        const uint64_t b = tdm::wgmma_descriptor(page + chunk * kChunkBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) tdm::wgmma_bf16<64>::issue<0>(s, a + 2 * k, b + 2 * k, chunk + k != 0);
      }
      tdm::wgmma_commit();
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(s);

      float factor[2];
      softmax.add(s, factor, p.scale, {valid, valid});
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i] *= factor[i / 2 % 2];

      uint32_t probabilities[4][4];
      tdm::pack_probabilities(probabilities, s);
      const uint64_t values = tdm::wgmma_descriptor(page + consumer * 4 * kChunkBytes, kChunkBytes);
      tdm::wgmma_settle(o);
      tdm::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) tdm::wgmma_bf16_registers_n256(o, probabilities[k], values + 128 * k, 1);
      tdm::wgmma_commit();
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(o);
      if (lane == 0) tdm::mbarrier_arrive(&shared.empty[stage.slot]);
      stage.advance();
    }
    if (lane == 0) tdm::mbarrier_arrive(&shared.q_empty);
    softmax.finish();
    store(p, work, o, softmax.sum, consumer);
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_THREADS, 1)
    tdm_mla_decode_sm90(const __grid_constant__ tdm_mla_decode_params p) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    tdm::mbarrier_init(&shared.q_full, 1);
    tdm::mbarrier_init(&shared.q_empty, 8);
    for (int i = 0; i < kStages; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 8);
    }
    tdm::fence_barrier_init();
    tdm::tma_prefetch_map(&p.q);
    tdm::tma_prefetch_map(&p.cache);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    tdm::registers_lower<40>();
    if (threadIdx.x == 0) load(p, shared);
  } else {
    tdm::registers_raise<232>();
    attend(p, shared, threadIdx.x / 128 - 1);
  }
}
