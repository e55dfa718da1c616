#include "models/batch.h"

enum { ALIGNMENT = 256 };

/* An array's shape in units of the limits. */
typedef struct array_shape {
  tdm_dtype dtype;
  int32_t rank;
  int64_t shape[2];
} array_shape;

static array_shape shape_of(tdm_batch_array array, const tdm_batch_limits* limits) {
  switch (array) {
  case TDM_BATCH_N_TOKENS:
  case TDM_BATCH_N_SEQS:
  case TDM_BATCH_N_LOGITS:
    return (array_shape){TDM_I32, 1, {1}};
  case TDM_BATCH_SEQ_START:
    return (array_shape){TDM_I32, 1, {limits->seqs + 1}};
  case TDM_BATCH_KV_LEN:
  case TDM_BATCH_SEQ_KIND:
    return (array_shape){TDM_I32, 1, {limits->seqs}};
  case TDM_BATCH_BLOCK_TABLE:
    return (array_shape){TDM_I32, 2, {limits->seqs, limits->pages_per_seq}};
  case TDM_BATCH_TEMPERATURES:
  case TDM_BATCH_TOP_P:
    return (array_shape){TDM_F32, 1, {limits->tokens}};
  case TDM_BATCH_SEEDS:
    return (array_shape){TDM_I64, 1, {limits->tokens}};
  default:
    return (array_shape){TDM_I32, 1, {limits->tokens}};
  }
}

tdm_status tdm_batch_init(tdm_runtime* runtime, const tdm_batch_limits* limits, tdm_batch* out_batch) {
  *out_batch = (tdm_batch){.runtime = runtime, .limits = *limits};
  for (int i = 0; i < TDM_BATCH_ARRAYS; i++) {
    const array_shape shape = shape_of((tdm_batch_array)i, limits);
    tdm_view* view = &out_batch->views[i];
    *view = tdm_view_make(NULL, shape.dtype, shape.rank, shape.shape);
    view->offset_bytes = (int64_t)out_batch->bytes;
    const size_t bytes = (size_t)(view->shape[0] * view->stride[0]) * tdm_dtype_bytes(shape.dtype);
    out_batch->bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
  if (!(out_batch->mirror = tdm_host_alloc(runtime, out_batch->bytes))) return TDM_OUT_OF_MEMORY;
  tdm_buffer* buffer;
  TDM_TRY(tdm_buffer_create(runtime, out_batch->bytes, &buffer));
  for (int i = 0; i < TDM_BATCH_ARRAYS; i++) out_batch->views[i].buffer = buffer;
  return TDM_OK;
}

void tdm_batch_fini(tdm_batch* batch) {
  if (!batch->runtime) return;
  tdm_host_free(batch->runtime, batch->mirror, batch->bytes);
  tdm_buffer_destroy(batch->views[0].buffer);
  *batch = (tdm_batch){0};
}

static void* mirror_of(tdm_batch* batch, tdm_batch_array array) {
  return batch->mirror + batch->views[array].offset_bytes;
}

int32_t* tdm_batch_i32(tdm_batch* batch, tdm_batch_array array) {
  return mirror_of(batch, array);
}

float* tdm_batch_f32(tdm_batch* batch, tdm_batch_array array) {
  return mirror_of(batch, array);
}

int64_t* tdm_batch_i64(tdm_batch* batch, tdm_batch_array array) {
  return mirror_of(batch, array);
}

tdm_status tdm_batch_upload(tdm_batch* batch) {
  return tdm_buffer_write(batch->views[0].buffer, 0, batch->mirror, batch->bytes);
}

tdm_view tdm_batch_view(const tdm_batch* batch, tdm_batch_array array, int64_t rows) {
  return tdm_view_slice(batch->views[array], 0, 0, rows);
}
