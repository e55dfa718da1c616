/* MLA latent to the paged cache for sm_90a: RMSNorm of 512 values, rotation of 64, one rounding.
 *
 * 1. A warp takes a token: 16 latent values and one pair of the rope part a lane.
 * 2. Sum of squares across lanes in a fixed order, normalise, weigh; rotate.
 * 3. Store to the token's slot of the cache (slot -1: not) and to the plain output where there is one.
 *
 * Grid: any, tokens are walked with a grid stride. Block: 128 threads. Shared: none. Limit: latency. */

#include "kernels/device/step.cuh"
#include "kernels/mla_kv_write/mla_kv_write_params.h"
#include "kernels/rope/rope.cuh"

namespace {

constexpr int32_t kLatent = 512, kPageTokens = 64;

__device__ void store_row(const tdm_mla_kv_write_params& p, void* data, int64_t start, const float (&latent)[2][8],
                          tdm::RopePair pair, int32_t lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) tdm::store_8(latent[i], data, p.cache_dtype, start + 256 * i + 8 * lane, p.vectors != 0);
  const int2 place = tdm::rope_out(p.style, lane);
  tdm::store_element(data, p.cache_dtype, start + kLatent + place.x, pair.even);
  tdm::store_element(data, p.cache_dtype, start + kLatent + place.y, pair.odd);
}

} // namespace

extern "C" __global__ void __launch_bounds__(128)
    tdm_mla_kv_write_sm90(const __grid_constant__ tdm_mla_kv_write_params p,
                          const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows), lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t warps = static_cast<int32_t>(gridDim.x * blockDim.x / 32);
  for (int32_t row = static_cast<int32_t>((blockIdx.x * blockDim.x + threadIdx.x) / 32); row < live; row += warps) {
    const int64_t start = row * p.kv_stride;
    float latent[2][8], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      tdm::load_8(latent[i], p.kv, p.kv_dtype, start + 256 * i + 8 * lane, p.vectors != 0);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += latent[i][j] * latent[i][j];
    }
    const int2 in = tdm::rope_in(p.style, lane);
    tdm::RopePair pair{tdm::load_element(p.kv, p.kv_dtype, start + kLatent + in.x),
                       tdm::load_element(p.kv, p.kv_dtype, start + kLatent + in.y)};
    pair = tdm::rope_rotate(pair, p.cos_sin, p.cos_sin_stride, p.positions[row], p.n_positions, false, lane);

    const float inverse = __frcp_rn(__fsqrt_rn(tdm::lanes_sum<32>(squares) / kLatent + p.eps));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float weight[8];
      tdm::load_8(weight, p.norm_weight, p.weight_dtype, 256 * i + 8 * lane, true);
#pragma unroll
      for (int j = 0; j < 8; ++j) latent[i][j] = latent[i][j] * inverse * weight[j];
    }
    const int32_t slot = p.slots[row];
    if (slot >= 0 && slot < p.n_slots)
      store_row(p, p.cache, slot / kPageTokens * p.page_stride + slot % kPageTokens * p.token_stride, latent, pair,
                lane);
    if (p.out != nullptr) store_row(p, p.out, row * p.out_stride, latent, pair, lane);
  }
  tdm::step_end(sync);
}
