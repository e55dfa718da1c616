#ifndef KERNELS_SAMPLE_SAMPLE_H
#define KERNELS_SAMPLE_SAMPLE_H

#include "kernels/ops.h"

/* How a row is drawn, all in double:
 *   1. temperature 0: the largest logit, as argmax does
 *   2. weight[i] = exp((logit[i] - max) / temperature); 1 for the largest logits, be they infinite; 0 for NaN
 *   3. unless top_p is 1: tokens in descending order of weight, equal ones by ascending index, until the weights taken
 * add up to top_p * total; the others are dropped. `total` is added up in ascending index
 *   4. u = (first word + 1/2) / 2^32 of Philox4x32-10 with key {seed low, seed high} and counter {position, 0, 0, 0}
 *   5. the first kept token, in ascending index, at which the running sum of kept weights exceeds u * their sum
 * A row of nothing but NaN gives token 0. */

/* Uniform in (0, 1), step 4. */
double tdm_sample_uniform(int64_t seed, int32_t position);

tdm_status tdm_sample_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
