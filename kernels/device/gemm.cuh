#ifndef KERNELS_DEVICE_GEMM_CUH
#define KERNELS_DEVICE_GEMM_CUH

/* What the persistent GEMM kernels share: the ring of shared-memory stages, the walk over work units, the epilogue of
 * the swapped form and the sum over segments. */

#include "kernels/device/elements.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/step.cuh"
#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"

namespace tdm {

/* A number that a lambda can take as a compile-time constant. */
template <int kValue> struct Constant { static constexpr int value = kValue; };

/* Rows of a token tile that are loaded: not those that no batch of m tokens has, which the copy engine would fill. */
__device__ __forceinline__ uint32_t loaded_rows(int32_t m, int32_t tile) {
  return static_cast<uint32_t>(min((m + 7) / 8 * 8, tile));
}

/* Where a role stands in a ring of kStages. Barriers: full[] ends a phase when a stage is filled, empty[] when it is
 * free.
 *
 * What threads read of a stage (scales) lies in one of two places in turn, [parity][slot]: reads wait in line behind
 * the warp's earlier stores to device memory, its arrival at empty[] does not and may overtake them by microseconds. So
 * a place is filled again only when the stage has been handed back twice, and the second time is after the products
 * that took the place of the first's were issued, which needs the values. */
template <int kStages> struct Ring {
  uint32_t slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ void advance_by(uint32_t n) {
    const uint32_t sum = slot + n;
    parity ^= sum / kStages & 1;
    slot = sum % kStages;
  }
};

/* The same with as many stages as a launch or a role has, and their barriers. */
struct SizedRing {
  uint64_t* full;
  uint64_t* empty;
  uint32_t stages;
  uint32_t slot = 0, parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
  /* n is some times `stages` at most, and mostly less. */
  __device__ __forceinline__ void advance_by(uint32_t n) {
    slot += n;
    const bool around = slot >= stages;
    slot -= around ? stages : 0;
    parity ^= around ? 1 : 0;
    while (slot >= stages) {
      slot -= stages;
      parity ^= 1;
    }
  }
  /* The barrier that ends the filling. */
  __device__ __forceinline__ uint64_t* begin_fill() const {
    mbarrier_wait(&empty[slot], parity ^ 1);
    return &full[slot];
  }
  __device__ __forceinline__ void await() const {
    mbarrier_wait(&full[slot], parity);
  }
  /* By a warp that has read the stage. */
  __device__ __forceinline__ void hand_back() {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[slot]);
    advance();
  }
};

/* A piece of work: a tile of the output and a segment of the sum. Tokens vary fastest, so that neighbouring CTAs share
 * weights in L2; then segments, so that the segments of a tile end close together. */
struct Unit {
  int32_t m_tile;
  int32_t n_tile;
  int32_t segment;
  int32_t batch;
};

__device__ __forceinline__ Unit unit_at(int32_t index, int32_t m_tiles, int32_t segments, int32_t n_tiles) {
  Unit unit;
  unit.m_tile = index % m_tiles;
  index /= m_tiles;
  unit.segment = index % segments;
  index /= segments;
  unit.n_tile = index % n_tiles;
  unit.batch = index / n_tiles;
  return unit;
}

/* First block of a segment; segment == segments gives the end of the last one. */
__device__ __forceinline__ int32_t segment_begin(int32_t segment, int32_t segments, int32_t blocks, int32_t granule) {
  const int32_t granules = (blocks + granule - 1) / granule;
  return min(granules * segment / segments * granule, blocks);
}

/* The experts that a launch works on: those of a list in device memory, copied to shared memory once it may be read, or
 * all. The list is bounded by what it may hold, whatever is there. */
struct Hits {
  static constexpr int32_t kMost = 1024;
  int32_t count;
  bool listed; /* false: all */

  __device__ static __forceinline__ int32_t* list() {
    __shared__ int32_t experts[kMost];
    return experts;
  }
  __device__ __forceinline__ int32_t expert(int32_t index) const {
    return listed ? list()[index] : index;
  }
  /* Experts of the list below `e`. */
  __device__ __forceinline__ int32_t below(int32_t e) const {
    if (!listed) return e;
    int32_t low = 0, high = count;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (list()[middle] < e)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

/* All threads of the CTA, after step_wait. */
__device__ __forceinline__ Hits load_hits(const int32_t* hits, int32_t n_experts) {
  const int32_t count = min(max(__ldcg(hits), 0), min(n_experts, Hits::kMost));
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += static_cast<int32_t>(blockDim.x))
    Hits::list()[i] = min(max(__ldcg(hits + 1 + i), 0), n_experts - 1);
  __syncthreads();
  return Hits{count, true};
}

/* Two threads fill the ring, each for its own part of a stage, so that neither waits while the other asks: weights, and
 * what belongs to tokens. Both arrive on full[], whose count is therefore 2.
 *
 * A walk has `units`, at(index), begin(unit) and end(unit) in blocks along K; a stage holds kBlocks of them.
 * fill(unit, block, ring) issues the copies into ring's stage, `bytes` in all. */
template <int kStages, int kBlocks, class Walk, class Fill>
__device__ __forceinline__ uint32_t fill_stages(const Walk& walk, uint64_t (&full)[kStages], uint64_t (&empty)[kStages],
                                                uint32_t bytes, Fill fill) {
  Ring<kStages> ring;
  uint32_t filled = 0;
  for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
    const auto unit = walk.at(u);
    const int32_t end = walk.end(unit);
    for (int32_t block = walk.begin(unit); block < end; block += kBlocks) {
      mbarrier_wait(&empty[ring.slot], ring.parity ^ 1);
      mbarrier_arrive_expect(&full[ring.slot], bytes);
      if (!fill(unit, block, ring)) return filled + 1;
      ring.advance();
      ++filled;
    }
  }
  return filled;
}

/* The thread of the weights. `ahead`: the walk does not depend on how many tokens are live and no step writes the
 * weights; then the first stages are asked for before the steps before this one are done, else the caller has waited.
 * If no token turns out to be live, nobody multiplies them, but the CTA must not end under a copy. */
template <int kStages, int kBlocks, class Walk, class Live, class Fill>
__device__ __forceinline__ void fill_weights(const tdm_step_sync& sync, bool ahead, const Walk& walk, Live live,
                                             uint64_t (&full)[kStages], uint64_t (&empty)[kStages], uint32_t bytes,
                                             Fill fill) {
  uint32_t left = ahead ? kStages : 0;
  const uint32_t filled =
      fill_stages<kStages, kBlocks>(walk, full, empty, bytes, [&](const auto& unit, int32_t block, const auto& at) {
        fill(unit, block, at);
        if (left == 0 || --left > 0) return true;
        step_wait(sync);
        return live() > 0;
      });
  if (!ahead) return;
  if (left > 0) step_wait(sync);
  if (live() > 0) return;
  for (uint32_t stage = 0; stage < filled; ++stage) {
    mbarrier_arrive(&full[stage]);
    mbarrier_wait(&full[stage], 0);
  }
}

/* The sum of a CTA that goes through all segments of a tile itself: the same additions as when CTAs share them. After
 * the last, c is the sum too. */
template <int kCount>
__device__ __forceinline__ void add_in_turn(float (&total)[kCount], float (&c)[kCount], bool first) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) c[i] = total[i] = (first ? 0.0f : total[i]) + c[i];
}

/* How the segments of a tile meet. Each leaves its partial in the workspace and arrives at the tile's counter. The sum
 * is divided into slices, one a segment: a segment that `waits` stays until all have arrived and adds up its own slice.
 * One that does not, or has waited in vain, gives its slice up, and the last to arrive adds up what was given up. So no
 * CTA depends on another that may have no SM, and the order of every sum is that of the segments whoever adds it up.
 *
 *   counter:  bits 0..7 arrived | 8..15 left | 16..31 a bit a segment: has given up its slice, and left
 *
 * By one thread, between barriers of those whose partials it stands for and who add up: its fences are for all of them.
 * Answers a bit a slice that is to be added up here. */
constexpr uint32_t kMeetingLeaves = 0x80000000u; /* the caller has to leave_meeting when it is done */

__device__ __forceinline__ uint32_t meeting_left(uint32_t counter) {
  return (counter >> 8 & 0xff) + static_cast<uint32_t>(__popc(counter >> 16));
}

__device__ __forceinline__ uint32_t meet_unfenced(uint32_t* counter, int32_t segment, int32_t segments, bool waits) {
  constexpr int64_t kPatience = 40000; /* clocks: more than segments of one wave lie apart */
  const uint32_t bit = 1u << segment, all = static_cast<uint32_t>(segments);
  uint32_t seen = atomicAdd(counter, waits ? 1u : 1u + (bit << 16));
  if ((seen & 0xff) + 1 == all) {
    const uint32_t slices = seen >> 16 | bit;
    if (waits) return slices | kMeetingLeaves;
    if (meeting_left(seen) + 1 == all) *counter = 0;
    return slices;
  }
  if (!waits) return 0;
  const int64_t start = clock64();
  do {
    seen = *const_cast<volatile uint32_t*>(counter);
    if ((seen & 0xff) == all) return bit | kMeetingLeaves;
  } while (clock64() - start < kPatience);
  seen = atomicOr(counter, bit << 16);
  if ((seen & 0xff) != all) return 0;
  if (meeting_left(seen) + 1 == all) *counter = 0;
  return bit;
}

__device__ __forceinline__ uint32_t meet(uint32_t* counter, int32_t segment, int32_t segments, bool waits) {
  fence_gpu();
  const uint32_t slices = meet_unfenced(counter, segment, segments, waits);
  fence_gpu();
  return slices;
}

/* Where the last of `all` to arrive adds up everything: whether that is here. By one thread, as meet. */
__device__ __forceinline__ bool arrives_last(uint32_t* counter, uint32_t all) {
  fence_gpu();
  const bool last = atomicAdd(counter, 1u) + 1 == all;
  fence_gpu();
  if (last) *counter = 0;
  return last;
}

/* Whether all segments but this one, which has not arrived, have come and given up their slices: then nobody waits for
 * it or looks at the counter again, and it may add them all up without leaving its partial; the caller sets the counter
 * back to zero. By one thread, before a barrier of those who add up. */
__device__ __forceinline__ bool meets_nobody(const uint32_t* counter, int32_t segment, int32_t segments) {
  const uint32_t others = ((1u << segments) - 1) & ~(1u << segment);
  return load_acquire(counter) == (others << 16 | static_cast<uint32_t>(segments - 1));
}

/* By one thread. The last to leave sets the counter back to zero. */
__device__ __forceinline__ void leave_meeting(uint32_t* counter, int32_t segments) {
  if (meeting_left(atomicAdd(counter, 1u << 8)) + 1 == static_cast<uint32_t>(segments)) *counter = 0;
}

constexpr uint32_t kAllGroups = ~0u;

/* A warpgroup's fragment `c` as partial `segment` of `tile`. A slice is a run of groups of eight elements (the whole of
 * c where it is shorter); answers a bit a group of c that now holds the sum, segments ascending, and is to be stored
 * here. Partials lie as [tile][segment][kCount / 4][128 threads] float4. `flag` is shared memory of the warpgroup,
 * `barrier` its named barrier. */
template <int kCount>
__device__ __forceinline__ uint32_t add_segments(float (&c)[kCount], float* partials, uint32_t* counters, int64_t tile,
                                                 int32_t segment, int32_t segments, bool waits, uint32_t* flag,
                                                 uint32_t barrier) {
  constexpr int kGroups = kCount < 8 ? 1 : kCount / 8, kVectors = kCount / kGroups / 4;
  constexpr int kBatch = kVectors > 2 ? 3 : 4; /* segments that are asked for at once: as registers allow */
  const uint32_t thread = threadIdx.x % 128;
  float4* const first = reinterpret_cast<float4*>(partials) + tile * segments * (kCount / 4 * 128) + thread;
  float4* const mine = first + int64_t{segment} * (kCount / 4 * 128);
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i)
    __stcg(mine + i * 128, make_float4(c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]));
  named_barrier_sync(barrier, 128);
  if (thread == 0) *flag = meet(counters + tile, segment, segments, waits && kGroups > 1);
  named_barrier_sync(barrier, 128);
  const uint32_t slices = *flag;
  if (slices == 0) return 0;
  uint32_t groups = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    if ((slices >> (group * segments / kGroups) & 1) == 0) continue;
    groups |= 1u << group;
#pragma unroll
    for (int i = 0; i < 4 * kVectors; ++i) c[4 * kVectors * group + i] = 0.0f;
    for (int32_t batch = 0; batch < segments; batch += kBatch) {
      /* Without a branch between them, behind which they would be moved, one wait for L2 after the other. */
      float4 values[kBatch][kVectors];
#pragma unroll
      for (int s = 0; s < kBatch; ++s) {
        const float4* partial =
            first + int64_t{min(batch + s, segments - 1)} * (kCount / 4 * 128) + group * kVectors * 128;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) values[s][i] = __ldcg(partial + i * 128);
      }
#pragma unroll
      for (int s = 0; s < kBatch; ++s) {
        const bool inside = batch + s < segments;
        const auto part = [&](float value) { return inside ? value : 0.0f; }; /* no sum is -0, so 0 changes none */
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const float4& v = values[s][i];
          float* to = &c[4 * (kVectors * group + i)];
          to[0] += part(v.x), to[1] += part(v.y), to[2] += part(v.z), to[3] += part(v.w);
        }
      }
    }
  }
  if (thread == 0 && (slices & kMeetingLeaves) != 0) leave_meeting(counters + tile, segments);
  return kGroups == 1 ? kAllGroups : groups;
}

/* Where a tile's results go: rows are tokens, `stride` elements apart. */
struct Output {
  void* data;
  int64_t stride;
  int32_t dtype;
  int32_t rows; /* live tokens */
  int32_t cols;
};

/* 16 bytes, or what of them lies inside the row. */
__device__ __forceinline__ void store_bf16_8(const Output& out, int32_t row, int32_t column, uint4 packed) {
  __nv_bfloat16* target = static_cast<__nv_bfloat16*>(out.data) + row * out.stride + column;
  if (column + 8 <= out.cols && (reinterpret_cast<uintptr_t>(target) & 15) == 0) {
    *reinterpret_cast<uint4*>(target) = packed;
    return;
  }
  const __nv_bfloat16* values = reinterpret_cast<const __nv_bfloat16*>(&packed);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i < out.cols) target[i] = values[i];
}

/* Epilogue of the swapped form: the fragment of a warpgroup has weight rows (columns of the output, from n0) down and
 * kTokens tokens (from m0) across; of it the groups of 16 tokens whose bits are set. bf16 goes through `staged`, 16
 * bytes of padding a row against bank conflicts; f32 directly, eight lanes to a 32-byte sector. */
constexpr int kStagedRowBytes = 64 * 2 + 16;

template <int kTokens>
__device__ __forceinline__ void store_swapped_f32(const float (&c)[kTokens / 2], const Output& out, int32_t m0,
                                                  int32_t n0, uint32_t groups) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x % 128 / 32);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int32_t n = n0 + 16 * warp + lane / 4 + 8 * (i / 2 % 2), m = m0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    if ((groups >> i / 8 & 1) != 0 && m < out.rows && n < out.cols)
      static_cast<float*>(out.data)[m * out.stride + n] = c[i];
  }
}

template <int kTokens>
__device__ __forceinline__ void store_swapped(const float (&c)[kTokens / 2], const Output& out, int32_t m0, int32_t n0,
                                              uint32_t groups, uint8_t* staged, uint32_t barrier) {
  const uint32_t thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  if (out.dtype == TDM_KERNEL_F32) return store_swapped_f32<kTokens>(c, out, m0, n0, groups);
  constexpr int kPass = kTokens < 32 ? kTokens : 32, kGroupsOfPass = kPass < 16 ? 1 : (kPass + 8) / 16;
#pragma unroll
  for (int pass = 0; pass < (kTokens + kPass - 1) / kPass; ++pass) {
    const uint32_t groups_of_pass = groups >> pass * kGroupsOfPass & ((1u << kGroupsOfPass) - 1);
    if (m0 + pass * kPass >= out.rows) break;
    if (groups_of_pass == 0) continue;
    named_barrier_sync(barrier, 128);
#pragma unroll
    for (int group = 0; group < kPass / 8; ++group) {
      const int i = 4 * (pass * (kPass / 8) + group);
      uint8_t* row = staged + (8 * group + lane % 8) * kStagedRowBytes + (16 * warp + 8 * (lane / 8 % 2)) * 2;
      stmatrix_x2_transposed(row, bf16x2(c[i], c[i + 1]), bf16x2(c[i + 2], c[i + 3]));
    }
    named_barrier_sync(barrier, 128);
    for (uint32_t chunk = thread; chunk < kPass * 8; chunk += 128) {
      const int32_t row = static_cast<int32_t>(chunk / 8), m = m0 + pass * kPass + row;
      const int32_t n = n0 + static_cast<int32_t>(chunk % 8) * 8;
      if ((groups_of_pass >> row / 16 & 1) == 0 || m >= out.rows || n >= out.cols) continue;
      store_bf16_8(out, m, n, *reinterpret_cast<const uint4*>(staged + row * kStagedRowBytes + chunk % 8 * 16));
    }
  }
}

} // namespace tdm

#endif
