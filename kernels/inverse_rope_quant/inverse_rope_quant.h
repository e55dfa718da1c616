#ifndef KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_H
#define KERNELS_INVERSE_ROPE_QUANT_INVERSE_ROPE_QUANT_H

#include "kernels/ops.h"

tdm_status tdm_inverse_rope_quant_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
