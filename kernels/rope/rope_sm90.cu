/* Rotary embedding of 64 values a head for sm_90a.
 *
 * 1. A warp takes a head of a token, a lane a pair.
 * 2. Load the pair, rotate in f32 with the position's row of the table, store with one rounding.
 *
 * Grid: any; the heads of all tokens are walked with a grid stride. Block: 256 threads. Shared: none.
 * x may be out: a warp has read its head before it writes. Limit: latency; device bandwidth at many tokens. */

#include "kernels/device/step.cuh"
#include "kernels/rope/rope.cuh"
#include "kernels/rope/rope_params.h"

extern "C" __global__ void __launch_bounds__(256)
    tdm_rope_sm90(const __grid_constant__ tdm_rope_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int64_t heads = int64_t{tdm::live_rows(p.n_tokens, p.rows)} * p.heads;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  const int2 in = tdm::rope_in(p.style, lane), out = tdm::rope_out(p.style, lane);
  for (int64_t item = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; item < heads;
       item += int64_t{gridDim.x} * blockDim.x / 32) {
    const int64_t row = item / p.heads, head = item % p.heads;
    const int64_t from = row * p.x_stride + head * p.x_head_stride, to = row * p.out_stride + head * p.out_head_stride;
    tdm::RopePair v{tdm::load_element(p.x, p.x_dtype, from + in.x), tdm::load_element(p.x, p.x_dtype, from + in.y)};
    __syncwarp();
    v = tdm::rope_rotate(v, p.cos_sin, p.cos_sin_stride, p.positions[row], p.n_positions, p.inverse != 0, lane);
    tdm::store_element(p.out, p.out_dtype, to + out.x, v.even);
    tdm::store_element(p.out, p.out_dtype, to + out.y, v.odd);
  }
  tdm::step_end(sync);
}
