#ifndef KERNELS_EMBEDDING_EMBEDDING_SM90_H
#define KERNELS_EMBEDDING_EMBEDDING_SM90_H

#include "kernels/device/launch.h"
#include "kernels/embedding/embedding_params.h"
#include "tandem/ops.h"

/* Kernel parameters of checked args. */
void tdm_embedding_sm90_params(const tdm_embedding_args* args, tdm_embedding_params* out_params);
/* Launch on `sms` SMs. */
void tdm_embedding_sm90_plan(const tdm_embedding_params* params, int32_t sms, tdm_kernel_launch* out_launch);

#endif
