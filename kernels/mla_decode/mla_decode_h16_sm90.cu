/* Paged MLA attention over the latent cache, absorbed form, for up to 16 heads (tensor-parallel ranks), for sm_90a.
 *
 * The tensor cores' side of 64 rows is given to the cache, not to the heads: scores are k q^T, 64 keys x 16 heads, and
 * sums are v^T p^T, 64 of the 512 value columns x 16 heads at a time. A page then costs what reading it twice from
 * shared memory costs, a third of its share of device bandwidth.
 *
 * 1. A unit is a token and a split of its keys; persistent CTAs walk the units. A split is a page, a branch of pages or
 * a group of branches: a page is summed up by itself, then folded into its branch, the branch into its group, and the
 * merge does from there on what is left, in the same order. So the host picks splits as the load wants them, and no bit
 * changes.
 * 2. Pages: a warp brings them, each as three thirds of 3 swizzled boxes of 64 rows x 64 values, through a ring of
 *    thirds; another brings the q of the next unit as soon as the scores no longer need this one's, and tells the
 *    warpgroup what the unit is, so that only the two of them look units up.
 * 3. The warpgroup multiplies, each third as it arrives; a maximum of 64 keys is over lanes by shuffles and over warps
 *    by shared memory; probabilities, rounded to bf16, go through shared memory into the second product. The page
 *    serves as k and, transposed by the tensor cores, as v, whose products of two chunks are folded, and thirds handed
 *    back, while those of the next two are under way.
 * 4. Slots past the token's own position are later tokens, or NaN: zeroed in shared memory before use.
 * 5. A token whose keys are one split is divided by its sum and stored. Otherwise sums, base and denominator go to
 *    scratch, and the second kernel merges them.
 * 6. Rows of sequences of another kind get zeros.
 *
 *   warps 0 .. 3   the warpgroup         q      9 x [16 heads][64] bf16, swizzled
 *   warp 4         pages                 p      [16 heads][64 keys] bf16, swizzled
 *   warp 5         q, units              ring   8 x third of a page: 3 x [64 tokens][64] bf16, swizzled
 *
 * Grid: up to one CTA an SM; block: 192 threads. Limit: device bandwidth. */

#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/mla_decode/mla_decode_units.cuh"

namespace {

constexpr int kSlots = TDM_MLA_DECODE_H16_SLOTS, kChunks = 9, kThirds = 3, kChunkBytes = 64 * 128;
constexpr int32_t kHeads = TDM_MLA_DECODE_H16_HEADS, kQChunkBytes = kHeads * 128;
constexpr int32_t kPage = tdm::kPage, kNoRow = -1;

struct Shared {
  alignas(1024) uint8_t q[kChunks * kQChunkBytes];
  alignas(1024) uint8_t probabilities[kHeads * 128];
  alignas(1024) uint8_t ring[kSlots][kChunks / kThirds * kChunkBytes];
  float largest[4][kHeads]; /* of a page, by warp */
  float sums[4][kHeads];    /* likewise */
  tdm::Unit units[2];       /* in turn: one, and what comes after it */
  uint64_t unit_full[2];
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t full[kSlots];
  uint64_t empty[kSlots];
};
static_assert(sizeof(Shared) <= TDM_MLA_DECODE_H16_SHARED, "launch size");

using Walk = tdm::Walk<kHeads>;

/* Thirds of pages one after the other. */
struct Slot {
  uint32_t number = 0;
  __device__ __forceinline__ uint32_t index(uint32_t ahead = 0) const {
    return (number + ahead) % kSlots;
  }
  __device__ __forceinline__ uint32_t parity(uint32_t ahead = 0) const {
    return (number + ahead) / kSlots % 2;
  }
};

/* By one warp; lane 0 copies. A page number outside of the cache arrives as zeros. */
__device__ void load_pages(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first();
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  Walk walk(p);
  Slot slot;
  tdm::Unit unit, following;
  int32_t numbers = 0, following_numbers = 0;
  bool more = walk.next(p, unit);
  if (more && lane < unit.pages()) numbers = unit.page_numbers[lane];
  while (more) {
    const int32_t count = unit.pages();
    for (int32_t i = 0; i < count; ++i) {
      if (i % 32 == 0 && i > 0 && i + lane < count) numbers = unit.page_numbers[i + lane];
      const int32_t page = __shfl_sync(~0u, numbers, i % 32);
#pragma unroll
      for (int third = 0; third < kThirds; ++third) {
        if (lane == 0) {
          tdm::mbarrier_wait(&shared.empty[slot.index()], slot.parity() ^ 1);
          uint64_t* full = &shared.full[slot.index()];
          uint8_t* target = shared.ring[slot.index()];
          tdm::mbarrier_arrive_expect(full, kChunks / kThirds * kChunkBytes);
#pragma unroll
          for (int c = 0; c < kChunks / kThirds; ++c)
            tdm::tma_load_3d(target + c * kChunkBytes, &p.cache, full, once, 64 * (3 * third + c), 0, page);
        }
        ++slot.number;
      }
      __syncwarp();
      if (i == 0) { /* what comes next is looked up while copies are under way */
        more = walk.next(p, following);
        if (more && lane < following.pages()) following_numbers = following.page_numbers[lane];
      }
    }
    unit = following;
    numbers = following_numbers;
  }
}

/* By one warp, which also tells the warpgroup what the units are: the next one while it brings this one's q. A unit's
 * place is free again when the scores of that unit, which are over before this one's q is brought, are done. */
__device__ void load_queries(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first();
  const bool leader = threadIdx.x % 32 == 0;
  Walk walk(p);
  tdm::Unit unit;
  for (uint32_t n = 0;; ++n) {
    const bool more = walk.next(p, unit);
    if (!more) unit.row = kNoRow;
    if (leader) {
      shared.units[n % 2] = unit;
      tdm::mbarrier_arrive(&shared.unit_full[n % 2]);
    }
    if (!more) return;
    if (leader) {
      tdm::mbarrier_wait(&shared.q_empty, n % 2 ^ 1);
      tdm::mbarrier_arrive_expect(&shared.q_full, kChunks * kQChunkBytes);
      for (int c = 0; c < kChunks; ++c)
        tdm::tma_load_3d(shared.q + c * kQChunkBytes, &p.q, &shared.q_full, once, 64 * c, 0, unit.row);
    }
    __syncwarp();
  }
}

/* What the warpgroup has to know of unit number `n`; no row: there is none. Lane 0 reads, since it hands places back.
 */
__device__ __forceinline__ tdm::Unit unit_at(Shared& shared, uint32_t n) {
  tdm::mbarrier_wait(&shared.unit_full[n % 2], n / 2 % 2);
  tdm::Unit unit = {};
  if (threadIdx.x % 32 == 0) unit = shared.units[n % 2];
  unit.row = __shfl_sync(~0u, unit.row, 0);
  unit.split = __shfl_sync(~0u, unit.split, 0);
  unit.splits = __shfl_sync(~0u, unit.splits, 0);
  unit.begin = __shfl_sync(~0u, unit.begin, 0);
  unit.end = __shfl_sync(~0u, unit.end, 0);
  return unit;
}

/* The thirds of a page. */
struct Page {
  uint8_t* third[kThirds];
  __device__ __forceinline__ uint8_t* chunk(int c) const {
    return third[c / 3] + c % 3 * kChunkBytes;
  }
};

/* Zeroes the values of the page at `slot` from row `valid` on, before a fence and a barrier. */
__device__ __forceinline__ void clear_values(Shared& shared, const Slot& slot, int32_t valid) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  tdm::clear_rows<3, 128>(shared.ring[slot.index(0)], valid, thread);
  tdm::clear_rows<3, 128>(shared.ring[slot.index(1)], valid, thread);
  tdm::clear_rows<2, 128>(shared.ring[slot.index(2)], valid, thread);
}

/* Sums of a thread: element i of o[c] is value column 64 * c + 16 * warp + lane / 4 + 8 * (i / 2 % 2) of head(i). Each
 * thread has four heads, head 2 * (i / 4) + i % 2 of them at i, whose base and sum it keeps. */
struct Sums {
  float base[4], sum[4];
  float o[8][8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      base[h] = -tdm::kInfinity;
      sum[h] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < 8; ++c)
#pragma unroll
      for (int i = 0; i < 8; ++i) o[c][i] = 0.0f;
  }
};

__device__ __forceinline__ constexpr int head_of(int i) {
  return 2 * (i / 4) + i % 2;
}

__device__ __forceinline__ int32_t head_number(int h) {
  return 8 * (h / 2) + 2 * static_cast<int32_t>(threadIdx.x % 4) + h % 2;
}

/* s: products of a page with the heads, keys from `valid` on to be left out. Leaves probabilities in shared memory, and
 * the heads' base and the thread's part of their sum. */
__device__ __forceinline__ void softmax(const tdm_mla_decode_params& p, Shared& shared, float (&s)[8], float (&base)[4],
                                        float (&sum)[4], int32_t valid) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  if (valid < kPage) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (16 * warp + lane / 4 + 8 * (i / 2 % 2) >= valid) s[i] = -tdm::kInfinity;
  }
  float top[4];
#pragma unroll
  for (int h = 0; h < 4; ++h) top[h] = fmaxf(s[4 * (h / 2) + h % 2], s[4 * (h / 2) + h % 2 + 2]);
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
    for (int h = 0; h < 4; ++h) top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], distance));
  if (lane < 4) {
    *reinterpret_cast<float2*>(&shared.largest[warp][2 * lane]) = make_float2(top[0], top[1]);
    *reinterpret_cast<float2*>(&shared.largest[warp][8 + 2 * lane]) = make_float2(top[2], top[3]);
  }
  tdm::named_barrier_sync(1, 128);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 low = *reinterpret_cast<const float2*>(&shared.largest[w][2 * (lane % 4)]);
    const float2 high = *reinterpret_cast<const float2*>(&shared.largest[w][8 + 2 * (lane % 4)]);
    top[0] = fmaxf(top[0], low.x), top[1] = fmaxf(top[1], low.y);
    top[2] = fmaxf(top[2], high.x), top[3] = fmaxf(top[3], high.y);
  }
  float subtract[4];
#pragma unroll
  for (int h = 0; h < 4; ++h) {
    base[h] = ceilf(top[h] * p.log2_scale);
    subtract[h] = tdm::finite_base(base[h]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) s[i] = tdm::exp2_approx(fmaf(s[i], p.log2_scale, -subtract[head_of(i)]));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t low = tdm::bf16x2(s[4 * half], s[4 * half + 1]);
    const uint32_t high = tdm::bf16x2(s[4 * half + 2], s[4 * half + 3]);
    sum[2 * half] = tdm::bf16_low(low) + tdm::bf16_low(high);
    sum[2 * half + 1] = tdm::bf16_high(low) + tdm::bf16_high(high);
    const int32_t head = 8 * half + lane % 8, byte = 32 * warp + 16 * (lane / 8 % 2);
    tdm::stmatrix_x2_transposed(shared.probabilities + head * 128 + (byte ^ lane % 8 * 16), low, high);
  }
  tdm::fence_async_shared();
  tdm::named_barrier_sync(2, 128);
}

/* The heads' sums over all threads. */
__device__ __forceinline__ void whole_sums(Shared& shared, float (&sum)[4]) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
    for (int h = 0; h < 4; ++h) sum[h] += __shfl_xor_sync(~0u, sum[h], distance);
  if (lane < 4) {
#pragma unroll
    for (int h = 0; h < 4; ++h) shared.sums[warp][head_number(h)] = sum[h];
  }
  tdm::named_barrier_sync(3, 128);
#pragma unroll
  for (int h = 0; h < 4; ++h) {
    const int32_t head = head_number(h);
    sum[h] = (shared.sums[0][head] + shared.sums[1][head]) + (shared.sums[2][head] + shared.sums[3][head]);
  }
}

/* A part joins the sums before it: base and denominator at once, then its columns. */
struct Join {
  float from[4], part[4];

  __device__ __forceinline__ Join(Sums& sums, const float (&base)[4], const float (&sum)[4]) {
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      const float to = fmaxf(sums.base[h], base[h]);
      from[h] = tdm::base_factor(sums.base[h], to);
      part[h] = tdm::base_factor(base[h], to);
      sums.base[h] = to;
      tdm::fold(sums.sum[h], from[h], sum[h], part[h]);
    }
  }
  __device__ __forceinline__ void columns(float (&sums)[8], const float (&o)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) tdm::fold(sums[i], from[head_of(i)], o[i], part[head_of(i)]);
  }
};

__device__ __forceinline__ void store(const tdm_mla_decode_params& p, const tdm::Unit& unit, const Sums& sums) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t column = 16 * warp + lane / 4;
#pragma unroll
  for (int h = 0; h < 4; ++h) {
    const int32_t head = head_number(h), i = 4 * (h / 2) + h % 2;
    if (head >= p.heads) continue;
    if (unit.splits == 1) {
      const int64_t offset = unit.row * p.out_stride + head * p.out_head_stride + column;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        tdm::store_element(p.out, p.out_dtype, offset + 64 * c, __fdiv_rn(sums.o[c][i], sums.sum[h]));
        tdm::store_element(p.out, p.out_dtype, offset + 64 * c + 8, __fdiv_rn(sums.o[c][i + 2], sums.sum[h]));
      }
    } else {
      const int64_t partial = (int64_t{unit.row} * p.heads + head) * p.max_splits + unit.split;
      float* target = p.values + partial * tdm::kLatent + column;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        target[64 * c] = sums.o[c][i];
        target[64 * c + 8] = sums.o[c][i + 2];
      }
      if (column == 0) *reinterpret_cast<float2*>(p.stats + 2 * partial) = make_float2(sums.base[h], sums.sum[h]);
    }
  }
}

/* The page at `slot`. The number is the same for all lanes, and by the shuffle the compiler knows: descriptors stay in
 * uniform registers. */
__device__ __forceinline__ Page page_at(Shared& shared, const Slot& slot) {
  Page page;
#pragma unroll
  for (int third = 0; third < kThirds; ++third) page.third[third] = shared.ring[__shfl_sync(~0u, slot.index(third), 0)];
  return page;
}

/* Issues the products of a page with q, third by third as they arrive. */
__device__ __forceinline__ void issue_scores(Shared& shared, const Page& page, const Slot& slot, float (&s)[8]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c % 3 == 0) {
      tdm::mbarrier_wait(&shared.full[slot.index(c / 3)], slot.parity(c / 3));
      tdm::wgmma_fence();
    }
    const uint64_t a = tdm::wgmma_descriptor(page.chunk(c));
    const uint64_t b = tdm::wgmma_descriptor(shared.q + c * kQChunkBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k) tdm::wgmma_bf16<16>::issue<0>(s, a + 2 * k, b + 2 * k, c + k != 0);
  }
  tdm::wgmma_commit();
}

/* Issues the products of the probabilities with a page's columns from 128 * pair on. */
__device__ __forceinline__ void issue_values(const Shared& shared, const Page& page, int pair, float (&o)[2][8]) {
  const uint64_t b = tdm::wgmma_descriptor(shared.probabilities);
  tdm::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int c = 0; c < 2; ++c)
      tdm::wgmma_bf16<16>::issue<1>(o[c], tdm::wgmma_descriptor(page.chunk(2 * pair + c)) + 128 * k, b + 2 * k, k != 0);
  tdm::wgmma_commit();
}

__device__ void attend(const tdm_mla_decode_params& p, Shared& shared) {
  const uint32_t lane = threadIdx.x % 32;
  Slot slot;
  Sums branch, group;
  branch.clear();
  uint32_t n = 0;
  for (tdm::Unit unit = unit_at(shared, 0), following; unit.row != kNoRow; unit = following) {
    group.clear();
    tdm::mbarrier_wait(&shared.q_full, n % 2);
    for (int32_t key = unit.begin; key < unit.end; key += kPage) {
      const int32_t valid = min(unit.end - key, kPage);
      const bool last = key + kPage >= unit.end;
      const Page page = page_at(shared, slot);
      float s[8];
      issue_scores(shared, page, slot, s);
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(s);
      /* The next unit's q may come while this one is finished. */
      if (last && lane == 0) tdm::mbarrier_arrive(&shared.q_empty);
      if (valid < kPage) clear_values(shared, slot, valid);
      float base[4], sum[4];
      softmax(p, shared, s, base, sum, valid);

      /* Registers hold two times two chunks of columns. Sums of probabilities are not needed before the first fold. */
      float o[2][2][8];
      issue_values(shared, page, 0, o[0]);
      issue_values(shared, page, 1, o[1]);
      whole_sums(shared, sum);
      const Join join(branch, base, sum);
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        if (pair < 3) tdm::wgmma_wait<1>();
        if (pair == 3) tdm::wgmma_wait<0>();
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          tdm::wgmma_settle(o[pair % 2][c]);
          join.columns(branch.o[2 * pair + c], o[pair % 2][c]);
        }
        if (pair < 2) issue_values(shared, page, pair + 2, o[pair % 2]);
        if (pair > 0 && lane == 0) tdm::mbarrier_arrive(&shared.empty[slot.index(pair - 1)]);
      }
      slot.number += kThirds;
      if (last || (key + kPage - unit.begin) % p.branch_keys == 0) {
        const Join all(group, branch.base, branch.sum);
#pragma unroll
        for (int c = 0; c < 8; ++c) all.columns(group.o[c], branch.o[c]);
        branch.clear();
      }
    }
    following = unit_at(shared, ++n);
    if (following.row == kNoRow) tdm::step_admit_next();
    store(p, unit, group);
    if (threadIdx.x == 0 && unit.split == 0) tdm::note_splits(p, unit.row, unit.splits);
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_H16_THREADS, 1)
    tdm_mla_decode_h16_sm90(const __grid_constant__ tdm_mla_decode_params p,
                            const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    tdm::mbarrier_init(&shared.unit_full[0], 1);
    tdm::mbarrier_init(&shared.unit_full[1], 1);
    tdm::mbarrier_init(&shared.q_full, 1);
    tdm::mbarrier_init(&shared.q_empty, 4);
    for (int i = 0; i < kSlots; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 4);
    }
    tdm::fence_barrier_init();
    tdm::tma_prefetch_map(&p.q);
    tdm::tma_prefetch_map(&p.cache);
  }
  __syncthreads();
  tdm::step_begin(sync, false);
  const int32_t warp = static_cast<int32_t>(threadIdx.x / 32);
  if (warp == 4) {
    load_pages(p, shared);
  } else if (warp == 5) {
    load_queries(p, shared);
  } else {
    attend(p, shared);
    tdm::clear_others(p, warp, 4);
  }
  tdm::step_end(sync);
}
