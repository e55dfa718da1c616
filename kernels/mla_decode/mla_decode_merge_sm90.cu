/* Merges the parts of a row that mla_decode's kernels left in scratch, 128 value columns of a head at a time. Splits
 * are folded into their group, groups into the whole, both ascending. What the kernels noted says how many parts a row
 * has, so no sequence is looked up.
 *
 * A few parts: a warp folds them all. Many: the warps of a CTA, up to eight, fold a group each, in turn, and the first
 * warp folds the groups. Limit: latency, one of the count, one of the parts. */

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
        if (++in_group == p.group_splits || begin + i + 1 == piece.splits) {
          whole.fold(group);
          group = Part{};
          in_group = 0;
        }
      }
    }
    piece.store(p, whole);
  }
}

/* groups: of a row, by lane */
__device__ __forceinline__ void merge_many(const tdm_mla_decode_params& p, Part (*groups)[32]) {
  const Rows rows(p);
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t warps = static_cast<int32_t>(blockDim.x / 32);
  for (int32_t place = static_cast<int32_t>(blockIdx.x); place < rows.end * p.heads * kPieces;
       place += static_cast<int32_t>(gridDim.x)) {
    const Piece piece(p, place, rows.begin, rows.end);
    if (piece.splits <= 1) continue;
    const int32_t count = (piece.splits + p.group_splits - 1) / p.group_splits;
    for (int32_t g = warp; g < count; g += warps) {
      Part group;
      const int32_t begin = g * p.group_splits, end = min(begin + p.group_splits, piece.splits);
#pragma unroll 4
      for (int32_t split = begin; split < end; ++split) {
        const float2 stat = piece.stats[split];
        group.fold(stat.x, stat.y, piece.value(split));
      }
      groups[g][lane] = group;
    }
    __syncthreads();
    if (warp == 0) {
      Part whole;
      for (int32_t g = 0; g < count; ++g) whole.fold(groups[g][lane]);
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

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_MERGE_THREADS)
    tdm_mla_decode_merge_many_sm90(const __grid_constant__ tdm_mla_decode_params p,
                                   const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 16);
  tdm::step_begin(sync);
  merge_many(p, reinterpret_cast<Part(*)[32]>(memory));
  tdm::step_end(sync);
}
