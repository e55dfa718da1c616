#ifndef KERNELS_FILL_FILL_H
#define KERNELS_FILL_FILL_H

#include "kernels/ops.h"

/* fill.c and fill_ref.c. */
tdm_status tdm_fill_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
