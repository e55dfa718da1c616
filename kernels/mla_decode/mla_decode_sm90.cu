/* Paged MLA attention over the latent cache, absorbed form, keys split over CTAs, for sm_90a.
 *
 * 1. A unit is a token, a tile of 64 heads and a split of the token's keys; persistent CTAs walk the units. Splits have
 *    the same fixed length for every token, so a row's bits do not depend on what else is computed.
 * 2. Producer: one lane brings q of the unit and then page after page, each as 9 swizzled boxes of 64 rows x 64 values.
 * 3. Consumers: both warpgroups have all 64 heads x 64 keys of scores (q k^T, 576 deep), so nothing is exchanged;
 *    softmax runs online in f32; probabilities, rounded to bf16, go from registers into p v, where each warpgroup has
 *    256 of the 512 value columns. The page serves as k and, transposed by the tensor cores, as v.
 * 4. Slots past the token's own position are later tokens, or NaN: zeroed in shared memory before use.
 * 5. A token whose keys are one split is divided by its sum and stored. Otherwise sums, maximum and denominator go to
 *    scratch, and the second kernel, a warp a head, merges them, splits ascending.
 * 6. Rows of sequences of another kind get zeros.
 *
 *   warpgroup 0 (producer)   warp 0, lane 0: TMA        q     9 x [64 heads][64] bf16, swizzled
 *   warpgroup 1              value columns   0 .. 255   page  2 stages of 9 x [64 tokens][64] bf16, swizzled
 *   warpgroup 2              value columns 256 .. 511
 *
 * Grid: up to one CTA an SM; block: 384 threads. Limit: a page takes an SM 2.8 us and a unit 2.5 more (H200,
 * 2026-11-22); tensor cores are busy for 1.8 of a page (scores are computed twice), its share of device bandwidth is
 * 2.2 when all SMs are at work. */

#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/mla_decode/mla_decode_units.cuh"

namespace {

constexpr int kStages = TDM_MLA_DECODE_STAGES, kChunks = 9, kChunkBytes = 64 * 128;
constexpr int32_t kHeads = TDM_MLA_DECODE_HEADS, kPage = tdm::kPage;

struct Shared {
  alignas(1024) uint8_t q[kChunks * kChunkBytes];
  alignas(1024) uint8_t page[kStages][kChunks * kChunkBytes];
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
static_assert(sizeof(Shared) == TDM_MLA_DECODE_SHARED, "launch size");

using Walk = tdm::Walk<kHeads>;

struct Stage {
  uint32_t slot = 0, parity = 0;
  __device__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/* By one warp; lane 0 copies. A page number outside of the cache arrives as zeros. */
__device__ void load(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
  Walk walk(p);
  Stage stage;
  uint32_t q_parity = 1;
  tdm::Unit unit;
  while (walk.next(p, unit)) {
    if (threadIdx.x == 0) {
      tdm::mbarrier_wait(&shared.q_empty, q_parity);
      tdm::mbarrier_arrive_expect(&shared.q_full, kChunks * kChunkBytes);
      for (int chunk = 0; chunk < kChunks; ++chunk)
        tdm::tma_load_3d(shared.q + chunk * kChunkBytes, &p.q, &shared.q_full, once, chunk * 64, unit.first_head,
                         unit.row);
      for (int32_t key = unit.begin; key < unit.end; key += kPage) {
        const int32_t page = unit.pages[key / kPage];
        tdm::mbarrier_wait(&shared.empty[stage.slot], stage.parity ^ 1);
        uint64_t* full = &shared.full[stage.slot];
        tdm::mbarrier_arrive_expect(full, kChunks * kChunkBytes);
        for (int chunk = 0; chunk < kChunks; ++chunk)
          tdm::tma_load_3d(shared.page[stage.slot] + chunk * kChunkBytes, &p.cache, full, often, chunk * 64, 0, page);
        stage.advance();
      }
    }
    q_parity ^= 1;
    __syncwarp();
  }
}

/* Zeroes the page's rows from `valid` on. A row of 128 bytes stays one under the swizzle. */
__device__ void clear_rows(uint8_t* page, int32_t valid) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x) - 128, rows = kPage - valid;
  for (int32_t i = thread; i < kChunks * rows * 8; i += 256) {
    const int32_t chunk = i / (rows * 8), row = valid + i / 8 % rows;
    *reinterpret_cast<uint4*>(page + chunk * kChunkBytes + row * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
  }
  tdm::fence_async_shared();
  tdm::named_barrier_sync(1, 256);
}

/* One of the two heads of a thread. */
template <int kHalf>
__device__ __forceinline__ void store(const tdm_mla_decode_params& p, const tdm::Unit& unit, const float (&o)[128],
                                      const tdm::Softmax& softmax, int32_t consumer) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
  const int32_t head = unit.first_head + 16 * warp + lane / 4 + 8 * kHalf, column = 256 * consumer + 2 * (lane % 4);
  if (head >= p.heads) return;
  if (unit.whole) {
    const int64_t offset = unit.row * p.out_stride + head * p.out_head_stride + column;
#pragma unroll
    for (int i = 0; i < 32; ++i)
      tdm::store_pair(p, offset + 8 * i, __fdiv_rn(o[4 * i + 2 * kHalf], softmax.sum[kHalf]),
                      __fdiv_rn(o[4 * i + 2 * kHalf + 1], softmax.sum[kHalf]));
  } else {
    const int64_t partial = (int64_t{unit.row} * p.heads + head) * p.max_splits + unit.split;
    float* target = p.values + partial * tdm::kLatent + column;
#pragma unroll
    for (int i = 0; i < 32; ++i)
      *reinterpret_cast<float2*>(target + 8 * i) = make_float2(o[4 * i + 2 * kHalf], o[4 * i + 2 * kHalf + 1]);
    if (column == 0)
      *reinterpret_cast<float2*>(p.stats + 2 * partial) = make_float2(softmax.base[kHalf], softmax.sum[kHalf]);
  }
}

__device__ __forceinline__ void attend(const tdm_mla_decode_params& p, Shared& shared, int32_t consumer) {
  const uint32_t lane = threadIdx.x % 32;
  Walk walk(p);
  Stage stage;
  uint32_t q_parity = 0;
  tdm::Unit unit;
  while (walk.next(p, unit)) {
    float o[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.0f;
    tdm::Softmax softmax;
    tdm::mbarrier_wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    for (int32_t key = unit.begin; key < unit.end; key += kPage) {
      tdm::mbarrier_wait(&shared.full[stage.slot], stage.parity);
      uint8_t* page = shared.page[stage.slot];
      const int32_t valid = min(unit.end - key, kPage);
      if (valid < kPage) clear_rows(page, valid);

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
      /* The next unit's q may come while this one is finished. */
      if (key + kPage >= unit.end && lane == 0) tdm::mbarrier_arrive(&shared.q_empty);

      float factor[2];
      if (softmax.add(s, factor, p.log2_scale, {valid, valid})) {
#pragma unroll
        for (int i = 0; i < 128; ++i) o[i] *= factor[i / 2 % 2];
      }
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
    softmax.finish();
    store<0>(p, unit, o, softmax, consumer);
    store<1>(p, unit, o, softmax, consumer);
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
    if (threadIdx.x < 32) load(p, shared);
  } else {
    tdm::registers_raise<232>();
    attend(p, shared, static_cast<int32_t>(threadIdx.x / 128) - 1);
    tdm::clear_others(p, static_cast<int32_t>(threadIdx.x / 32) - 4, 8);
  }
}
