#ifndef ATTENTION_KV_CACHE_H
#define ATTENTION_KV_CACHE_H

/* The paged latent cache of MLA: for every layer [n_pages, 64, 576], one table of free pages for all layers. A page
 * number means the same place in each layer. */

#include "kernels/common/mla.h"
#include "runtime/runtime.h"
#include "tandem/ops.h"

/* One thread at a time. */
typedef struct tdm_kv_cache {
  tdm_runtime* runtime;
  int64_t n_layers;
  int64_t n_pages;
  tdm_view* layers;    /* [n_layers] views [n_pages, 64, 576] */
  int32_t* free_pages; /* a stack; the lowest page is on top at first */
  int64_t n_free;
} tdm_kv_cache;

tdm_status tdm_kv_cache_init(tdm_runtime* runtime, int64_t n_layers, int64_t n_pages, tdm_dtype dtype,
                             tdm_kv_cache* out_cache);
void tdm_kv_cache_fini(tdm_kv_cache* cache);

/* Pages that `tokens` tokens take. */
int64_t tdm_kv_cache_pages(int64_t tokens);
/* OUT_OF_MEMORY when fewer than `pages` pages are free. */
tdm_status tdm_kv_cache_check_room(const tdm_kv_cache* cache, int64_t pages);
/* Takes a free page; the caller has seen that there is room. */
int32_t tdm_kv_cache_take(tdm_kv_cache* cache);
void tdm_kv_cache_give(tdm_kv_cache* cache, int32_t page);

#endif
