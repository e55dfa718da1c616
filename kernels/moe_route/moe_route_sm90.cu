/* DeepSeek-V3 routing for sm_90a: sigmoid scores, bias for the choice only, grouped top-k.
 *
 * 1. A warp takes a row. Scores in double, as the reference has them, so that the same experts win.
 * 2. Group scores: the sum of a group's two largest biased scores, a lane a group.
 * 3. The topk_group best groups stay; then top_k times the largest biased score that is left, lower index first.
 * 4. Weights are the scores of the chosen, normalised in the order of choice, scaled; NaN where the row had a NaN.
 *
 * Grid: any, rows are walked with a grid stride. Block: 4 warps. Shared: a row's scores for each warp. Limit: latency.
 */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/moe_route/moe_route_params.h"

namespace {

constexpr float kInfinity = __builtin_huge_valf();

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

} // namespace

extern "C" __global__ void __launch_bounds__(32 * TDM_MOE_ROUTE_WARPS)
    tdm_moe_route_sm90(const __grid_constant__ tdm_moe_route_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  extern __shared__ float memory[];
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  float* scores = memory + warp * TDM_MOE_ROUTE_FLOATS(p.experts, p.n_group);
  float *biased = scores + p.experts, *groups = biased + p.experts;
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows), step = static_cast<int32_t>(gridDim.x) * TDM_MOE_ROUTE_WARPS;
  for (int32_t row = static_cast<int32_t>(blockIdx.x) * TDM_MOE_ROUTE_WARPS + warp; row < live; row += step) {
    bool spoilt = false;
    for (int32_t e = lane; e < p.experts; e += 32) {
      const float logit = p.logits[row * p.logits_stride + e];
      const float score = static_cast<float>(1.0 / (1.0 + exp(-static_cast<double>(logit))));
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
      for (int32_t e = lane; e < p.experts + p.n_shared; e += 32)
        p.alpha[row * p.alpha_stride + e] = e < p.experts ? biased[e] : 1.0f;
    }
    __syncwarp();
  }
  tdm::step_end(sync);
}
