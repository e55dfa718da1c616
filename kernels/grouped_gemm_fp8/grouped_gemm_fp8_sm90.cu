/* Grouped block-scaled FP8 GEMM for sm_90a: the plain form of gemm_fp8 (gemm_fp8_plain.cuh), of which every tile
 * belongs to a group of rows with weights of its own.
 *
 * 1. One warp bounds the groups of device memory and adds up their tiles in shared memory.
 * 2. Persistent CTAs walk the tiles, group by group: so a group's weights come from device memory once.
 * 3. A tile begins at its group's first row, wherever that is; what it reads past the group's end is not stored.
 *
 * Limit: device bandwidth on the weights up to about 150 rows a group, tensor cores beyond. */

#include "kernels/gemm_fp8/gemm_fp8_plain.cuh"
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_params.h"

#define GROUPED(tokens, warpgroups, pieces, cluster, stages)                                                           \
  extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(128 * (warpgroups) + 128, 1)            \
      tdm_grouped_gemm_fp8_m##tokens##_sm90(const __grid_constant__ tdm_grouped_gemm_fp8_params p,                     \
                                            const __grid_constant__ tdm_step_sync sync) {                              \
    static_assert(64 * (warpgroups) * (pieces) == (tokens), "a tile's rows");                                          \
    tdm::GemmFp8Plain<warpgroups, pieces, cluster, stages, false, true>::run(p.gemm, p.groups, sync);                  \
  }
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_variants.inc"
