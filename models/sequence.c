#include <inttypes.h>

#include "models/model.h"

tdm_status tdm_sequence_create(tdm_model* model, tdm_sequence** out_sequence) {
  if (out_sequence) *out_sequence = NULL;
  if (!model || !out_sequence)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_sequence_create: model and out_sequence must not be NULL");
  tdm_runtime* runtime = model->runtime;
  tdm_sequence* sequence = tdm_host_alloc(runtime, sizeof *sequence);
  if (!sequence) return TDM_OUT_OF_MEMORY;
  sequence->model = model;
  sequence->pages = tdm_host_alloc_array(runtime, model->batch.limits.pages_per_seq, sizeof *sequence->pages);
  if (!sequence->pages) {
    tdm_host_free(runtime, sequence, sizeof *sequence);
    return TDM_OUT_OF_MEMORY;
  }
  model->n_sequences++;
  tdm_runtime_retain(runtime, TDM_OBJECT_SEQUENCE);
  *out_sequence = sequence;
  return TDM_OK;
}

int64_t tdm_sequence_lacks(const tdm_sequence* sequence, int64_t n_tokens) {
  return tdm_kv_cache_pages(sequence->length + n_tokens) - sequence->n_pages;
}

void tdm_sequence_reserve(tdm_sequence* sequence, int64_t n_tokens) {
  const int64_t wanted = tdm_kv_cache_pages(sequence->length + n_tokens);
  while (sequence->n_pages < wanted) sequence->pages[sequence->n_pages++] = tdm_kv_cache_take(&sequence->model->cache);
}

void tdm_sequence_shrink(tdm_sequence* sequence, int64_t n_pages) {
  /* Last page first, so that the next sequence takes them in the order in which this one did. */
  while (sequence->n_pages > n_pages) tdm_kv_cache_give(&sequence->model->cache, sequence->pages[--sequence->n_pages]);
}

void tdm_sequence_destroy(tdm_sequence* sequence) {
  if (!sequence) return;
  tdm_model* model = sequence->model;
  tdm_sequence_shrink(sequence, 0);
  tdm_host_free(model->runtime, sequence->pages, (size_t)model->batch.limits.pages_per_seq * sizeof *sequence->pages);
  tdm_host_free(model->runtime, sequence, sizeof *sequence);
  model->n_sequences--;
  tdm_runtime_release(model->runtime, TDM_OBJECT_SEQUENCE);
}

int64_t tdm_sequence_length(const tdm_sequence* sequence) {
  return sequence ? sequence->length : 0;
}

tdm_status tdm_sequence_pretend(tdm_sequence* sequence, int64_t n_tokens) {
  if (!sequence) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_sequence_pretend: sequence must not be NULL");
  const tdm_model* model = sequence->model;
  if (n_tokens < 0 || n_tokens > model->config.max_context - sequence->length)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_sequence_pretend: %" PRId64 " tokens on top of %" PRId64 "; max_context is %" PRId64, n_tokens,
                    sequence->length, model->config.max_context);
  TDM_TRY(tdm_kv_cache_check_room(&model->cache, tdm_sequence_lacks(sequence, n_tokens)));
  tdm_sequence_reserve(sequence, n_tokens);
  sequence->length += n_tokens;
  return TDM_OK;
}

tdm_status tdm_sequence_truncate(tdm_sequence* sequence, int64_t length) {
  if (!sequence) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_sequence_truncate: sequence must not be NULL");
  if (length < 0 || length > sequence->length)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_sequence_truncate: length %" PRId64 ", the sequence has %" PRId64 " tokens", length,
                    sequence->length);
  sequence->length = length;
  tdm_sequence_shrink(sequence, tdm_kv_cache_pages(length));
  return TDM_OK;
}
