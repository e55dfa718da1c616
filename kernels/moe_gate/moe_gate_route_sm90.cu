/* The second launch of moe_gate and moe_norm_gate for sm_90a: a CTA a row adds up the segments of the router's sum,
 * ascending, and a warp routes as moe_route does, with its rehearsal.
 *
 * That the segments meet between two launches takes less time than to have them meet in one, or to count CTAs and have
 * the last one go on: a launch begins under the one before it.
 *
 * Block: 128 threads. Limit: latency: partials, routing. */

#include "kernels/device/step.cuh"
#include "kernels/moe_gate/moe_gate_params.h"
#include "kernels/moe_route/moe_route.cuh"

namespace {

constexpr int32_t kRouteThreads = TDM_MOE_GATE_ROUTE_THREADS;

/* A row's logits: segments ascending, as add_segments, all of them asked for at once. */
template <int kPer> struct Logits {
  static constexpr int32_t kMost = 16, kEach = 32 * kPer / kRouteThreads;
  const tdm_moe_gate_route_params& p;
  float parts[kEach][kMost];

  __device__ __forceinline__ explicit Logits(const tdm_moe_gate_route_params& params) : p(params) {
  }
  __device__ static __forceinline__ int32_t expert(int i) {
    return static_cast<int32_t>(threadIdx.x) + i * kRouteThreads;
  }
  __device__ __forceinline__ void load(int32_t row) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int s = 0; s < kMost; ++s)
        parts[i][s] =
            __ldcg(p.partials + int64_t{min(s, p.segments - 1) * p.route.rows + row} * (32 * kPer) + expert(i));
  }
  __device__ __forceinline__ void add(int32_t row, float* logits) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < kMost; ++s) sum += s < p.segments ? parts[i][s] : 0.0f; /* no sum is -0 */
      logits[expert(i)] = sum;
      p.logits[row * p.route.logits_stride + expert(i)] = sum;
    }
  }
};

template <int kPer>
__device__ __forceinline__ void route_rows(const tdm_moe_gate_route_params& p, float* sums, const tdm_step_sync& sync) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  const bool routes = threadIdx.x < 32;
  float bias[kPer], logits[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) bias[i] = 0.0f, logits[i] = static_cast<float>(lane);
  const auto load_bias = [&] {
#pragma unroll
    for (int i = 0; i < kPer; ++i) bias[i] = p.route.bias == nullptr ? 0.0f : p.route.bias[32 * i + lane];
  };
  if (routes && sync.fetches_ahead != 0) load_bias();
  Logits<kPer> parts(p);
  int32_t row = -1, live = 0;
#pragma unroll 1
  for (;;) {
    if (routes) tdm::route_row<kPer>(p.route, row, logits, bias, lane); /* the first turn is a rehearsal */
    if (row < 0) {
      tdm::step_begin(sync, false);
      tdm::step_admit_next(); /* late: the experts may then read what the norm wrote */
      if (routes && sync.fetches_ahead == 0) load_bias();
      row = static_cast<int32_t>(blockIdx.x);
      parts.load(row); /* beside the live count */
      live = tdm::live_rows(p.route.n_tokens, p.route.rows);
    } else {
      row += static_cast<int32_t>(gridDim.x);
      if (row < live) parts.load(row);
      __syncthreads();
    }
    if (row >= live) return;
    parts.add(row, sums);
    __syncthreads();
    if (!routes) continue;
#pragma unroll
    for (int i = 0; i < kPer; ++i) logits[i] = sums[32 * i + lane];
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MOE_GATE_ROUTE_THREADS)
    tdm_moe_gate_route_sm90(const __grid_constant__ tdm_moe_gate_route_params p,
                            const __grid_constant__ tdm_step_sync sync) {
  __shared__ float logits[TDM_MOE_GATE_EXPERTS];
  if (p.route.experts == 256)
    route_rows<8>(p, logits, sync);
  else
    route_rows<12>(p, logits, sync);
  tdm::step_end(sync);
}
