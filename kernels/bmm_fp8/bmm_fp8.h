#ifndef KERNELS_BMM_FP8_BMM_FP8_H
#define KERNELS_BMM_FP8_BMM_FP8_H

#include "kernels/ops.h"

tdm_status tdm_bmm_fp8_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
