#ifndef KERNELS_BMM_QUANT_BMM_QUANT_H
#define KERNELS_BMM_QUANT_BMM_QUANT_H

#include "kernels/ops.h"

size_t tdm_bmm_quant_ref_scratch_bytes(const tdm_bmm_quant_args* args);
tdm_status tdm_bmm_quant_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
