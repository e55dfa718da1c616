/* DeepSeek-V3 routing for sm_90a: sigmoid scores, bias for the choice only, grouped top-k.
 *
 * 1. A warp takes a row. Scores in double, as the reference has them, so that the same experts win.
 * 2. Group scores: the sum of a group's two largest biased scores, a lane a group.
 * 3. The topk_group best groups stay; then top_k times the largest biased score that is left, lower index first.
 * 4. Weights are the scores of the chosen, normalised in the order of choice, scaled; NaN where the row had a NaN.
 *
 * 256 experts in 8 groups or one, and 384 in one, stay in registers (moe_route.cuh); anything else in shared memory.
 *
 * Grid: any, rows are walked with a grid stride. Block: 4 warps. Shared: a row's scores for each warp. Limit: latency.
 */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/moe_route/moe_route.cuh"

namespace {

using tdm::kInfinity;
using tdm::sigmoid;

/* Index of the largest of values[0..n), the lowest among equals, -1 when there is none. NaN marks what is taken. */
__device__ int32_t largest(const float* values, int32_t n, int32_t lane) {
  float best = -kInfinity;
  int32_t index = INT32_MAX;
  for (int32_t i = lane; i < n; i += 32) {
    const float v = values[i];
    if (v > best || (v == best && i < index)) {
      best = v;
      index = i;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(~0u, best, distance);
    const int32_t other_index = __shfl_xor_sync(~0u, index, distance);
    if (other > best || (other == best && other_index < index)) {
      best = other;
      index = other_index;
    }
  }
  return index == INT32_MAX ? -1 : index;
}

__device__ float group_score(const float* biased, int32_t n) {
  float first = -kInfinity, second = -kInfinity;
  for (int32_t i = 0; i < n; ++i) {
    const float v = biased[i];
    if (v > first) {
      second = first;
      first = v;
    } else if (v > second) {
      second = v;
    }
  }
  const float score = n == 1 ? first : first + second;
  return isnan(score) ? -kInfinity : score;
}

/* Marks the experts outside of the best groups as taken. */
__device__ void mask_groups(const tdm_moe_route_params& p, float* biased, float* groups, int32_t lane) {
  if (p.topk_group == p.n_group) return;
  const float nan = __uint_as_float(0x7fc00000u);
  const int32_t size = p.experts / p.n_group;
  for (int32_t g = lane; g < p.n_group; g += 32) groups[g] = group_score(biased + g * size, size);
  __syncwarp();
  for (int32_t j = 0; j < p.topk_group; ++j) {
    const int32_t g = largest(groups, p.n_group, lane);
    __syncwarp();
    if (lane == 0) groups[g] = nan;
    __syncwarp();
  }
  for (int32_t e = lane; e < p.experts; e += 32)
    if (!isnan(groups[e / size])) biased[e] = nan;
  __syncwarp();
}

/* The first turn is a rehearsal with logits of nothing, before the wait: the instructions of a row, some 20 KB, are
 * then on the SM when the router is done. In a layer, where other kernels' have been there, they take 2 us to come. */
template <int kPer> __device__ void route_rows(const tdm_moe_route_params& p, const tdm_step_sync& sync) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t step = static_cast<int32_t>(gridDim.x) * TDM_MOE_ROUTE_WARPS;
  float bias[kPer], logits[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) bias[i] = 0.0f, logits[i] = static_cast<float>(lane);
  const auto load_bias = [&] {
#pragma unroll
    for (int i = 0; i < kPer; ++i) bias[i] = p.bias == nullptr ? 0.0f : p.bias[32 * i + lane];
  };
  if (sync.fetches_ahead != 0) load_bias();
  int32_t row = -1, live = 0;
#pragma unroll 1
  do {
    tdm::route_row<kPer>(p, row, logits, bias, lane);
    if (row < 0) {
      tdm::step_begin(sync, false);
      tdm::step_admit_next(); /* late: FC1 may then read what came before the router */
      if (sync.fetches_ahead == 0) load_bias();
      live = tdm::live_rows(p.n_tokens, p.rows);
      row = static_cast<int32_t>(blockIdx.x) * TDM_MOE_ROUTE_WARPS + warp;
    } else {
      row += step;
    }
    if (row < p.rows) { /* beside the live count */
#pragma unroll
      for (int i = 0; i < kPer; ++i) logits[i] = p.logits[row * p.logits_stride + 32 * i + lane];
    }
  } while (row < live);
}

} // namespace

extern "C" __global__ void __launch_bounds__(32 * TDM_MOE_ROUTE_WARPS, 1)
    tdm_moe_route_sm90(const __grid_constant__ tdm_moe_route_params p, const __grid_constant__ tdm_step_sync sync) {
  const bool plain = p.topk_group == p.n_group || p.n_group * 32 == p.experts;
  if (plain && (p.experts == 256 || p.experts == 384)) {
    if (p.experts == 256)
      route_rows<8>(p, sync);
    else
      route_rows<12>(p, sync);
    return tdm::step_end(sync);
  }
  tdm::step_begin(sync, false);
  tdm::step_admit_next();
  TDM_DYNAMIC_SHARED(float, memory, 4);
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  float* scores = memory + warp * TDM_MOE_ROUTE_FLOATS(p.experts, p.n_group);
  float *biased = scores + p.experts, *groups = biased + p.experts;
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows), step = static_cast<int32_t>(gridDim.x) * TDM_MOE_ROUTE_WARPS;
  for (int32_t row = static_cast<int32_t>(blockIdx.x) * TDM_MOE_ROUTE_WARPS + warp; row < live; row += step) {
    bool spoilt = false;
    for (int32_t e = lane; e < p.experts; e += 32) {
      const float logit = p.logits[row * p.logits_stride + e];
      const float score = sigmoid(logit);
      const float sum = p.bias == nullptr ? score : score + p.bias[e];
      scores[e] = score;
      biased[e] = isnan(sum) ? -kInfinity : sum;
      spoilt |= isnan(logit);
    }
    spoilt = __any_sync(~0u, spoilt);
    __syncwarp();
    mask_groups(p, biased, groups, lane);

    int32_t id = 0; /* lane j: of choice j */
    float sum = 0.0f;
    for (int32_t j = 0; j < p.top_k; ++j) {
      const int32_t e = largest(biased, p.experts, lane);
      __syncwarp();
      if (lane == 0) biased[e] = __uint_as_float(0x7fc00000u);
      if (lane == j) id = e;
      sum += scores[e];
      __syncwarp();
    }
    float weight = scores[id];
    if (p.norm_topk_prob != 0) weight = __fdiv_rn(weight, sum + 1e-20f);
    weight = spoilt ? __uint_as_float(0x7fc00000u) : weight * p.routed_scaling_factor;
    if (lane < p.top_k) {
      if (p.ids != nullptr) p.ids[row * p.ids_stride + lane] = id;
      if (p.weights != nullptr) p.weights[row * p.weights_stride + lane] = weight;
    }
    if (p.alpha != nullptr) {
      for (int32_t e = lane; e < p.experts; e += 32) biased[e] = 0.0f;
      __syncwarp();
      if (lane < p.top_k) biased[id] = weight;
      __syncwarp();
      const int32_t all = p.experts + p.n_shared;
      for (int32_t first = 0; first < all; first += 32) {
        const int32_t e = first + lane;
        const float alpha = e < p.experts ? biased[e] : e < all ? 1.0f : 0.0f;
        if (e < all) p.alpha[row * p.alpha_stride + e] = alpha;
        const uint32_t word = __ballot_sync(~0u, alpha != 0.0f); /* NaN is a choice */
        if (p.chosen != nullptr && lane == 0) p.chosen[row * p.chosen_stride + first / 32] = static_cast<int32_t>(word);
      }
    }
    __syncwarp();
  }
  tdm::step_end(sync);
}

/* The experts that have a weight in some live row, ascending. A thread looks down one column of alpha; the places of
 * the list come from ballots, so nothing depends on who is first. */
extern "C" __global__ void __launch_bounds__(TDM_MOE_HITS_THREADS, 1)
    tdm_moe_route_hits_sm90(const __grid_constant__ tdm_moe_hits_params p, const __grid_constant__ tdm_step_sync sync) {
  __shared__ int32_t counts[32];
  tdm::step_begin(sync);
  const int32_t e = static_cast<int32_t>(threadIdx.x), lane = e % 32, warp = e / 32;
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows);
  bool hit = false;
  if (e < p.experts) {
#pragma unroll 8
    for (int32_t row = 0; row < live; ++row) hit |= p.alpha[row * p.alpha_stride + e] != 0.0f; /* NaN is a hit */
  }
  const uint32_t hits = __ballot_sync(~0u, hit);
  if (lane == 0) counts[warp] = __popc(hits);
  __syncthreads();
  const int32_t warps = static_cast<int32_t>(blockDim.x / 32);
  int32_t before = lane < warps ? counts[lane] : 0;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t lower = __shfl_up_sync(~0u, before, distance);
    if (lane >= distance) before += lower;
  }
  const int32_t total = __shfl_sync(~0u, before, 31), up_to = __shfl_sync(~0u, before, warp);
  const int32_t first = up_to - __popc(hits);
  if (e == 0) p.hits[0] = total;
  if (hit) p.hits[1 + first + __popc(hits & ((1u << lane) - 1))] = e;
  tdm::step_end(sync);
}
