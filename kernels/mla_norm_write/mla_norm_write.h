#ifndef KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_H
#define KERNELS_MLA_NORM_WRITE_MLA_NORM_WRITE_H

/* rmsnorm of the low-rank queries and mla_kv_write of the latent beside them, in one step and with the bits of both. */

#include "runtime/op.h"

/* The two ops' args in checked ones. */
tdm_rmsnorm_args tdm_mla_norm_write_norm(const tdm_mla_norm_write_args* args);
tdm_mla_kv_write_args tdm_mla_norm_write_write(const tdm_mla_norm_write_args* args);

/* Fills defaults in; all but overlaps, in the name of `op`. */
tdm_status tdm_mla_norm_write_check(const char* op, tdm_mla_norm_write_args* args);
/* A position, slot or count that is out of range fails before anything is written. `scratch`: rmsnorm's. */
tdm_status tdm_mla_norm_write_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
