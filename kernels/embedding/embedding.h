#ifndef KERNELS_EMBEDDING_EMBEDDING_H
#define KERNELS_EMBEDDING_EMBEDDING_H

#include "kernels/ops.h"

tdm_status tdm_embedding_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
