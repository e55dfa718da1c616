#ifndef KERNELS_ARGMAX_ARGMAX_H
#define KERNELS_ARGMAX_ARGMAX_H

#include "kernels/ops.h"

/* Index of the largest of `count` values, the lowest if there are several; 0 when all are NaN. */
int32_t tdm_argmax_row(const float* values, int64_t count);

tdm_status tdm_argmax_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
