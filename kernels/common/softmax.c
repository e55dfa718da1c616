#include "kernels/common/softmax.h"

#include <math.h>

#include "kernels/common/convert.h"

float tdm_softmax_log2_scale(float scale) {
  return scale * 1.4426950408889634f;
}

double tdm_softmax_row(float* scores, int64_t n, bool round) {
  float max = -INFINITY;
  for (int64_t j = 0; j < n; j++) {
    if (scores[j] > max) max = scores[j];
  }
  float base = ceilf(max);
  double sum = 0;
  for (int64_t j = 0; j < n; j++) {
    float p = exp2f(scores[j] - base);
    scores[j] = round ? tdm_bf16_to_f32(tdm_f32_to_bf16(p)) : p;
    sum += (double)scores[j];
  }
  return sum;
}

void tdm_add_scaled(double* restrict sums, double factor, const float* restrict values, int64_t n) {
  for (int64_t d = 0; d < n; d++) sums[d] += factor * (double)values[d];
}
