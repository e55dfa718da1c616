#ifndef KERNELS_GATHER_ROWS_GATHER_ROWS_H
#define KERNELS_GATHER_ROWS_GATHER_ROWS_H

#include "kernels/ops.h"

tdm_status tdm_gather_rows_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
