#ifndef KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_H
#define KERNELS_MLA_KV_WRITE_MLA_KV_WRITE_H

/* RMSNorm, RoPE and scatter of the MLA latent (docs/formulas.md, sections 1, 5, 6 and 16).
 *   inv = f32(1 / sqrt(mean of squares + eps)), the squares of the 512 values added in double
 *   latent[d] = (kv[d] * inv) * norm_weight[d] in f32, rounded once to the cache's dtype; rope part likewise
 * On the host device a position, slot or count that is out of range fails the step before anything is written. */

#include "runtime/op.h"

/* At run time: the first `rows` slots are -1 or in the cache. */
tdm_status tdm_mla_kv_write_check_slots(const char* op, const tdm_view* slots, const tdm_view* cache, int64_t rows);

tdm_status tdm_mla_kv_write_ref(const void* args, const tdm_plan* plan, void* scratch);

#endif
