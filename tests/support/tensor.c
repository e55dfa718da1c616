#include "tests/support/tensor.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "runtime/op.h"

enum { GUARD_BYTES = 256 };

void test_tensor_init(test_tensor* tensor, tdm_runtime* runtime, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                      const int64_t* stride, int64_t spare) {
  memset(tensor, 0, sizeof *tensor);
  tensor->view = tdm_view_make(NULL, dtype, rank, shape);
  tensor->view.offset_bytes = GUARD_BYTES;
  if (stride != NULL) memcpy(tensor->view.stride, stride, (size_t)rank * sizeof *stride);
  size_t span = tdm_view_span_bytes(&tensor->view) + (size_t)spare * tdm_dtype_bytes(dtype);
  tensor->bytes = (span + 2 * GUARD_BYTES + 255) & ~(size_t)255;
  tensor->memory = aligned_alloc(256, tensor->bytes);
  tensor->before = malloc(tensor->bytes);
  tensor->writable = calloc(tensor->bytes, 1);
  cr_assert(tensor->memory != NULL && tensor->before != NULL && tensor->writable != NULL, "out of memory");
  memset(tensor->memory, 0xff, tensor->bytes);
  cr_assert_eq(tdm_buffer_wrap(runtime, tensor->memory, tensor->bytes, &tensor->buffer), TDM_OK, "%s",
               tdm_last_error()->message);
  tensor->view.buffer = tensor->buffer;
  test_tensor_watch(tensor);
}

void test_tensor_free(test_tensor* tensor) {
  tdm_buffer_destroy(tensor->buffer);
  free(tensor->memory);
  free(tensor->before);
  free(tensor->writable);
  memset(tensor, 0, sizeof *tensor);
}

int64_t test_view_count(const tdm_view* view) {
  int64_t count = 1;
  for (int32_t i = 0; i < view->rank; i++) count *= view->shape[i];
  return count;
}

void* test_view_at(const tdm_view* view, int64_t row_major_index) {
  int64_t element = 0;
  for (int32_t i = view->rank - 1; i >= 0; i--) {
    element += row_major_index % view->shape[i] * view->stride[i];
    row_major_index /= view->shape[i];
  }
  return (uint8_t*)tdm_view_data(view) + element * (int64_t)tdm_dtype_bytes(view->dtype);
}

void test_view_set(const tdm_view* view, const float* values) {
  for (int64_t i = 0; i < test_view_count(view); i++) {
    void* at = test_view_at(view, i);
    if (view->dtype == TDM_I32) {
      *(int32_t*)at = (int32_t)values[i];
    } else if (view->dtype == TDM_I64) {
      *(int64_t*)at = (int64_t)values[i];
    } else {
      tdm_store_f32(at, view->dtype, 0, values[i]);
    }
  }
}

void test_view_get(const tdm_view* view, float* values) {
  for (int64_t i = 0; i < test_view_count(view); i++) {
    const void* at = test_view_at(view, i);
    if (view->dtype == TDM_I32) {
      values[i] = (float)*(const int32_t*)at;
    } else if (view->dtype == TDM_I64) {
      values[i] = (float)*(const int64_t*)at;
    } else {
      values[i] = tdm_load_f32(at, view->dtype, 0);
    }
  }
}

float* test_view_values(const tdm_view* view) {
  float* values = malloc((size_t)test_view_count(view) * sizeof *values);
  cr_assert_not_null(values);
  test_view_get(view, values);
  return values;
}

void test_view_poison(const tdm_view* view) {
  for (int64_t i = 0; i < test_view_count(view); i++) {
    memset(test_view_at(view, i), 0xff, tdm_dtype_bytes(view->dtype));
  }
}

void test_view_set_normal(const tdm_view* view, test_random* random, float deviation) {
  for (int64_t i = 0; i < test_view_count(view); i++) {
    tdm_store_f32(test_view_at(view, i), view->dtype, 0, deviation * test_random_normal(random));
  }
}

void test_tensor_allow(test_tensor* tensor, const tdm_view* part) {
  cr_assert_eq(part->buffer, tensor->buffer, "a view of another tensor");
  for (int64_t i = 0; i < test_view_count(part); i++) {
    int64_t at = (uint8_t*)test_view_at(part, i) - tensor->memory;
    memset(tensor->writable + at, 1, tdm_dtype_bytes(part->dtype));
  }
}

void test_tensor_watch(test_tensor* tensor) {
  memcpy(tensor->before, tensor->memory, tensor->bytes);
}

int64_t test_tensor_check(const test_tensor* tensor, const char* what) {
  int64_t changed = 0;
  int64_t first = -1;
  for (size_t i = 0; i < tensor->bytes; i++) {
    if (tensor->writable[i] || tensor->memory[i] == tensor->before[i]) continue;
    if (changed++ == 0) first = (int64_t)i;
  }
  cr_expect_eq(changed, 0, "%s: %lld bytes changed that should not, the first %lld bytes after the view's start", what,
               (long long)changed, (long long)(first - tensor->view.offset_bytes));
  return changed;
}
