/* Copies of chosen rows for sm_90a.
 *
 * 1. A thread copies 16 bytes of a row, in one access where alignment allows, else two bytes at a time.
 * 2. A row outside of x gives zeros and reads nothing.
 *
 * Grid: any; the bytes of all rows are walked with a grid stride. Block: 256 threads. Shared: none. Limit: latency. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/gather_rows/gather_rows_params.h"

extern "C" __global__ void __launch_bounds__(256)
    tdm_gather_rows_sm90(const __grid_constant__ tdm_gather_rows_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int64_t pieces = (p.row_bytes + 15) / 16, total = pieces * tdm::live_rows(p.n_rows, p.out_rows);
  for (int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; item < total;
       item += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = item / pieces, offset = item % pieces * 16, source = p.rows[row];
    const bool known = source >= 0 && source < p.x_rows;
    const uint8_t* from = p.x + source * p.x_stride + offset;
    uint8_t* to = p.out + row * p.out_stride + offset;
    if (p.vectors != 0) {
      *reinterpret_cast<uint4*>(to) = known ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    } else {
      for (int64_t i = 0; i < 16 && offset + i < p.row_bytes; i += 2)
        *reinterpret_cast<uint16_t*>(to + i) = known ? *reinterpret_cast<const uint16_t*>(from + i) : uint16_t{0};
    }
  }
  tdm::step_end(sync);
}
