/* The rulers of the benchmarks. Two read memory and keep nothing; one tells the clock.
 *
 * bench_bandwidth_loads_sm90: 16-byte loads, eight in flight a thread. Block 512, grid a few CTAs an SM.
 * bench_bandwidth_bulk_sm90: bulk copies of tile_bytes to shared memory by one thread, `stages` in flight. Block 32.
 *   Shared: tiles[stages], then a barrier a stage. Nothing reads the tiles, so a stage is filled again as soon as its
 *   copy has arrived.
 * bench_clock_sm90: cycles and nanoseconds of a wait. One thread. The timer may tick as rarely as once a
 *   microsecond, so both are taken right after a tick. */

#include "bench/ruler_params.h"
#include "kernels/device/bulk.cuh"
#include "kernels/device/step.cuh"

extern "C" __global__ void __launch_bounds__(512)
    bench_bandwidth_loads_sm90(const __grid_constant__ bench_bandwidth_params p,
                               const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const uint4* data = static_cast<const uint4*>(p.data);
  const int64_t count = p.bytes / 16, step = int64_t{gridDim.x} * blockDim.x;
  uint32_t folded = 0;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) folded ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += step) folded ^= data[i].x;
  if (folded == 0x12345678) *p.out = folded;
  tdm::step_end(sync);
}

namespace {

__device__ __forceinline__ void read_tiles(const bench_bandwidth_params& p, uint8_t* tiles, uint64_t* arrived) {
  for (int s = 0; s < p.stages; ++s) tdm::mbarrier_init(&arrived[s], 1);
  tdm::fence_barrier_init();
  const uint8_t* data = static_cast<const uint8_t*>(p.data);
  const int64_t count = p.bytes / p.tile_bytes;
  const int64_t mine = (count - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (int64_t i = 0; i < mine + p.stages; ++i) {
    const int s = static_cast<int>(i % p.stages);
    if (i >= p.stages) tdm::mbarrier_wait(&arrived[s], static_cast<uint32_t>(i / p.stages - 1) & 1);
    if (i >= mine) continue;
    tdm::mbarrier_arrive_expect(&arrived[s], static_cast<uint32_t>(p.tile_bytes));
    tdm::bulk_load(tiles + int64_t{s} * p.tile_bytes, data + (blockIdx.x + i * gridDim.x) * p.tile_bytes, &arrived[s],
                   static_cast<uint32_t>(p.tile_bytes));
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(32)
    bench_bandwidth_bulk_sm90(const __grid_constant__ bench_bandwidth_params p,
                              const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  extern __shared__ __align__(128) uint8_t tiles[];
  if (threadIdx.x == 0) read_tiles(p, tiles, reinterpret_cast<uint64_t*>(tiles + int64_t{p.stages} * p.tile_bytes));
  tdm::step_end(sync);
}

namespace {

__device__ __forceinline__ uint64_t wait_until(uint64_t time) {
  uint64_t now = tdm::global_nanoseconds();
  while (now < time) now = tdm::global_nanoseconds();
  return now;
}

} // namespace

extern "C" __global__ void __launch_bounds__(32)
    bench_clock_sm90(const __grid_constant__ bench_clock_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  if (threadIdx.x == 0) {
    const uint64_t begin = wait_until(tdm::global_nanoseconds() + 1);
    const int64_t first = clock64();
    const uint64_t end = wait_until(begin + static_cast<uint64_t>(p.ns));
    const int64_t last = clock64();
    p.sums[0] += last - first;
    p.sums[1] += static_cast<int64_t>(end - begin);
  }
  tdm::step_end(sync);
}
