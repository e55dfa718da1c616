/* A token drawn from softmax(logits / temperature) cut at top_p, for sm_90a.
 *
 * 1. A CTA takes rows blockIdx.x, + gridDim.x, ...  The largest logit; with temperature 0 that is all.
 * 2. A token's weight is exp((logit - max) / temperature), in double, as an integer count of 2^-unit_log2. Sums of
 *    integers do not depend on their order, so neither does the result.
 * 3. top_p below 1: the weight at the cut by radix selection. First digit: the weight's octave; then five bits at a
 * time. Every thread has a histogram of its own, summed per digit. It ends early at a digit that holds a single token.
 * 4. The draw: 16 warps sum the kept weights of a sixteenth of the row each, the one where the running sum passes
 *    u * total is cut into sixteenths again, until 32 tokens are left. Of the tokens at the cut the first ones are
 * kept.
 *
 * Logits that cannot matter to a pass are told apart in f32, with a margin, and cost no exponential.
 *
 *   histogram: [32 digits][512 threads] u64; a warp's accesses are 32 neighbouring words of 8 bytes, never in conflict
 *
 * Grid: up to one CTA a row; block: 512 threads. Shared: 128 KiB. Limit: exponentials of one SM: a row of 129280 takes
 * 75 us with top_p 1, 220 to 290 below (H200, 2026-11-22). */

#include "kernels/argmax/argmax.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/sample/sample_params.h"

namespace {

constexpr int32_t kThreads = TDM_SAMPLE_THREADS, kWarps = kThreads / 32, kBins = TDM_SAMPLE_BINS, kBinBits = 5;

struct Scratch {
  tdm::ArgmaxScratch argmax;
  uint64_t bin_sums[kBins];
  uint64_t part_sums[kWarps];
  uint32_t part_ties[kWarps];
};

/* Logits that a pass may leave out: those with (logit - max) / temperature surely outside. */
struct Range {
  float low, high;
};

/* exp(x) * 2^log2, rounded to an integer, for -64 < x <= 0; off by 2^-50 of it. Without branches, so that several run
 * side by side. */
__device__ __forceinline__ uint64_t exp_times_2(double x, int32_t log2) {
  const double whole = rint(x * 1.4426950408889634);
  const double r = fma(whole, -2.3190468138462996e-17, fma(whole, -0.6931471805599453, x)); /* |r| <= ln(2) / 2 */
  double y = 1.0 / 479001600.0; /* 1 + r + r^2 / 2! + ... + r^12 / 12! */
  y = fma(y, r, 1.0 / 39916800.0);
  y = fma(y, r, 1.0 / 3628800.0);
  y = fma(y, r, 1.0 / 362880.0);
  y = fma(y, r, 1.0 / 40320.0);
  y = fma(y, r, 1.0 / 5040.0);
  y = fma(y, r, 1.0 / 720.0);
  y = fma(y, r, 1.0 / 120.0);
  y = fma(y, r, 1.0 / 24.0);
  y = fma(y, r, 1.0 / 6.0);
  y = fma(y, r, 0.5);
  y = fma(y, r, 1.0);
  y = fma(y, r, 1.0);
  const int32_t exponent = log2 + static_cast<int32_t>(whole);
  return __double2ull_rn(__hiloint2double(__double2hiint(y) + exponent * (1 << 20), __double2loint(y)));
}

struct Row {
  const float* logits;
  int32_t count;
  int32_t unit_log2;
  float top;
  float inverse; /* of the temperature; NaN where f32 cannot tell logits apart: then nothing is left out */
  double exact_inverse;

  __device__ __forceinline__ bool matters(float logit, const Range& range) const {
    const float x = (logit - top) * inverse;
    return !(x < range.low) && !(x > range.high);
  }
  __device__ __forceinline__ bool any_matters(const float4& v, const Range& range) const {
    return matters(v.x, range) | matters(v.y, range) | matters(v.z, range) | matters(v.w, range);
  }
  __device__ __forceinline__ uint64_t weight(float logit) const {
    const double x = (static_cast<double>(logit) - static_cast<double>(top)) * exact_inverse;
    const uint64_t unit = uint64_t{1} << unit_log2;
    if (logit == top) return unit;                    /* be they infinite */
    return x > -64.0 ? exp_times_2(x, unit_log2) : 0; /* NaN: 0 */
  }
  /* Of the weights low .. high - 1; high 0: no limit. */
  __device__ __forceinline__ Range range(uint64_t low, uint64_t high) const {
    constexpr float kMargin = 1e-3f; /* f32 is off by 1e-5 where weights are not 0 */
    const double unit = static_cast<double>(uint64_t{1} << unit_log2);
    const double least = low > 0 ? static_cast<double>(low) : 0.25; /* what is rounded to 0 need not be looked at */
    Range r{static_cast<float>(log(least / unit)) - kMargin, __int_as_float(0x7f800000)};
    if (high > 0) r.high = static_cast<float>(log(static_cast<double>(high) / unit)) + kMargin;
    return r;
  }
};

__device__ Row make_row(const float* logits, int32_t count, int32_t unit_log2, float top, float temperature) {
  const bool plain = temperature > 1e-30f && fabsf(top) < 1e30f;
  return Row{logits,
             count,
             unit_log2,
             top,
             plain ? 1.0f / temperature : __uint_as_float(0x7fc00000u),
             1.0 / static_cast<double>(temperature)};
}

__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/* bin_sums[d]: sum of the weights with digit d; digit(weight) is negative for weights that do not count. */
template <class Digit>
__device__ __forceinline__ void sum_bins(const Row& row, const Range& range, Digit digit, uint64_t* histograms,
                                         Scratch& scratch) {
  uint64_t* mine = histograms + threadIdx.x;
#pragma unroll
  for (int32_t d = 0; d < kBins; ++d) mine[d * kThreads] = 0;
  const auto add = [&](int32_t, const float4& four) {
    if (!row.any_matters(four, range)) return;
    const uint64_t weights[4] = {row.weight(four.x), row.weight(four.y), row.weight(four.z), row.weight(four.w)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t d = digit(weights[i]);
      if (d >= 0) mine[d * kThreads] += weights[i];
    }
  };
  tdm::walk_logits(row.logits, 0, row.count, static_cast<int32_t>(threadIdx.x), kThreads, add);
  __syncthreads();
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int32_t d = static_cast<int32_t>(threadIdx.x / 32); d < kBins; d += kWarps) {
    uint64_t sum = 0;
#pragma unroll
    for (int32_t i = 0; i < kThreads; i += 32) sum += histograms[d * kThreads + i + lane];
    sum = warp_sum(sum);
    if (lane == 0) scratch.bin_sums[d] = sum;
  }
  __syncthreads();
}

/* What is kept: the weights above `cut` and the first `ties` tokens of weight `cut`; `total` is their sum. */
struct Cut {
  uint64_t cut;
  uint64_t ties;
  uint64_t total;
};

__device__ Cut find_cut(const Row& row, float top_p, uint64_t* histograms, Scratch& scratch) {
  const int32_t unit_log2 = row.unit_log2;
  sum_bins(
      row, row.range(0, 0),
      [unit_log2](uint64_t weight) {
        return weight == 0 ? -1 : min(unit_log2 - (63 - __clzll(static_cast<int64_t>(weight))), kBins - 1);
      },
      histograms, scratch);
  uint64_t total = 0;
#pragma unroll 1
  for (int32_t d = 0; d < kBins; ++d) total += scratch.bin_sums[d];
  if (total == 0) return Cut{0, 0, 0};
  const double share = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  const uint64_t wanted = max(min(static_cast<uint64_t>(max(share, 1.0)), total), uint64_t{1});

  /* The weight at the cut is in [low, low + 2^bits), those above add up to `above`. */
  uint64_t above = 0;
  int32_t octave = 0;
  while (above + scratch.bin_sums[octave] < wanted) above += scratch.bin_sums[octave++];
  uint64_t inside = scratch.bin_sums[octave];
  int32_t bits = unit_log2 - octave + (octave == kBins - 1 ? 1 : 0);
  uint64_t low = octave == kBins - 1 ? 0 : uint64_t{1} << bits;
  while (bits > 0 && inside >= 2 * low) { /* less: one token */
    const int32_t shift = max(bits - kBinBits, 0);
    const uint64_t base = low, end = uint64_t{1} << bits;
    __syncthreads();
    sum_bins(
        row, row.range(base, base + end),
        [base, end, shift](uint64_t weight) {
          return weight < base || weight - base >= end ? -1 : static_cast<int32_t>((weight - base) >> shift);
        },
        histograms, scratch);
    int32_t d = (1 << (bits - shift)) - 1;
    while (above + scratch.bin_sums[d] < wanted) above += scratch.bin_sums[d--];
    inside = scratch.bin_sums[d];
    low = base + (static_cast<uint64_t>(d) << shift);
    bits = shift;
  }
  if (bits > 0) low = inside;
  const uint64_t ties = (wanted - above + low - 1) / low;
  return Cut{low, ties, above + ties * low};
}

/* First word of Philox4x32-10; the reference has the same (kernels/sample/philox.h). */
__device__ uint32_t philox(uint64_t seed, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xd2511f53u, p1 = uint64_t{c2} * 0xcd9e8d57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return c0;
}

/* floor(u * total), u = (word + 1/2) / 2^32: a sum of integers exceeds one when it exceeds the other. */
__device__ uint64_t draw_target(uint32_t word, uint64_t total) {
  const uint64_t odd = 2 * uint64_t{word} + 1;
  return __umul64hi(odd, total) << 31 | (odd * total) >> 33;
}

/* A run of tokens, and what is kept before it. */
struct Run {
  int32_t begin, end;
  uint64_t sum;
  uint64_t ties;
};

__device__ void sum_parts(const Row& row, const Range& range, uint64_t cut, const Run& run, int32_t part,
                          Scratch& scratch) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t begin = run.begin + min(warp * part, run.end - run.begin), end = min(begin + part, run.end);
  uint64_t sum = 0;
  uint32_t ties = 0;
  const auto add = [&](int32_t, const float4& four) {
    if (!row.any_matters(four, range)) return;
    const uint64_t weights[4] = {row.weight(four.x), row.weight(four.y), row.weight(four.z), row.weight(four.w)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (weights[i] > cut) sum += weights[i];
      if (weights[i] == cut) ++ties;
    }
  };
  tdm::walk_logits(row.logits, begin, end, lane, 32, add);
  sum = warp_sum(sum);
  ties = __reduce_add_sync(~0u, ties);
  if (lane == 0) {
    scratch.part_sums[warp] = sum;
    scratch.part_ties[warp] = ties;
  }
}

/* The kept token at which the running sum exceeds u * total; valid in warp 0. */
__device__ int32_t draw(const Row& row, Cut kept, bool all, uint32_t word, Scratch& scratch) {
  const Range range = row.range(kept.cut, 0);
  Run run{0, row.count, 0, 0};
  uint64_t target = draw_target(word, kept.total);
  for (bool first = true; first || run.end - run.begin > 32; first = false) {
    const int32_t part = ((run.end - run.begin + kWarps - 1) / kWarps + 31) / 32 * 32;
    sum_parts(row, range, kept.cut, run, part, scratch);
    __syncthreads();
    if (all && first) {
      uint64_t total = 0;
      for (int32_t i = 0; i < kWarps; ++i) total += scratch.part_sums[i];
      if (total == 0) return 0; /* all NaN */
      target = draw_target(word, total);
    }
    for (int32_t i = 0; i < kWarps; ++i) {
      const uint64_t ties = run.ties + scratch.part_ties[i];
      const uint64_t at_cut = (min(ties, kept.ties) - min(run.ties, kept.ties)) * kept.cut;
      const uint64_t sum = run.sum + scratch.part_sums[i] + at_cut;
      if (sum > target) {
        run.end = min(run.begin + part, run.end);
        break;
      }
      run.sum = sum;
      run.ties = ties;
      run.begin += part;
    }
    __syncthreads();
  }

  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), token = run.begin + lane;
  uint64_t weight = token < run.end ? row.weight(row.logits[token]) : 0;
  const bool tie = token < run.end && weight == kept.cut;
  const uint32_t before = __ballot_sync(~0u, tie) & ((1u << lane) - 1);
  if (weight < kept.cut || (tie && run.ties + __popc(before) >= kept.ties)) weight = 0;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t lower = __shfl_up_sync(~0u, weight, distance);
    if (lane >= distance) weight += lower;
  }
  const uint32_t beyond = __ballot_sync(~0u, run.sum + weight > target);
  return run.begin + __ffs(static_cast<int32_t>(beyond)) - 1;
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_SAMPLE_THREADS)
    tdm_sample_sm90(const __grid_constant__ tdm_sample_params p, const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  TDM_DYNAMIC_SHARED(uint64_t, histograms, 8);
  __shared__ Scratch scratch;
  const int32_t live = tdm::live_rows(p.n_rows, p.rows);
  for (int32_t r = static_cast<int32_t>(blockIdx.x); r < live; r += static_cast<int32_t>(gridDim.x)) {
    const float* logits = p.logits + r * p.logits_stride;
    int32_t token = tdm::block_argmax(logits, p.cols, scratch.argmax);
    __syncthreads();
    const float temperature = p.temperature[r], top_p = p.top_p[r];
    if (temperature > 0.0f) {
      const Row row = make_row(logits, p.cols, p.unit_log2, logits[token], temperature);
      const uint32_t word = philox(static_cast<uint64_t>(p.seeds[r]), static_cast<uint32_t>(p.positions[r]));
      const bool all = !(top_p < 1.0f);
      const Cut kept = all ? Cut{0, 0, 0} : find_cut(row, top_p, histograms, scratch);
      token = all || kept.total > 0 ? draw(row, kept, all, word, scratch) : 0;
    }
    if (threadIdx.x == 0) p.out[r] = token;
    __syncthreads();
  }
  tdm::step_end(sync);
}
