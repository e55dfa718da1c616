#ifndef KERNELS_COMMON_SOFTMAX_H
#define KERNELS_COMMON_SOFTMAX_H

/* The softmax of the attention references (docs/formulas.md, section 6). Scores are in units of log2, so that they are
 * exponents of two, and their base is a whole number: probabilities against another base have another exponent and the
 * same mantissa. So rounding one to bf16 gives the same whichever maximum had been seen by then. */

#include <stdbool.h>
#include <stdint.h>

/* What turns a product of query and key into a score: scale * log2(e), in f32. */
float tdm_softmax_log2_scale(float scale);

/* scores[j] becomes exp2(scores[j] - base) in f32, base the largest score rounded up to a whole number; rounded to bf16
 * with `round`. Answers their sum, so that one key gives its own value back. A NaN among the scores makes it NaN. */
double tdm_softmax_row(float* scores, int64_t n, bool round);

/* sums[d] += factor * values[d] in double: probabilities times values. */
void tdm_add_scaled(double* sums, double factor, const float* values, int64_t n);

#endif
