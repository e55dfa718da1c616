/* Where a lane's CTAs run: each writes the number of its SM, after keeping it busy long enough for the others to be
 * placed too, or until the host opens a gate. */

#include "kernels/device/step.cuh"
#include "tests/gpu/smid_params.h"

extern "C" __global__ void __launch_bounds__(128)
    tdm_test_smid(const __grid_constant__ tdm_test_smid_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  uint32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  const int64_t start = clock64();
  while (clock64() - start < p.cycles) {
  }
  if (threadIdx.x == 0) {
    while (p.gate != nullptr && *p.gate == 0) __nanosleep(1000);
    p.out[blockIdx.x] = static_cast<int32_t>(sm);
    if (p.after != nullptr) p.out[gridDim.x + blockIdx.x] = p.after[blockIdx.x];
  }
  tdm::step_end(sync);
}
