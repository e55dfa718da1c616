#include "attention/kv_cache.h"

#include <inttypes.h>

tdm_status tdm_kv_cache_init(tdm_runtime* runtime, int64_t n_layers, int64_t n_pages, tdm_dtype dtype,
                             tdm_kv_cache* out_cache) {
  *out_cache = (tdm_kv_cache){.runtime = runtime, .n_layers = n_layers, .n_pages = n_pages};
  out_cache->layers = tdm_host_alloc_array(runtime, n_layers, sizeof *out_cache->layers);
  out_cache->free_pages = tdm_host_alloc_array(runtime, n_pages, sizeof *out_cache->free_pages);
  if (!out_cache->layers || !out_cache->free_pages) return TDM_OUT_OF_MEMORY;
  const int64_t shape[] = {n_pages, TDM_PAGE_TOKENS, TDM_MLA_CACHED};
  size_t bytes = tdm_dtype_bytes(dtype) * TDM_PAGE_TOKENS * TDM_MLA_CACHED;
  if (__builtin_mul_overflow(bytes, (size_t)n_pages, &bytes))
    return TDM_FAIL(TDM_OUT_OF_MEMORY, "a cache of %" PRId64 " pages overflows the address space", n_pages);
  for (int64_t layer = 0; layer < n_layers; layer++) {
    tdm_buffer* buffer;
    TDM_TRY(tdm_buffer_create(runtime, bytes, &buffer));
    out_cache->layers[layer] = tdm_view_make(buffer, dtype, 3, shape);
  }
  for (int64_t page = n_pages - 1; page >= 0; page--) tdm_kv_cache_give(out_cache, (int32_t)page);
  return TDM_OK;
}

void tdm_kv_cache_fini(tdm_kv_cache* cache) {
  if (!cache->runtime) return;
  for (int64_t layer = 0; cache->layers && layer < cache->n_layers; layer++)
    tdm_buffer_destroy(cache->layers[layer].buffer);
  tdm_host_free(cache->runtime, cache->layers, (size_t)cache->n_layers * sizeof *cache->layers);
  tdm_host_free(cache->runtime, cache->free_pages, (size_t)cache->n_pages * sizeof *cache->free_pages);
  *cache = (tdm_kv_cache){0};
}

int64_t tdm_kv_cache_pages(int64_t tokens) {
  return (tokens + TDM_PAGE_TOKENS - 1) / TDM_PAGE_TOKENS;
}

tdm_status tdm_kv_cache_check_room(const tdm_kv_cache* cache, int64_t pages) {
  if (pages <= cache->n_free) return TDM_OK;
  return TDM_FAIL(TDM_OUT_OF_MEMORY,
                  "the cache is full: %" PRId64 " more pages are needed, %" PRId64 " of %" PRId64 " are free", pages,
                  cache->n_free, cache->n_pages);
}

int32_t tdm_kv_cache_take(tdm_kv_cache* cache) {
  return cache->free_pages[--cache->n_free];
}

void tdm_kv_cache_give(tdm_kv_cache* cache, int32_t page) {
  cache->free_pages[cache->n_free++] = page;
}
