/* Merges the parts of a row that mla_decode's kernels left in scratch, 128 value columns of a head at a time. Splits
 * are folded into their branch, branches into their group, groups into the whole, all ascending. What the kernels noted
 * says how many parts a row has, so no sequence is looked up.
 *
 * A few parts that are branches or groups: a warp folds them all. Otherwise the warps of a CTA fold a branch each, or
 * where splits are branches a group, in turn, and the first warp folds those. Limit: latency, one of the count, one of
 * the parts. */

#include "kernels/mla_decode/mla_decode_units.cuh"

namespace {

constexpr int32_t kColumns = TDM_MLA_DECODE_MERGE_COLUMNS, kPieces = tdm::kLatent / kColumns, kAhead = 4;

struct Part {
  float base = -tdm::kInfinity, sum = 0.0f, o[4] = {};

  __device__ __forceinline__ void fold(float other_base, float other_sum, const float4& other) {
    const float to = fmaxf(base, other_base);
    const float from = tdm::base_factor(base, to), part = tdm::base_factor(other_base, to);
    base = to;
    tdm::fold(sum, from, other_sum, part);
    tdm::fold(o[0], from, other.x, part);
    tdm::fold(o[1], from, other.y, part);
    tdm::fold(o[2], from, other.z, part);
    tdm::fold(o[3], from, other.w, part);
  }
  __device__ __forceinline__ void fold(const Part& other) {
    fold(other.base, other.sum, make_float4(other.o[0], other.o[1], other.o[2], other.o[3]));
  }
};

static_assert(sizeof(Part) == TDM_MLA_DECODE_PART_BYTES, "launch size");

/* A row's columns of a head. */
struct Piece {
  int32_t row, head, column, splits;
  const float2* stats;
  const float4* values;

  /* `place`: number of the piece; without splits there is nothing to do. */
  __device__ __forceinline__ Piece(const tdm_mla_decode_params& p, int32_t place, int32_t begin, int32_t end)
      : row(place / (p.heads * kPieces)), head(place / kPieces % p.heads) {
    column = place % kPieces * kColumns + 4 * static_cast<int32_t>(threadIdx.x % 32);
    splits = row >= begin && row < end ? min(p.splits[row], p.max_splits) : 0;
    const int64_t first = (int64_t{row} * p.heads + head) * p.max_splits;
    stats = reinterpret_cast<const float2*>(p.stats) + first;
    values = reinterpret_cast<const float4*>(p.values + first * tdm::kLatent + column);
  }

  __device__ __forceinline__ float4 value(int32_t split) const {
    return values[int64_t{split} * (tdm::kLatent / 4)];
  }

  __device__ __forceinline__ void store(const tdm_mla_decode_params& p, const Part& whole) const {
    const int64_t offset = row * p.out_stride + head * p.out_head_stride + column;
    tdm::store_pair(p, offset, __fdiv_rn(whole.o[0], whole.sum), __fdiv_rn(whole.o[1], whole.sum));
    tdm::store_pair(p, offset + 2, __fdiv_rn(whole.o[2], whole.sum), __fdiv_rn(whole.o[3], whole.sum));
  }
};

/* Rows of the batch that belong to sequences. */
struct Rows {
  int32_t begin, end;
  __device__ __forceinline__ explicit Rows(const tdm_mla_decode_params& p) {
    const int32_t count = min(max(*p.n_seqs, 0), p.seqs);
    begin = max(p.seq_start[0], 0);
    end = count > 0 ? min(p.seq_start[count], p.rows) : 0;
  }
};

/* Of splits that are branches or groups. */
__device__ __forceinline__ void merge(const tdm_mla_decode_params& p) {
  const Rows rows(p);
  for (int32_t place = static_cast<int32_t>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
       place < rows.end * p.heads * kPieces; place += static_cast<int32_t>(gridDim.x * blockDim.x / 32)) {
    const Piece piece(p, place, rows.begin, rows.end);
    if (piece.splits <= 1) continue;
    Part whole, group;
    int32_t in_group = 0;
    for (int32_t begin = 0; begin < piece.splits; begin += kAhead) {
      float2 stat[kAhead];
      float4 value[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i < piece.splits) {
          stat[i] = piece.stats[begin + i];
          value[i] = piece.value(begin + i);
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i >= piece.splits) break;
        group.fold(stat[i].x, stat[i].y, value[i]);
        if (++in_group < p.group_branches && begin + i + 1 < piece.splits) continue;
        whole.fold(group);
        group = Part{};
        in_group = 0;
      }
    }
    piece.store(p, whole);
  }
}

/* Branches of a row, or groups of splits that are branches; by lane. */
__device__ __forceinline__ void merge_many(const tdm_mla_decode_params& p, Part (*units)[32]) {
  const Rows rows(p);
  const bool branches = p.branch_splits > 1;
  const int32_t unit_splits = branches ? p.branch_splits : p.group_branches;
  const int32_t group_units = branches ? p.group_branches : 1;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t warps = static_cast<int32_t>(blockDim.x / 32);
  for (int32_t place = static_cast<int32_t>(blockIdx.x); place < rows.end * p.heads * kPieces;
       place += static_cast<int32_t>(gridDim.x)) {
    const Piece piece(p, place, rows.begin, rows.end);
    if (piece.splits <= 1) continue;
    const int32_t count = (piece.splits + unit_splits - 1) / unit_splits;
    for (int32_t u = warp; u < count; u += warps) {
      Part unit;
      const int32_t begin = u * unit_splits, end = min(begin + unit_splits, piece.splits);
#pragma unroll 4
      for (int32_t split = begin; split < end; ++split) {
        const float2 stat = piece.stats[split];
        unit.fold(stat.x, stat.y, piece.value(split));
      }
      units[u][lane] = unit;
    }
    __syncthreads();
    if (warp == 0) {
      Part whole, group;
      for (int32_t u = 0; u < count; ++u) {
        group.fold(units[u][lane]);
        if ((u + 1) % group_units != 0 && u + 1 < count) continue;
        whole.fold(group);
        group = Part{};
      }
      piece.store(p, whole);
    }
    __syncthreads();
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_MERGE_THREADS)
    tdm_mla_decode_merge_sm90(const __grid_constant__ tdm_mla_decode_params p,
                              const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  merge(p);
  tdm::step_end(sync);
}

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_MANY_THREADS)
    tdm_mla_decode_merge_many_sm90(const __grid_constant__ tdm_mla_decode_params p,
                                   const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 16);
  tdm::step_begin(sync);
  merge_many(p, reinterpret_cast<Part(*)[32]>(memory));
  tdm::step_end(sync);
}
