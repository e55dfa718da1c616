#ifndef KERNELS_DEVICE_CHOICES_CUH
#define KERNELS_DEVICE_CHOICES_CUH

/* For FC1 and FC2 over the rows alone that chose an expert: the bits of moe_route turned round in shared memory, and a
 * warp that gathers rows into a ring of stages. */

#include "kernels/device/choices_params.h"
#include "kernels/device/elements.cuh"
#include "kernels/device/gemm.cuh"

namespace tdm {

/* Of some rows, from `first_row` on: who chose which expert, and which experts somebody chose. */
struct Choices {
  uint32_t* bits;  /* [experts][words]: bit r of word w: row first_row + 32 w + r chose the expert */
  int32_t* list;   /* [n] expert | its rows << 16, of those that a row chose, ascending */
  int32_t* before; /* [n + 1] groups of rows of those before it in the list */
  int32_t words;   /* of an expert */
  int32_t n;
  int32_t first_row;

  __device__ __forceinline__ int32_t expert(int32_t index) const {
    return list[index] & 0xffff;
  }
  __device__ __forceinline__ int32_t rows(int32_t index) const {
    return list[index] >> 16;
  }
  /* The expert, as an index of the list, that has a group; there is one. */
  __device__ __forceinline__ int32_t holder(int32_t group) const {
    int32_t low = 0, high = n - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (before[middle] <= group)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
  /* By a warp: of the rows that chose the expert those from the one of number `first` on, `most` at most, to to[]. */
  __device__ __forceinline__ void place_rows(int32_t index, int32_t first, int32_t most, int32_t* to) const {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const uint32_t* mine = bits + expert(index) * words;
    int32_t passed = -first;
    for (int32_t w = 0; w < words; ++w) {
      const uint32_t word = mine[w];
      const int32_t at = passed + __popc(word & ((1u << lane) - 1));
      if ((word >> lane & 1) != 0 && at >= 0 && at < most) to[at] = first_row + 32 * w + lane;
      passed += __popc(word);
    }
  }
};

/* The lane's and all lower lanes' values. */
__device__ __forceinline__ int32_t sum_up(int32_t value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t lower = __shfl_up_sync(~0u, value, distance);
    if (static_cast<int32_t>(threadIdx.x % 32) >= distance) value += lower;
  }
  return value;
}

/* A square of bits of which each lane has a row: the lane's column, bit r of it from lane r. */
__device__ __forceinline__ uint32_t turn_round(uint32_t row) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  uint32_t low = 0x0000ffffu; /* of each two halves of a smaller square, the lower */
#pragma unroll
  for (int half = 16; half > 0; half /= 2, low ^= low << half) {
    const uint32_t other = __shfl_xor_sync(~0u, row, half);
    row = (lane & half) == 0 ? (row & low) | (other & low) << half : (row & ~low) | (other & ~low) >> half;
  }
  return row;
}

/* Of `rows` rows from first_row on, of `m`, as far as they are live; groups are of `group` rows. Bits of no expert are
 * passed over. `live` is looked at behind the bits, so that both may be on their way. note(expert, groups): the groups
 * of all experts before it, also for the one behind the last. `scratch`: shared memory for the bits as they come, or
 * NULL; without it every word's warp asks for all rows' sectors, and all CTAs ask few places in L2. All threads of the
 * CTA, after step_wait, with nobody using what was there. */
template <class Note>
__device__ __forceinline__ Choices load_choices(void* memory, const tdm_choices_params& p, int32_t n_experts,
                                                int32_t rows, int32_t first_row, int32_t m, int32_t live, int32_t group,
                                                uint32_t* scratch, Note note) {
  const int32_t expert_words = (n_experts + 31) / 32, experts = 32 * expert_words;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t warps = static_cast<int32_t>(blockDim.x / 32);
  Choices choices;
  int32_t* const of_word = static_cast<int32_t*>(memory);
  choices.list = of_word + expert_words;
  choices.before = choices.list + experts;
  choices.bits = reinterpret_cast<uint32_t*>(choices.before + experts + 1);
  choices.words = (rows + 31) / 32;
  choices.first_row = first_row;

  constexpr int kAtOnce = 4; /* loads under way */
  if (scratch != nullptr) {
    const int32_t n = min(m - first_row, rows) * expert_words;
    for (int32_t base = static_cast<int32_t>(threadIdx.x); base < n; base += kAtOnce * 32 * warps) {
      uint32_t values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int32_t at = base + i * 32 * warps, row = first_row + at / expert_words;
        values[i] = at < n ? static_cast<uint32_t>(__ldcg(p.bits + row * p.stride + at % expert_words)) : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (base + i * 32 * warps < n) scratch[base + i * 32 * warps] = values[i];
    }
    __syncthreads();
  }
  const auto bits_of = [&](int32_t row, int32_t word) {
    if (scratch != nullptr) return scratch[(row - first_row) * expert_words + word];
    return static_cast<uint32_t>(__ldcg(p.bits + row * p.stride + word));
  };

  /* Experts and groups of a word of 32 experts, then of all words before it; both in one number, experts below. */
  const auto number = [&](int32_t chose) { return chose == 0 ? 0 : 1 + ((chose + group - 1) / group << 16); };
  /* A warp has all rows of a word, in squares of 32 x 32. */
  for (int32_t word = warp; word < expert_words; word += warps) {
    const int32_t expert = 32 * word + lane;
    int32_t chose = 0;
    for (int32_t base = 0; base < choices.words; base += kAtOnce) {
      uint32_t row_bits[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int32_t row = first_row + 32 * (base + i) + lane;
        const bool there = base + i < choices.words && row < m;
        row_bits[i] = there ? bits_of(row, word) : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (base + i >= choices.words) break;
        const uint32_t its = first_row + 32 * (base + i) + lane < live ? row_bits[i] : 0;
        const uint32_t column = turn_round(its), turned = expert < n_experts ? column : 0;
        choices.bits[expert * choices.words + base + i] = turned;
        chose += __popc(turned);
      }
    }
    const int32_t all = __reduce_add_sync(~0u, number(chose));
    if (lane == 0) of_word[word] = all;
  }
  __syncthreads();
  const int32_t mine = lane < expert_words ? of_word[lane] : 0, up_to = sum_up(mine);
  for (int32_t word = warp; word < expert_words; word += warps) {
    const int32_t expert = 32 * word + lane;
    int32_t chose = 0;
    for (int32_t w = 0; w < choices.words; ++w) chose += __popc(choices.bits[expert * choices.words + w]);
    const int32_t own = number(chose), before = __shfl_sync(~0u, up_to - mine, word) + sum_up(own) - own;
    if (expert < n_experts) note(expert, before >> 16);
    if (chose == 0) continue;
    choices.list[before & 0xffff] = expert | chose << 16;
    choices.before[before & 0xffff] = before >> 16;
  }
  const int32_t all = __shfl_sync(~0u, up_to, 31);
  choices.n = all & 0xffff;
  if (threadIdx.x == 0) {
    choices.before[choices.n] = all >> 16;
    note(n_experts, all >> 16);
  }
  __syncthreads();
  return choices;
}

__device__ __forceinline__ Choices load_choices(void* memory, const tdm_choices_params& p, int32_t n_experts,
                                                int32_t rows, int32_t first_row, int32_t m, int32_t live,
                                                int32_t group) {
  return load_choices(memory, p, n_experts, rows, first_row, m, live, group, nullptr, [](int32_t, int32_t) {});
}

/* A warp's part of a ring that it fills by gathering: each of its lanes arrives at full[] when its own copies are done.
 * The tensor cores read what plain copies wrote: between full[] and them every thread of the warpgroup has a
 * fence_async_shared. */
template <int kStages> struct Gathering {
  static constexpr uint32_t kArrivals = 32;
  Ring<kStages> ring;

  __device__ __forceinline__ void begin(uint64_t (&empty)[kStages]) {
    mbarrier_wait(&empty[ring.slot], ring.parity ^ 1);
  }
  __device__ __forceinline__ void end(uint64_t (&full)[kStages]) {
    copy_async_arrive(&full[ring.slot]);
    ring.advance();
  }
};

/* By one thread: load(slot, block) for blocks `begin` to `end` - 1, a stage of `bytes` each, two at a time where there
 * are two: neighbours along K are neighbours in memory, which likes to hear of them together. */
template <int kStages, class Load>
__device__ __forceinline__ void load_in_pairs(Ring<kStages>& ring, uint64_t (&full)[kStages],
                                              uint64_t (&empty)[kStages], uint32_t bytes, int32_t begin, int32_t end,
                                              Load load) {
  for (int32_t block = begin; block < end; block += 2) {
    Ring<kStages> second = ring;
    second.advance();
    const bool two = block + 1 < end;
    mbarrier_wait(&empty[ring.slot], ring.parity ^ 1);
    if (two) mbarrier_wait(&empty[second.slot], second.parity ^ 1);
    mbarrier_arrive_expect(&full[ring.slot], bytes);
    load(ring.slot, block);
    ring = second;
    if (!two) return;
    mbarrier_arrive_expect(&full[second.slot], bytes);
    load(second.slot, block + 1);
    ring.advance();
  }
}

/* Where the 16-byte piece `piece` of row `row` of a tile with rows of 128 bytes lies under the 128-byte swizzle. */
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t piece) {
  return row * 128 + (piece ^ row % 8) * 16;
}

} // namespace tdm

#endif
