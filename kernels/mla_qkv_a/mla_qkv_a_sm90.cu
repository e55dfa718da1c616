/* Norm of the low-rank queries, and the MLA latent to the paged cache, for sm_90a, of a projection whose sum over K is
 * still in segments: mla_norm_write, but for where its rows come from.
 *
 * 1. gemm_fp8 has left the segments' sums apart, so that none of its CTAs waits for another.
 * 2. Eight columns of a row are loaded from all segments at once, added up in ascending order from 0, and rounded to
 * bf16 as gemm_fp8 would have stored them.
 * 3. The first norm_ctas CTAs then do what rmsnorm does, the others what mla_kv_write does.
 *
 * Grid: as mla_norm_write's; block: 256 threads at most. Shared: 32 floats. Limit: latency. */

#include "kernels/mla_kv_write/mla_kv_write.cuh"
#include "kernels/mla_qkv_a/mla_qkv_a_params.h"
#include "kernels/rmsnorm/rmsnorm.cuh"

namespace {

/* Columns from `first` on of the rows of all segments. */
struct Segments {
  static constexpr int kMost = TDM_MLA_QKV_A_SEGMENTS;
  struct Row {
    uint4 part[kMost][2];
  };
  const float* first;
  int64_t stride;
  int32_t columns, count;

  __device__ __forceinline__ void fetch(int32_t row, int32_t column, Row& row8) const {
    const float* const from = first + int64_t{row} * columns + column;
#pragma unroll
    for (int s = 0; s < kMost; ++s)
      if (s < count) {
        row8.part[s][0] = tdm::fetch_16(from + s * stride);
        row8.part[s][1] = tdm::fetch_16(from + s * stride + 4);
      }
  }
  __device__ __forceinline__ void unpack(int32_t, int32_t, bool, const Row& row8, float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0.0f;
#pragma unroll
    for (int s = 0; s < kMost; ++s) {
      if (s == count) break;
      float part[8];
      tdm::unpack_row_8(part, tdm::Row8{row8.part[s][0], row8.part[s][1]}, TDM_KERNEL_F32);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += part[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = tdm::round_element(v[i], TDM_KERNEL_BF16);
  }
  __device__ __forceinline__ void load_8(int32_t row, int32_t column, float (&v)[8]) const {
    Row row8{};
    fetch(row, column, row8);
    unpack(row, column, false, row8, v);
  }
  __device__ __forceinline__ float load_1(int32_t row, int32_t column) const {
    const float* const from = first + int64_t{row} * columns + column;
    float part[kMost] = {}, sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kMost; ++s)
      if (s < count) part[s] = from[s * stride];
#pragma unroll
    for (int s = 0; s < kMost; ++s) sum += part[s]; /* no sum is -0, so 0 changes none */
    return tdm::round_element(sum, TDM_KERNEL_BF16);
  }
};

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_QKV_A_COLUMNS / 8)
    tdm_mla_qkv_a_sm90(const __grid_constant__ tdm_mla_qkv_a_params p, const __grid_constant__ tdm_step_sync sync) {
  __shared__ float scratch[32];
  const int32_t cta = static_cast<int32_t>(blockIdx.x), norm_ctas = p.rows.norm_ctas;
  const Segments q{p.parts, p.segment_stride, p.columns, p.segments};
  const Segments kv{p.parts + p.rows.norm.cols, p.segment_stride, p.columns, p.segments};
  if (cta < norm_ctas) {
    tdm::rmsnorm_one_pass(p.rows.norm, q, sync, cta, norm_ctas, scratch);
  } else {
    tdm::step_begin(sync);
    tdm::mla_kv_write_rows(p.rows.write, kv, cta - norm_ctas, static_cast<int32_t>(gridDim.x) - norm_ctas);
  }
  tdm::step_end(sync);
}
