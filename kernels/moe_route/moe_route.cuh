#ifndef KERNELS_MOE_ROUTE_MOE_ROUTE_CUH
#define KERNELS_MOE_ROUTE_MOE_ROUTE_CUH

/* Routing of a row by a warp, all of it in registers: for moe_route and moe_gate. */

#include "kernels/device/elements.cuh"
#include "kernels/moe_route/moe_route_params.h"

namespace tdm {

constexpr float kInfinity = __builtin_huge_valf();

/* 1 / (1 + exp(-logit)) in double, rounded once: off by two units of the double's last place before that, so that the
 * float is the reference's but for one in 2^28. Without branches, which would keep a lane's scores from being worked on
 * side by side: exp as 2^k times the Taylor series of degree 13 at |r| <= ln(2) / 2, whose rest is below 2^-57; the
 * reciprocal by two Newton steps. */
__device__ __forceinline__ float sigmoid(float logit) {
  constexpr double kLog2E = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                   kLn2Low = 1.90821492927058770002e-10;
  const double x = fminf(fmaxf(-logit, -700.0f), 700.0f);
  const double k = rint(x * kLog2E), r = fma(-k, kLn2Low, fma(-k, kLn2High, x));
  double sum = 1.0 / 6227020800.0;
  constexpr double kInverse[] = {
      1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0,
      1.0 / 120.0,       1.0 / 24.0,       1.0 / 6.0,       1.0 / 2.0,      1.0,           1.0};
#pragma unroll
  for (int i = 0; i < 13; ++i) sum = fma(sum, r, kInverse[i]);
  const double exponential =
      __hiloint2double(__double2hiint(sum) + __double2int_rn(k) * (1 << 20), __double2loint(sum));
  const double d = 1.0 + exponential;
  double y = reciprocal_near(d);
  y = fma(y, fma(-d, y, 1.0), y);
  y = fma(y, fma(-d, y, 1.0), y);
  return isnan(logit) ? logit : static_cast<float>(y);
}

/* Larger floats have larger keys, equal ones equal keys; 0 is for what is taken. */
__device__ __forceinline__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f); /* -0 equals 0 */
  return bits ^ (static_cast<int32_t>(bits) < 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key ^ (static_cast<int32_t>(key) < 0 ? 0x80000000u : 0xffffffffu));
}

/* Bits of the shared experts in word `word` of those from the first one on. */
__device__ __forceinline__ uint32_t shared_bits(int32_t n_shared, int32_t word) {
  const int32_t n = n_shared - 32 * word;
  return n >= 32 ? ~0u : (1u << n) - 1;
}

/* Where experts are a multiple of 32 and a group, if groups are masked, is 32 of them: expert 32 i + l is element i of
 * lane l, so that a group is one register of the warp. Maxima over the warp are one instruction on the keys. The same
 * choices, sums and roundings as in shared memory (moe_route_sm90.cu). Stores what p asks for, nothing for row -1. */
template <int kPer>
__device__ __forceinline__ void route_row(const tdm_moe_route_params& p, int32_t row, const float (&logits)[kPer],
                                          const float (&bias)[kPer], int32_t lane) {
  float scores[kPer];
  uint32_t keys[kPer];
  bool spoilt = false;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    scores[i] = sigmoid(logits[i]);
    const float sum = p.bias == nullptr ? scores[i] : scores[i] + bias[i];
    keys[i] = key_of(isnan(sum) ? -kInfinity : sum);
    spoilt |= isnan(logits[i]);
  }
  spoilt = __any_sync(~0u, spoilt);

  if (p.topk_group != p.n_group) {
    uint32_t groups[kPer]; /* the same in all lanes */
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const uint32_t first = __reduce_max_sync(~0u, keys[i]);
      const uint32_t at = __ballot_sync(~0u, keys[i] == first);
      const bool winner = lane == __ffs(static_cast<int32_t>(at)) - 1;
      const uint32_t second = __reduce_max_sync(~0u, winner ? 0u : keys[i]);
      const float score = value_of(first) + value_of(second);
      groups[i] = key_of(isnan(score) ? -kInfinity : score);
    }
    uint32_t kept = 0;
    for (int32_t j = 0; j < p.topk_group; ++j) {
      uint32_t best = 0;
      int index = 0;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        index = groups[i] > best ? i : index;
        best = max(best, groups[i]);
      }
      kept |= 1u << index;
#pragma unroll
      for (int i = 0; i < kPer; ++i) groups[i] = i == index ? 0u : groups[i];
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) keys[i] = (kept >> i & 1) == 0 ? 0u : keys[i];
  }

  int32_t id = 0; /* lane j: of choice j */
  float sum = 0.0f, weight = 0.0f;
  int32_t choice_of[kPer]; /* -1: not chosen */
#pragma unroll
  for (int i = 0; i < kPer; ++i) choice_of[i] = -1;
  for (int32_t j = 0; j < p.top_k; ++j) {
    uint32_t best = keys[0];
#pragma unroll
    for (int i = 1; i < kPer; ++i) best = max(best, keys[i]);
    best = __reduce_max_sync(~0u, best);
    uint32_t mine = 0xffffffffu; /* the lowest expert here that has it */
    float score = 0.0f;
#pragma unroll
    for (int i = kPer - 1; i >= 0; --i) {
      const bool has = keys[i] == best;
      mine = has ? static_cast<uint32_t>(32 * i + lane) : mine;
      score = has ? scores[i] : score;
    }
    const int32_t e = static_cast<int32_t>(__reduce_min_sync(~0u, mine));
    score = __shfl_sync(~0u, score, e % 32);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const bool taken = e == 32 * i + lane;
      keys[i] = taken ? 0u : keys[i];
      choice_of[i] = taken ? j : choice_of[i];
    }
    if (lane == j) {
      id = e;
      weight = score;
    }
    sum += score;
  }
  if (p.norm_topk_prob != 0) weight = __fdiv_rn(weight, sum + 1e-20f);
  weight = spoilt ? __uint_as_float(0x7fc00000u) : weight * p.routed_scaling_factor;
  if (row >= 0 && lane < p.top_k) {
    if (p.ids != nullptr) p.ids[row * p.ids_stride + lane] = id;
    if (p.weights != nullptr) p.weights[row * p.weights_stride + lane] = weight;
  }
  if (p.alpha == nullptr) return;
  uint32_t hits = 0; /* lane i: a bit an expert from 32 i on that has a weight */
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const float chosen = __shfl_sync(~0u, weight, choice_of[i] & 31);
    const float alpha = choice_of[i] < 0 ? 0.0f : chosen;
    if (row >= 0) p.alpha[row * p.alpha_stride + 32 * i + lane] = alpha;
    const uint32_t word = __ballot_sync(~0u, alpha != 0.0f); /* NaN is a hit */
    hits = lane == i ? word : hits;
  }
  if (row < 0) return;
  for (int32_t e = lane; e < p.n_shared; e += 32) p.alpha[row * p.alpha_stride + 32 * kPer + e] = 1.0f;
  if (p.chosen != nullptr) {
    int32_t* const chosen = p.chosen + row * p.chosen_stride;
    if (lane < kPer) chosen[lane] = static_cast<int32_t>(hits);
    for (int32_t w = lane; 32 * w < p.n_shared; w += 32)
      chosen[kPer + w] = static_cast<int32_t>(shared_bits(p.n_shared, w));
  }
}

} // namespace tdm

#endif
