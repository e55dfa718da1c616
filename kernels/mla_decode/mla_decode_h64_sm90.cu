/* Paged MLA attention over the latent cache, absorbed form, for more than 16 heads, for sm_90a.
 *
 * 1. A unit is a token, a tile of 64 heads and a split of the token's keys; persistent CTAs walk the units. A split is
 *    one leaf of keys, or a group of leaves: a leaf is summed up by itself, then folded into its group, and the merge
 *    folds leaves into groups, groups into the whole, in the same order. So the host picks splits as the load wants
 *    them, and no bit changes. A group's sums lie in scratch, which L2 holds: registers have room for one leaf.
 * 2. Producers: one warp brings page after page, each as 9 swizzled boxes of 64 rows x 64 values, another the q of the
 *    next unit as soon as the scores no longer need this one's.
 * 3. The scores' warpgroup has q k^T, 64 heads x 64 keys, and the softmax; it leaves probabilities, rounded to bf16, in
 *    shared memory, in the order in which the other two warpgroups' threads hold them as wgmma's first operand.
 * 4. The values' warpgroups have p v, 256 of the 512 value columns each: the page again, transposed by the tensor
 *    cores. So the scores of a page are multiplied beside the values of the page before.
 * 5. Slots past the token's own position are later tokens, or NaN: their scores are left out, their values zeroed in
 *    shared memory.
 * 6. A token whose keys are one split is divided by its sum and stored. Otherwise sums, base and denominator go to
 *    scratch, and the second kernel merges them.
 * 7. Rows of sequences of another kind get zeros.
 *
 *   warpgroup 0 (producers)   warp 0: pages; warp 1: q    q     9 x [64 heads][64] bf16, swizzled
 *   warpgroup 1               scores                      page  2 stages of 9 x [64 tokens][64] bf16, swizzled
 *   warpgroup 2               value columns   0 .. 255    note  probabilities, factors; base and sum at a leaf's end
 *   warpgroup 3               value columns 256 .. 511
 *
 * A page's way:  full --> scores: q k^T, softmax --> note full --> values: take the note --> note empty
 *                                                                  p v --> page empty
 *
 * Grid: up to one CTA an SM; block: 512 threads. Limit: two pages are all that fits beside q, and a page is away from
 * its load to the end of p v. */

#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/mla_decode/mla_decode_units.cuh"

namespace {

constexpr int kStages = TDM_MLA_DECODE_H64_STAGES, kChunks = 9, kChunkBytes = 64 * 128;
constexpr int32_t kHeads = TDM_MLA_DECODE_H64_HEADS, kPage = tdm::kPage;
constexpr uint32_t kClear = 1; /* named barriers: and + 1 */

/* What a page is to the values' warpgroups. */
enum : int32_t {
  kStartsLeaf = 1,
  kEndsLeaf = 2,
  kStartsGroup = 4, /* its leaf does */
  kEndsUnit = 8,
  kWhole = 16, /* the unit is all of its token */
  kNoMore = 32
};

/* How a leaf that has ended joins its group: by head of the tile, what takes the group before and the leaf to the base
 * they have in common, that base and the denominator. */
struct Leaf {
  float from[kHeads], part[kHeads], base[kHeads], sum[kHeads];
  int32_t row, first_head, split;
};

/* What the scores' warpgroup tells the values' about a page. Leaves take turns: the values' warpgroups read one until
 * they take the next note. */
struct Note {
  uint4 probabilities[4][128]; /* k-steps of 16 keys; by thread of a warpgroup */
  float factor[kHeads];
  Leaf leaf[2];
  int32_t state, valid;
};

struct Shared {
  alignas(1024) uint8_t q[kChunks * kChunkBytes];
  alignas(1024) uint8_t page[kStages][kChunks * kChunkBytes];
  Note note;
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t note_full; /* all who write or read a note arrive: racecheck follows no arrival for others of the warp */
  uint64_t note_empty;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
static_assert(sizeof(Shared) <= TDM_MLA_DECODE_H64_SHARED, "launch size");

using Walk = tdm::Walk<kHeads>;

struct Stage {
  uint32_t slot = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/* By one warp; lane 0 copies. A page number outside of the cache arrives as zeros. */
__device__ void load_pages(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t often = tdm::l2_evict_last();
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  Walk walk(p);
  Stage stage;
  tdm::Unit unit;
  while (walk.next(p, unit)) {
    const int32_t count = unit.pages();
    int32_t numbers = 0;
    for (int32_t i = 0; i < count; ++i) {
      if (i % 32 == 0 && i + lane < count) numbers = unit.page_numbers[i + lane];
      const int32_t page = __shfl_sync(~0u, numbers, i % 32);
      if (lane == 0) {
        tdm::mbarrier_wait(&shared.empty[stage.slot], stage.parity ^ 1);
        uint64_t* full = &shared.full[stage.slot];
        tdm::mbarrier_arrive_expect(full, kChunks * kChunkBytes);
        for (int c = 0; c < kChunks; ++c)
          tdm::tma_load_3d(shared.page[stage.slot] + c * kChunkBytes, &p.cache, full, often, c * 64, 0, page);
      }
      stage.advance();
      __syncwarp();
    }
  }
}

__device__ void load_queries(const tdm_mla_decode_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first();
  Walk walk(p);
  uint32_t parity = 1;
  tdm::Unit unit;
  while (walk.next(p, unit)) {
    if (threadIdx.x % 32 == 0) {
      tdm::mbarrier_wait(&shared.q_empty, parity);
      tdm::mbarrier_arrive_expect(&shared.q_full, kChunks * kChunkBytes);
      for (int c = 0; c < kChunks; ++c)
        tdm::tma_load_3d(shared.q + c * kChunkBytes, &p.q, &shared.q_full, once, c * 64, unit.first_head, unit.row);
    }
    parity ^= 1;
    __syncwarp();
  }
}

/* Of one of the two heads of a thread: the group's base and denominator. */
struct Group {
  float base = -tdm::kInfinity, sum = 0.0f;

  __device__ __forceinline__ void fold(Leaf& leaf, uint32_t head, float leaf_base, float leaf_sum) {
    const float to = fmaxf(base, leaf_base);
    const float from = tdm::base_factor(base, to), part = tdm::base_factor(leaf_base, to);
    base = to;
    tdm::fold(sum, from, leaf_sum, part);
    leaf.from[head] = from;
    leaf.part[head] = part;
    leaf.base[head] = base;
    leaf.sum[head] = sum;
  }
};

__device__ void make_scores(const tdm_mla_decode_params& p, Shared& shared) {
  const uint32_t thread = threadIdx.x % 128, lane = thread % 32, row = 16 * (thread / 32) + lane / 4;
  Note& note = shared.note;
  Walk walk(p);
  Stage stage;
  uint32_t q_parity = 0, note_parity = 1, turn = 0;
  tdm::Unit unit;
  while (walk.next(p, unit)) {
    tdm::Softmax softmax;
    Group group[2];
    int32_t state = kStartsLeaf | kStartsGroup | (unit.splits == 1 ? kWhole : 0);
    tdm::mbarrier_wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    for (int32_t key = unit.begin; key < unit.end; key += kPage) {
      /* The same for all lanes, and by the shuffle the compiler knows: descriptors stay in uniform registers. */
      const uint8_t* page = shared.page[__shfl_sync(~0u, stage.slot, 0)];
      tdm::mbarrier_wait(&shared.full[stage.slot], stage.parity);
      stage.advance();
      float s[32];
      tdm::wgmma_fence();
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const uint64_t a = tdm::wgmma_descriptor(shared.q + c * kChunkBytes);
        const uint64_t b = tdm::wgmma_descriptor(page + c * kChunkBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) tdm::wgmma_bf16<64>::issue<0>(s, a + 2 * k, b + 2 * k, c + k != 0);
      }
      tdm::wgmma_commit();
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(s);
      /* The next unit's q may come while this one is finished. */
      if (key + kPage >= unit.end && lane == 0) tdm::mbarrier_arrive(&shared.q_empty);

      float factor[2];
      const int32_t valid = min(unit.end - key, kPage);
      softmax.add(s, factor, p.log2_scale, {valid, valid});
      uint32_t probabilities[4][4];
      tdm::pack_probabilities(probabilities, s);
      if (key + kPage >= unit.end) state |= kEndsUnit | kEndsLeaf;
      if ((key + kPage - unit.begin) % p.leaf_keys == 0) state |= kEndsLeaf;
      if (state & kEndsLeaf) softmax.finish();
      tdm::mbarrier_wait(&shared.note_empty, note_parity);
      note_parity ^= 1;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        note.probabilities[k][thread] =
            make_uint4(probabilities[k][0], probabilities[k][1], probabilities[k][2], probabilities[k][3]);
      if (lane % 4 == 0) {
        note.factor[row] = factor[0];
        note.factor[row + 8] = factor[1];
      }
      if (thread == 0) {
        note.state = state;
        note.valid = valid;
      }
      if (state & kEndsLeaf) {
        Leaf& leaf = note.leaf[turn];
        group[0].fold(leaf, row, softmax.base[0], softmax.sum[0]);
        group[1].fold(leaf, row + 8, softmax.base[1], softmax.sum[1]);
        if (thread == 0 && unit.split == 0 && unit.first_head == 0) tdm::note_splits(p, unit.row, unit.splits);
        leaf.row = unit.row, leaf.first_head = unit.first_head, leaf.split = unit.split;
        softmax = tdm::Softmax();
        turn ^= 1;
        state = kStartsLeaf | (state & kWhole);
      } else {
        state &= ~kStartsLeaf;
      }
      tdm::mbarrier_arrive(&shared.note_full);
    }
  }
  tdm::mbarrier_wait(&shared.note_empty, note_parity);
  if (thread == 0) note.state = kNoMore;
  tdm::mbarrier_arrive(&shared.note_full);
}

/* A leaf joins its group: the group's sums come from scratch unless the leaf is its first, and go there again, or out
 * when the token has nothing else. */
template <int kHalf>
__device__ __forceinline__ void store(const tdm_mla_decode_params& p, const Leaf& leaf, const float (&o)[2][64],
                                      uint32_t consumer, int32_t state) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
  const int32_t in_tile = 16 * warp + lane / 4 + 8 * kHalf, head = leaf.first_head + in_tile;
  const int32_t column = 256 * static_cast<int32_t>(consumer) + 2 * (lane % 4);
  if (head >= p.heads) return;
  const float from = leaf.from[in_tile], part = leaf.part[in_tile], sum = leaf.sum[in_tile];
  const bool out = (state & (kEndsUnit | kWhole)) == (kEndsUnit | kWhole);
  const int64_t partial = (int64_t{leaf.row} * p.heads + head) * p.max_splits + leaf.split;
  float2* sums = reinterpret_cast<float2*>(p.values + partial * tdm::kLatent + column);
  const int64_t offset = leaf.row * p.out_stride + head * p.out_head_stride + column;
#pragma unroll
  for (int i = 0; i < 32; i += 16) {
    float2 v[16];
#pragma unroll
    for (int j = 0; j < 16; ++j) v[j] = state & kStartsGroup ? make_float2(0.0f, 0.0f) : sums[4 * (i + j)];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      tdm::fold(v[j].x, from, o[i / 16][4 * ((i + j) % 16) + 2 * kHalf], part);
      tdm::fold(v[j].y, from, o[i / 16][4 * ((i + j) % 16) + 2 * kHalf + 1], part);
      if (out) {
        tdm::store_pair(p, offset + 8 * (i + j), __fdiv_rn(v[j].x, sum), __fdiv_rn(v[j].y, sum));
      } else {
        sums[4 * (i + j)] = v[j];
      }
    }
  }
  if ((state & kEndsUnit) && !out && column == 0)
    *reinterpret_cast<float2*>(p.stats + 2 * partial) = make_float2(leaf.base[in_tile], sum);
}

__device__ void add_values(const tdm_mla_decode_params& p, Shared& shared, uint32_t consumer) {
  const uint32_t thread = threadIdx.x % 128, row = 16 * (thread / 32) + thread % 32 / 4;
  const Note& note = shared.note;
  Stage stage;
  uint32_t turn = 0, note_parity = 0;
  float o[2][64]; /* 128 value columns each */
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i / 64][i % 64] = 0.0f;
  for (;;) {
    tdm::mbarrier_wait(&shared.note_full, note_parity);
    note_parity ^= 1;
    const int32_t state = note.state, valid = note.valid;
    if (state == kNoMore) return;
    uint32_t probabilities[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 v = note.probabilities[k][thread];
      probabilities[k][0] = v.x, probabilities[k][1] = v.y, probabilities[k][2] = v.z, probabilities[k][3] = v.w;
    }
    const float factor[2] = {note.factor[row], note.factor[row + 8]};
    tdm::mbarrier_arrive(&shared.note_empty);
    uint8_t* page = shared.page[__shfl_sync(~0u, stage.slot, 0)] + consumer * 4 * kChunkBytes;
    /* Over already, but each thread has to see it by itself to see what was copied. */
    tdm::mbarrier_wait(&shared.full[stage.slot], stage.parity);
    if (valid < kPage) {
      tdm::clear_rows<4, 128>(page, valid, static_cast<int32_t>(threadIdx.x % 128));
      tdm::fence_async_shared();
      tdm::named_barrier_sync(kClear + consumer, 128);
    }
    if (!(state & kStartsLeaf) && __any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) o[i / 64][i % 64] *= factor[i / 2 % 2];
    }
    tdm::wgmma_settle(o[0]);
    tdm::wgmma_settle(o[1]);
    tdm::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint64_t values = tdm::wgmma_descriptor(page + 2 * half * kChunkBytes, kChunkBytes);
        tdm::wgmma_bf16_registers_n128(o[half], probabilities[k], values + 128 * k, k > 0 || !(state & kStartsLeaf));
      }
    }
    tdm::wgmma_commit();
    tdm::wgmma_wait<0>();
    tdm::wgmma_settle(o[0]);
    tdm::wgmma_settle(o[1]);
    if (thread % 32 == 0) tdm::mbarrier_arrive(&shared.empty[stage.slot]);
    stage.advance();
    if (state & kEndsLeaf) {
      store<0>(p, note.leaf[turn], o, consumer, state);
      store<1>(p, note.leaf[turn], o, consumer, state);
      turn ^= 1;
    }
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_H64_THREADS, 1)
    tdm_mla_decode_h64_sm90(const __grid_constant__ tdm_mla_decode_params p,
                            const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    tdm::mbarrier_init(&shared.q_full, 1);
    tdm::mbarrier_init(&shared.q_empty, 4);
    tdm::mbarrier_init(&shared.note_full, 128);
    tdm::mbarrier_init(&shared.note_empty, 256);
    for (int i = 0; i < kStages; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 8);
    }
    tdm::fence_barrier_init();
    tdm::tma_prefetch_map(&p.q);
    tdm::tma_prefetch_map(&p.cache);
  }
  __syncthreads();
  tdm::step_begin(sync);
  const uint32_t group = threadIdx.x / 128;
  if (group == 0) {
    tdm::registers_lower<40>();
    if (threadIdx.x < 32) {
      load_pages(p, shared);
    } else if (threadIdx.x < 64) {
      load_queries(p, shared);
    }
  } else if (group == 1) {
    tdm::registers_lower<88>();
    make_scores(p, shared);
    tdm::clear_others(p, static_cast<int32_t>(threadIdx.x / 32) - 4, 4);
  } else {
    tdm::registers_raise<192>();
    add_values(p, shared, group - 2);
  }
  tdm::step_end(sync);
}
