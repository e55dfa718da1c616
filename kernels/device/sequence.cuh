#ifndef KERNELS_DEVICE_SEQUENCE_CUH
#define KERNELS_DEVICE_SEQUENCE_CUH

/* The sequences of an attention batch, read from device memory by whole warps. Wrong data cannot lead outside of the
 * batch: starts are clamped to [0, rows]. */

#include <cstdint>

namespace tdm {

/* Values of tdm_seq_kind. */
constexpr int32_t kAbsorbed = 1, kExpanded = 2;

struct Sequences {
  const int32_t* start;
  const int32_t* kind;
  int32_t count; /* live ones */
  int32_t most;  /* that the arrays have room for */
  int32_t rows;  /* of the batch */

  __device__ __forceinline__ int32_t begin(int32_t s) const {
    return min(max(start[s], 0), rows);
  }
  __device__ __forceinline__ int32_t tokens(int32_t s) const {
    return max(min(start[s + 1], rows) - begin(s), 0);
  }
};

__device__ __forceinline__ Sequences live_sequences(const int32_t* n_seqs, const int32_t* start, const int32_t* kind,
                                                    int32_t most, int32_t rows) {
  return Sequences{start, kind, min(max(*n_seqs, 0), most), most, rows};
}

/* A unit of work of a sequence. */
struct UnitPlace {
  int32_t sequence; /* -1: there is no such unit */
  int32_t unit;     /* within its sequence; then how many there are */
};

/* Where a search starts: units are asked for in ascending order. */
struct UnitCursor {
  int32_t first = 0;  /* sequence, a multiple of 32 */
  int32_t before = 0; /* units of the sequences before it */
};

/* Where unit number `unit` is, units_of(s) being how many sequence s has. For converged warps; every lane gets it. */
template <class UnitsOf>
__device__ __forceinline__ UnitPlace find_unit(const Sequences& seqs, int32_t unit, UnitCursor& cursor,
                                               UnitsOf units_of) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  for (; cursor.first < seqs.most; cursor.first += 32) {
    /* Asked before the number of live sequences is here; what lies beyond it does not count. */
    const int32_t s = cursor.first + lane, asked = s < seqs.most ? units_of(s) : 0;
    const int32_t units = s < seqs.count ? asked : 0;
    int32_t sum = units;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t lower = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += lower;
    }
    const uint32_t beyond = __ballot_sync(~0u, cursor.before + sum > unit);
    if (beyond != 0) {
      const int32_t at = __ffs(static_cast<int32_t>(beyond)) - 1;
      return UnitPlace{cursor.first + at, unit - cursor.before - __shfl_sync(~0u, sum - units, at)};
    }
    const int32_t all = cursor.before + __shfl_sync(~0u, sum, 31);
    if (cursor.first + 32 >= seqs.count) return UnitPlace{-1, all};
    cursor.before = all;
  }
  return UnitPlace{-1, cursor.before};
}

} // namespace tdm

#endif
