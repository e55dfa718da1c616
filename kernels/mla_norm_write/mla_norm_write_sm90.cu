/* Norm of the low-rank queries, and the MLA latent to the paged cache, for sm_90a: two ops whose rows are columns of
 * one projection, in one launch.
 *
 * 1. The first norm_ctas CTAs are those of rmsnorm (rmsnorm.cuh): a CTA a row.
 * 2. The others are those of mla_kv_write (mla_kv_write.cuh): a warp a row.
 *
 * Grid: both, what fits on the SMs at once shared by the warps that a row takes; block: rmsnorm's, so that sums have
 * its order. Shared: rmsnorm's. Limit: latency. */

#include "kernels/mla_kv_write/mla_kv_write.cuh"
#include "kernels/mla_norm_write/mla_norm_write_params.h"
#include "kernels/rmsnorm/rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(1024)
    tdm_mla_norm_write_sm90(const __grid_constant__ tdm_mla_norm_write_params p,
                            const __grid_constant__ tdm_step_sync sync) {
  const int32_t cta = static_cast<int32_t>(blockIdx.x);
  if (cta < p.norm_ctas) {
    tdm::rmsnorm_rows(p.norm, sync, cta, p.norm_ctas);
  } else {
    tdm::step_begin(sync);
    tdm::mla_kv_write_rows(p.write, tdm::MlaKvInput{p.write}, cta - p.norm_ctas,
                           static_cast<int32_t>(gridDim.x) - p.norm_ctas);
  }
  tdm::step_end(sync);
}
