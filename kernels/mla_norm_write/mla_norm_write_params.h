#ifndef KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_PARAMS_H
#define KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_PARAMS_H

#include "kernels/mla_kv_write/mla_kv_write_params.h"
#include "kernels/rmsnorm/rmsnorm_params.h"

typedef struct tdm_mla_norm_write_params {
  tdm_rmsnorm_params norm;
  tdm_mla_kv_write_params write;
  int32_t norm_ctas; /* the first CTAs of the grid; the others write */
  int32_t padding;
} tdm_mla_norm_write_params;

static_assert(sizeof(tdm_mla_norm_write_params) == 312, "kernel ABI");

#endif
