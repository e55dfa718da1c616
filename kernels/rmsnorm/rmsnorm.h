#ifndef KERNELS_RMSNORM_RMSNORM_H
#define KERNELS_RMSNORM_RMSNORM_H

#include "kernels/ops.h"

/* values *= rsqrt(mean(values^2) + eps) * weight (NULL: no weight). The squares are added in double, ascending; the
 * root is rounded to f32 and so is each product: first with the root, then with the weight. */
void tdm_rmsnorm_row(float* values, const float* weight, int64_t count, float eps);

/* Fills defaults in; all but overlaps, in the name of `op`. */
tdm_status tdm_rmsnorm_check(const char* op, tdm_rmsnorm_args* args);
tdm_status tdm_rmsnorm_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
