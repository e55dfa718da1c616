#ifndef KERNELS_COMMON_SOFTMAX_H
#define KERNELS_COMMON_SOFTMAX_H

/* The softmax of the attention references (docs/formulas.md, section 6). */

#include <stdbool.h>
#include <stdint.h>

/* scores[j] becomes exp(scores[j] - max) in f32, rounded to bf16 with `round`; answers the sum of the unrounded ones. A
 * NaN among the scores makes the answer NaN. */
double tdm_softmax_row(float* scores, int64_t n, bool round);

/* sums[d] += factor * values[d] in double: probabilities times values. */
void tdm_add_scaled(double* sums, double factor, const float* values, int64_t n);

#endif
