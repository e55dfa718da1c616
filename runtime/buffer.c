#include "runtime/buffer.h"

#include "runtime/device.h"
#include "runtime/op.h"
#include <inttypes.h>

static tdm_status buffer_new(tdm_runtime* runtime, size_t bytes, tdm_buffer** out_buffer) {
  tdm_buffer* buffer = tdm_host_alloc(runtime, sizeof *buffer);
  if (!buffer) return TDM_OUT_OF_MEMORY;
  buffer->runtime = runtime;
  buffer->bytes = bytes;
  buffer->temp = -1;
  atomic_init(&buffer->references, 1);
  tdm_runtime_retain(runtime, TDM_OBJECT_BUFFER);
  *out_buffer = buffer;
  return TDM_OK;
}

static tdm_status check_new(const char* function, const tdm_runtime* runtime, size_t bytes, tdm_buffer** out_buffer) {
  if (out_buffer) *out_buffer = NULL;
  if (!runtime || !out_buffer)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: runtime and out_buffer must not be NULL", function);
  if (bytes == 0 || bytes > PTRDIFF_MAX)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %zu bytes; a buffer has 1 to %td", function, bytes, PTRDIFF_MAX);
  return TDM_OK;
}

tdm_status tdm_buffer_create(tdm_runtime* runtime, size_t bytes, tdm_buffer** out_buffer) {
  TDM_TRY(check_new("tdm_buffer_create", runtime, bytes, out_buffer));
  uint8_t* data = tdm_device_alloc(runtime, bytes);
  if (!data) return tdm_last_error()->status; /* on a CUDA device there are other reasons than a lack of it */
  tdm_status status = buffer_new(runtime, bytes, out_buffer);
  if (status != TDM_OK) {
    tdm_device_free(runtime, data, bytes);
    return status;
  }
  (*out_buffer)->data = data;
  (*out_buffer)->owns_data = true;
  return TDM_OK;
}

tdm_status tdm_buffer_wrap(tdm_runtime* runtime, void* data, size_t bytes, tdm_buffer** out_buffer) {
  TDM_TRY(check_new("tdm_buffer_wrap", runtime, bytes, out_buffer));
  if (!data || (uintptr_t)data % 16 != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_buffer_wrap: data %p must be set and 16-byte aligned", data);
  TDM_TRY(buffer_new(runtime, bytes, out_buffer));
  (*out_buffer)->data = data;
  return TDM_OK;
}

tdm_status tdm_buffer_create_temp(tdm_runtime* runtime, const tdm_program* program, int32_t temp, size_t bytes,
                                  tdm_buffer** out_buffer) {
  TDM_TRY(buffer_new(runtime, bytes, out_buffer));
  (*out_buffer)->program = program;
  (*out_buffer)->temp = temp;
  return TDM_OK;
}

void tdm_buffer_retain(tdm_buffer* buffer) {
  atomic_fetch_add_explicit(&buffer->references, 1, memory_order_relaxed);
}

void tdm_buffer_destroy(tdm_buffer* buffer) {
  if (!buffer || atomic_fetch_sub_explicit(&buffer->references, 1, memory_order_acq_rel) != 1) return;
  tdm_runtime* runtime = buffer->runtime;
  if (buffer->owns_data) tdm_device_free(runtime, buffer->data, buffer->bytes);
  tdm_host_free(runtime, buffer, sizeof *buffer);
  tdm_runtime_release(runtime, TDM_OBJECT_BUFFER);
}

size_t tdm_buffer_bytes(const tdm_buffer* buffer) {
  return buffer ? buffer->bytes : 0;
}

void* tdm_buffer_data(const tdm_buffer* buffer) {
  return buffer ? buffer->data : NULL;
}

static tdm_status check_range(const char* function, const tdm_buffer* buffer, size_t offset, const void* memory,
                              size_t bytes) {
  if (!buffer || (bytes && !memory))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: buffer and host memory must not be NULL", function);
  if (!buffer->data)
    return TDM_FAIL(TDM_INVALID_STATE, "%s: the temporary has no memory before its program is sealed", function);
  if (offset > buffer->bytes || bytes > buffer->bytes - offset)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: bytes %zu .. %zu leave the buffer of %zu bytes", function, offset,
                    offset + bytes, buffer->bytes);
  return TDM_OK;
}

tdm_status tdm_buffer_write(tdm_buffer* buffer, size_t offset_bytes, const void* source, size_t bytes) {
  TDM_TRY(check_range("tdm_buffer_write", buffer, offset_bytes, source, bytes));
  if (bytes == 0) return TDM_OK;
  return buffer->runtime->device->write(buffer->runtime, buffer->data + offset_bytes, source, bytes);
}

tdm_status tdm_buffer_read(const tdm_buffer* buffer, size_t offset_bytes, void* destination, size_t bytes) {
  TDM_TRY(check_range("tdm_buffer_read", buffer, offset_bytes, destination, bytes));
  if (bytes == 0) return TDM_OK;
  return buffer->runtime->device->read(buffer->runtime, destination, buffer->data + offset_bytes, bytes);
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

tdm_view tdm_view_make(tdm_buffer* buffer, tdm_dtype dtype, int32_t rank, const int64_t* shape) {
  tdm_view view = {.buffer = buffer, .dtype = dtype, .rank = rank};
  int64_t stride = 1;
  for (int32_t dim = rank - 1; dim >= 0; dim--) {
    if (dim >= TDM_MAX_RANK) continue;
    view.shape[dim] = shape[dim];
    view.stride[dim] = stride;
    if (__builtin_mul_overflow(stride, shape[dim], &stride)) stride = INT64_MAX; /* the view's use will refuse it */
  }
  return view;
}

tdm_view tdm_view_slice(tdm_view view, int32_t dim, int64_t begin, int64_t count) {
  view.offset_bytes += begin * view.stride[dim] * (int64_t)tdm_dtype_bytes(view.dtype);
  view.shape[dim] = count;
  return view;
}

tdm_view tdm_view_transpose(tdm_view view, int32_t a, int32_t b) {
  const int64_t shape = view.shape[a], stride = view.stride[a];
  view.shape[a] = view.shape[b];
  view.stride[a] = view.stride[b];
  view.shape[b] = shape;
  view.stride[b] = stride;
  return view;
}

int64_t tdm_scale_stride(int64_t n_rows) {
  return (n_rows + 3) / 4 * 4;
}

void* tdm_view_data(const tdm_view* view) {
  return view->buffer->data + view->offset_bytes;
}

/* False on overflow. */
static bool span_bytes(const tdm_view* view, int64_t* out_bytes) {
  int64_t last = 0;
  for (int32_t dim = 0; dim < view->rank; dim++) {
    int64_t reach;
    if (__builtin_mul_overflow(view->shape[dim] - 1, view->stride[dim], &reach) ||
        __builtin_add_overflow(last, reach, &last))
      return false;
  }
  return !__builtin_add_overflow(last, 1, &last) &&
         !__builtin_mul_overflow(last, (int64_t)tdm_dtype_bytes(view->dtype), out_bytes);
}

size_t tdm_view_span_bytes(const tdm_view* view) {
  int64_t bytes = 0;
  return span_bytes(view, &bytes) ? (size_t)bytes : 0;
}

tdm_status tdm_view_check(const char* name, const tdm_view* view) {
  const int64_t element = (int64_t)tdm_dtype_bytes(view->dtype);
  if (element == 0) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: dtype %d is no tdm_dtype", name, (int)view->dtype);
  if (view->rank < 1 || view->rank > TDM_MAX_RANK)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: rank %d, must be 1 to %d", name, view->rank, TDM_MAX_RANK);
  for (int32_t dim = 0; dim < view->rank; dim++) {
    if (view->shape[dim] < 1)
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: extent %" PRId64 " of dimension %d must be at least 1", name,
                      view->shape[dim], dim);
    if (view->stride[dim] < 0)
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: stride %" PRId64 " of dimension %d is negative", name,
                      view->stride[dim], dim);
  }
  int64_t bytes, end;
  if (view->offset_bytes < 0 || view->offset_bytes % element != 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "%s: offset of %" PRId64 " bytes must be a multiple of its %" PRId64 "-byte elements", name,
                    view->offset_bytes, element);
  if (!span_bytes(view, &bytes) || __builtin_add_overflow(view->offset_bytes, bytes, &end))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: its extents and strides overflow 64 bits", name);
  if ((uint64_t)end > view->buffer->bytes)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: reaches byte %" PRId64 " of a buffer of %zu bytes", name, end,
                    view->buffer->bytes);
  return TDM_OK;
}
