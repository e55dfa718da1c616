#ifndef KERNELS_DEVICE_ABI_H
#define KERNELS_DEVICE_ABI_H

/* What the params structs of C and CUDA have in common. Compiles as C11 and as CUDA C++. */

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/step_sync.h"
#include "runtime/tensor_map.h"

static_assert(sizeof(tdm_tensor_map) == 128, "size of CUtensorMap");

/* Element types that a kernel tells apart at run time; the values of tdm_dtype. */
enum { TDM_KERNEL_F32 = 1, TDM_KERNEL_BF16 = 2 };

#endif
