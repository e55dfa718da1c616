/* MLA latent to the paged cache for sm_90a: RMSNorm of 512 values, rotation of 64, one rounding.
 *
 * 1. A warp takes a token: 16 latent values and one pair of the rope part a lane.
 * 2. Sum of squares across lanes in a fixed order, normalise, weigh; rotate.
 * 3. Store to the token's slot of the cache (slot -1: not) and to the plain output where there is one.
 *
 * Grid: any, tokens are walked with a grid stride. Block: 128 threads. Shared: none. Limit: latency. */

#include "kernels/mla_kv_write/mla_kv_write.cuh"

extern "C" __global__ void __launch_bounds__(128, 8)
    tdm_mla_kv_write_sm90(const __grid_constant__ tdm_mla_kv_write_params p,
                          const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  tdm::mla_kv_write_rows(p, tdm::MlaKvInput{p}, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
  tdm::step_end(sync);
}
