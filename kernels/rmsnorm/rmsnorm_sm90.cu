/* RMSNorm with residual add and FP8 quantisation, for sm_90a.
 *
 * 1. A CTA takes rows blockIdx.x, + gridDim.x, ...
 * 2. x + delta, rounded to the residual's dtype and stored; the f32 row stays in registers, where 8 columns a thread
 * are enough and accesses are aligned, else in shared memory; its squares are summed.
 * 3. The sum crosses the CTA in a fixed order (it depends on the row length alone).
 * 4. Normalise, weigh, store; blocks of 128 columns are quantised from the f32 value by half a warp each.
 * 5. Rows from the live count to the next multiple of 4 get zero scales.
 *
 * Grid: up to one CTA a row; block: a thread for 8 columns, 128 .. 1024. Shared: the row as f32, and 32 floats.
 * Limit: latency (load, sum, store) at few rows; device bandwidth at many. */

#include "kernels/rmsnorm/rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(1024)
    tdm_rmsnorm_sm90(const __grid_constant__ tdm_rmsnorm_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::rmsnorm_rows(p, sync, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
  tdm::step_end(sync);
}
