#ifndef KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_CUH
#define KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_CUH

/* The rows of a cache write, shared with mla_norm_write. mla_kv_write_sm90.cu has the steps. */

#include "kernels/device/step.cuh"
#include "kernels/mla_kv_write/mla_kv_write_params.h"
#include "kernels/rope/rope.cuh"

namespace tdm {

constexpr int32_t kKvLatent = 512, kKvPageTokens = 64;

__device__ __forceinline__ void mla_kv_store_row(const tdm_mla_kv_write_params& p, void* data, int64_t start,
                                                 const float (&latent)[2][8], RopePair pair, int32_t lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) store_8(latent[i], data, p.cache_dtype, start + 256 * i + 8 * lane, p.vectors != 0);
  const int2 place = rope_out(p.style, lane);
  store_element(data, p.cache_dtype, start + kKvLatent + place.x, pair.even);
  store_element(data, p.cache_dtype, start + kKvLatent + place.y, pair.odd);
}

/* Where a row comes from: eight of its columns, and one. */
struct MlaKvInput {
  const tdm_mla_kv_write_params& p;

  __device__ __forceinline__ void load_8(int32_t row, int32_t column, float (&v)[8]) const {
    tdm::load_8(v, p.kv, p.kv_dtype, row * p.kv_stride + column, p.vectors != 0);
  }
  __device__ __forceinline__ float load_1(int32_t row, int32_t column) const {
    return load_element(p.kv, p.kv_dtype, row * p.kv_stride + column);
  }
};

/* All rows, as CTA `cta` of `n_ctas`, any number of warps each; after the wait. A row's position and slot come beside
 * the live count: then the row and its angles are one latency. */
template <class Input>
__device__ __forceinline__ void mla_kv_write_rows(const tdm_mla_kv_write_params& p, const Input& input, int32_t cta,
                                                  int32_t n_ctas) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warps = static_cast<int32_t>(blockDim.x / 32);
  int32_t row = cta * warps + static_cast<int32_t>(threadIdx.x / 32), position = -1, slot = -1;
  const auto fetch = [&] {
    if (row >= p.rows) return;
    position = fetch_i32(p.positions + row);
    slot = fetch_i32(p.slots + row);
  };
  fetch();
  const int32_t live = live_rows(p.n_tokens, p.rows);
  while (row < live) {
    float latent[2][8], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      input.load_8(row, 256 * i + 8 * lane, latent[i]);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += latent[i][j] * latent[i][j];
    }
    const int2 in = rope_in(p.style, lane);
    RopePair pair{input.load_1(row, kKvLatent + in.x), input.load_1(row, kKvLatent + in.y)};
    pair = rope_rotate(pair, rope_angle(p.cos_sin, p.cos_sin_stride, position, p.n_positions, false, lane));
    const int32_t mine = row, to = slot;
    row += n_ctas * warps;
    fetch();

    const float inverse = __frcp_rn(__fsqrt_rn(lanes_sum<32>(squares) / kKvLatent + p.eps));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float weight[8];
      load_8(weight, p.norm_weight, p.weight_dtype, 256 * i + 8 * lane, true);
#pragma unroll
      for (int j = 0; j < 8; ++j) latent[i][j] = latent[i][j] * inverse * weight[j];
    }
    if (to >= 0 && to < p.n_slots)
      mla_kv_store_row(p, p.cache, to / kKvPageTokens * p.page_stride + to % kKvPageTokens * p.token_stride, latent,
                       pair, lane);
    if (p.out != nullptr) mla_kv_store_row(p, p.out, mine * p.out_stride, latent, pair, lane);
  }
}

} // namespace tdm

#endif
