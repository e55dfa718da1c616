/* Merges the parts of a row that mla_decode's kernels left in scratch: a warp for 128 value columns of a head. Splits
 * are folded into their group, groups into the whole, both ascending. */

#include "kernels/mla_decode/mla_decode_units.cuh"

namespace {

constexpr int32_t kColumns = TDM_MLA_DECODE_MERGE_COLUMNS, kQuarters = tdm::kLatent / kColumns, kAhead = 8;

struct Part {
  float base = -tdm::kInfinity, sum = 0.0f, o[4] = {};

  __device__ __forceinline__ void fold(float other_base, float other_sum, const float (&other)[4]) {
    const float to = fmaxf(base, other_base);
    const float from = tdm::base_factor(base, to), part = tdm::base_factor(other_base, to);
    base = to;
    tdm::fold(sum, from, other_sum, part);
#pragma unroll
    for (int i = 0; i < 4; ++i) tdm::fold(o[i], from, other[i], part);
  }
};

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_DECODE_MERGE_THREADS)
    tdm_mla_decode_merge_sm90(const __grid_constant__ tdm_mla_decode_params p) {
  const tdm::Sequences seqs = tdm::sequences(p);
  const int32_t pieces = p.heads * kQuarters;
  const auto units_of = [&](int32_t s) {
    return seqs.kind[s] == tdm::kAbsorbed && tdm::length(p, s) > p.split_keys ? seqs.tokens(s) * pieces : 0;
  };
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  tdm::UnitCursor cursor;
  for (int32_t index = static_cast<int32_t>((blockIdx.x * blockDim.x + threadIdx.x) / 32);;
       index += static_cast<int32_t>(gridDim.x * blockDim.x / 32)) {
    const tdm::UnitPlace place = tdm::find_unit(seqs, index, cursor, units_of);
    if (place.sequence < 0) return;
    const int32_t s = place.sequence, token = place.unit / pieces, head = place.unit % pieces / kQuarters;
    const int32_t splits = tdm::splits_of(p, tdm::length(p, s) - seqs.tokens(s) + token + 1);
    if (splits <= 1) continue;
    const int64_t row = seqs.begin(s) + token, first = (row * p.heads + head) * p.max_splits;
    const int32_t column = place.unit % kQuarters * kColumns + 4 * lane;
    const float2* stats = reinterpret_cast<const float2*>(p.stats) + first;
    const float* values = p.values + first * tdm::kLatent + column;
    Part whole, group;
    int32_t in_group = 0;
    for (int32_t begin = 0; begin < splits; begin += kAhead) {
      float2 stat[kAhead];
      float4 value[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i < splits) {
          stat[i] = stats[begin + i];
          value[i] = *reinterpret_cast<const float4*>(values + int64_t{begin + i} * tdm::kLatent);
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i >= splits) break;
        group.fold(stat[i].x, stat[i].y, {value[i].x, value[i].y, value[i].z, value[i].w});
        if (++in_group == p.group_splits || begin + i + 1 == splits) {
          whole.fold(group.base, group.sum, group.o);
          group = Part{};
          in_group = 0;
        }
      }
    }
    const int64_t offset = row * p.out_stride + head * p.out_head_stride + column;
    tdm::store_pair(p, offset, __fdiv_rn(whole.o[0], whole.sum), __fdiv_rn(whole.o[1], whole.sum));
    tdm::store_pair(p, offset + 2, __fdiv_rn(whole.o[2], whole.sum), __fdiv_rn(whole.o[3], whole.sum));
  }
}
