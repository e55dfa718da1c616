/* FP8 quantisation of activations in blocks of 1 x 128, for sm_90a.
 *
 * 1. Half a warp takes a block of 128 columns of a row: 8 values a lane, one 16-byte load where alignment allows.
 * 2. amax over the 16 lanes, scale, division, conversion, one 8-byte store; lane 0 stores the scale.
 * 3. Rows from the live count to the next multiple of 4 get zero scales.
 *
 * Grid: any; the blocks of all rows are walked with a grid stride. Block: 256 threads. Shared: none.
 * Limit: device bandwidth. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/quant/quant_params.h"

extern "C" __global__ void __launch_bounds__(256)
    tdm_quant_sm90(const __grid_constant__ tdm_quant_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows);
  const int32_t end = (live + 3) / 4 * 4;
  const int64_t blocks = p.cols / 128, total = blocks * end;
  const int64_t lane = threadIdx.x % 16;
  /* A warp takes two neighbouring blocks. */
  for (int64_t pair = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32 * 2; pair < total;
       pair += int64_t{gridDim.x} * blockDim.x / 32 * 2) {
    const int64_t item = pair + threadIdx.x % 32 / 16;
    const int64_t row = item / blocks, block = item % blocks;
    const bool inside = row < live, scale_inside = item < total;
    float v[8] = {};
    if (inside) tdm::load_8(v, p.x, p.x_dtype, row * p.x_stride + block * 128 + lane * 8, p.vectors != 0);
    float scale;
    const uint2 bytes = tdm::quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
    if (inside) tdm::store_bytes_8(p.out_q + row * p.out_q_stride + block * 128 + lane * 8, bytes, p.vectors != 0);
    if (scale_inside && lane == 0) p.out_scale[block * p.out_scale_stride + row] = inside ? scale : 0.0f;
  }
  tdm::step_end(sync);
}
