/* Rotary embedding of 64 values a head for sm_90a.
 *
 * 1. A warp takes a head of a token, a lane a pair.
 * 2. Load the pair, rotate in f32 with the position's row of the table, store with one rounding.
 *
 * Grid: any; the heads of all tokens are walked with a grid stride. Block: 256 threads. Shared: none.
 * x may be out: a warp has read its head before it writes. Limit: latency; device bandwidth at many tokens. */

#include "kernels/device/step.cuh"
#include "kernels/rope/rope.cuh"

extern "C" __global__ void __launch_bounds__(256)
    tdm_rope_sm90(const __grid_constant__ tdm_rope_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int64_t heads = int64_t{tdm::live_rows(p.n_tokens, p.rows)} * p.heads;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int64_t item = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; item < heads;
       item += int64_t{gridDim.x} * blockDim.x / 32)
    tdm::rope_heads<1>(p, item / p.heads, item % p.heads, lane);
  tdm::step_end(sync);
}
