#include "kernels/sample/sample.h"

#include <math.h>

#include "kernels/argmax/argmax.h"
#include "kernels/common/check.h"
#include "kernels/sample/philox.h"

double tdm_sample_uniform(int64_t seed, int32_t position) {
  const uint32_t counter[4] = {(uint32_t)position, 0, 0, 0};
  const uint32_t key[2] = {(uint32_t)(uint64_t)seed, (uint32_t)((uint64_t)seed >> 32)};
  uint32_t words[4];
  tdm_philox4x32(counter, key, words);
  return ((double)words[0] + 0.5) * 0x1p-32;
}

/* Whether token a is taken before token b. */
static bool ranks_before(const double* weights, int32_t a, int32_t b) {
  return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}

static void sift_down(const double* weights, int32_t* heap, int32_t count, int32_t at) {
  int32_t token = heap[at];
  while (at < count / 2) {
    int32_t child = 2 * at + 1;
    if (child + 1 < count && ranks_before(weights, heap[child + 1], heap[child])) child++;
    if (!ranks_before(weights, heap[child], token)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = token;
}

/* The last token taken until the weights reach `wanted`. A heap rather than a sort: few tokens are taken as a rule, and
 * qsort may allocate. */
static int32_t last_kept(const double* weights, int32_t count, double wanted, int32_t* heap) {
  for (int32_t i = 0; i < count; i++) heap[i] = i;
  for (int32_t at = count / 2 - 1; at >= 0; at--) sift_down(weights, heap, count, at);
  double taken = weights[heap[0]];
  while (taken < wanted && count > 1) {
    heap[0] = heap[--count];
    sift_down(weights, heap, count, 0);
    taken += weights[heap[0]];
  }
  return heap[0];
}

static int32_t sample_row(const float* logits, int32_t vocab, double temperature, double top_p, double u,
                          double* weights, int32_t* heap) {
  float top = logits[tdm_argmax_row(logits, vocab)];
  double total = 0.0;
  for (int32_t i = 0; i < vocab; i++) {
    if (isnan(logits[i])) {
      weights[i] = 0.0;
    } else {
      weights[i] = logits[i] == top ? 1.0 : exp(((double)logits[i] - (double)top) / temperature);
    }
    total += weights[i];
  }
  if (top_p < 1.0) {
    int32_t last = last_kept(weights, vocab, top_p * total, heap);
    double last_weight = weights[last];
    total = 0.0;
    for (int32_t i = 0; i < vocab; i++) {
      if (weights[i] < last_weight || (weights[i] == last_weight && i > last)) weights[i] = 0.0;
      total += weights[i];
    }
  }
  double sum = 0.0;
  int32_t token = 0; /* stays when all are NaN */
  for (int32_t i = 0; i < vocab; i++) {
    if (weights[i] == 0.0) continue;
    token = i;
    sum += weights[i];
    if (sum > u * total) break;
  }
  return token;
}

tdm_status tdm_sample_ref(const void* args_, const tdm_plan* plan, void* scratch) {
  const tdm_sample_args* args = args_;
  (void)plan;
  int32_t vocab = (int32_t)args->logits.shape[1];
  const float* logits = tdm_view_data(&args->logits);
  const float* temperature = tdm_view_data(&args->temperature);
  const float* top_p = tdm_view_data(&args->top_p);
  const int64_t* seeds = tdm_view_data(&args->seeds);
  const int32_t* positions = tdm_view_data(&args->positions);
  int32_t* out = tdm_view_data(&args->out);
  double* weights = scratch;
  int32_t* heap = (int32_t*)(weights + vocab);
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("sample", &args->n_rows, args->logits.shape[0], &rows));
  for (int64_t l = 0; l < rows; l++) {
    if (!isfinite(temperature[l]) || temperature[l] < 0.0f) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "sample: temperature[%lld] is %g, not finite and >= 0", (long long)l,
                      (double)temperature[l]);
    }
    if (!(top_p[l] > 0.0f && top_p[l] <= 1.0f)) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "sample: top_p[%lld] is %g, outside (0, 1]", (long long)l,
                      (double)top_p[l]);
    }
    if (positions[l] < 0) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "sample: positions[%lld] is %d, below 0", (long long)l, positions[l]);
    }
    const float* row = logits + l * args->logits.stride[0];
    if (temperature[l] == 0.0f) {
      out[l] = tdm_argmax_row(row, vocab);
    } else {
      double u = tdm_sample_uniform(seeds[l], positions[l]);
      out[l] = sample_row(row, vocab, (double)temperature[l], (double)top_p[l], u, weights, heap);
    }
  }
  return TDM_OK;
}
