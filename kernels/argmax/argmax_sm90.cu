/* Index of the largest logit of a row for sm_90a.
 *
 * 1. A CTA takes rows blockIdx.x, + gridDim.x, ...; a thread walks every 1024th logit, ascending.
 * 2. The best of the threads meet in shuffles, those of the warps in shared memory; equal values: the lower index, so
 *    the order of meeting does not matter.
 *
 * Grid: up to one CTA a row; block: 1024 threads. Shared: 256 bytes. Limit: one SM's load bandwidth at few rows. */

#include "kernels/argmax/argmax.cuh"
#include "kernels/argmax/argmax_params.h"
#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"

extern "C" __global__ void __launch_bounds__(TDM_ARGMAX_THREADS, 1)
    tdm_argmax_sm90(const __grid_constant__ tdm_argmax_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  __shared__ tdm::ArgmaxScratch scratch;
  const int32_t live = tdm::live_rows(p.n_rows, p.rows);
  for (int32_t row = static_cast<int32_t>(blockIdx.x); row < live; row += static_cast<int32_t>(gridDim.x)) {
    const int32_t index = tdm::block_argmax(p.logits + row * p.logits_stride, p.cols, scratch);
    if (threadIdx.x == 0) p.out[row] = index;
    __syncthreads();
  }
  tdm::step_end(sync);
}
