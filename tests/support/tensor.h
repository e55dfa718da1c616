#ifndef TESTS_SUPPORT_TENSOR_H
#define TESTS_SUPPORT_TENSOR_H

/* Tensors for tests: every byte that an op may not touch is watched. Memory is a guard band, the view's span, a guard
 * band, all filled with 0xff at first, which is NaN in every float format and -1 as an integer: reading what was never
 * set shows in the result, and writing outside of what was allowed shows in test_tensor_check. */

#include "tandem/buffer.h"
#include "tests/support/random.h"

typedef struct test_tensor {
  tdm_view view; /* goes into the args */
  tdm_buffer* buffer;
  uint8_t* memory; /* the whole of the buffer */
  size_t bytes;
  uint8_t* before;   /* copy of memory, taken by test_tensor_watch */
  uint8_t* writable; /* 1 for each byte that may change */
} test_tensor;

/* `stride` NULL: contiguous. Room for `spare` more elements of the last dimension is left after the view (for the pad
 * columns of scales). Fails the test when it cannot. */
void test_tensor_init(test_tensor* tensor, tdm_runtime* runtime, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                      const int64_t* stride, int64_t spare);
void test_tensor_free(test_tensor* tensor);

/* Number of elements of a view, and the address of the one at a row-major index. */
int64_t test_view_count(const tdm_view* view);
void* test_view_at(const tdm_view* view, int64_t row_major_index);

/* Elements of a view in row-major order: floats are rounded to bf16 or e4m3, integers are converted. */
void test_view_set(const tdm_view* view, const float* values);
void test_view_get(const tdm_view* view, float* values);
/* test_view_get into memory that the caller frees. */
float* test_view_values(const tdm_view* view);
/* 0xff to every byte of the view's elements: rows that no op may read. */
void test_view_poison(const tdm_view* view);
/* Every element of the view, with random normal values times `deviation`, rounded to its dtype. */
void test_view_set_normal(const tdm_view* view, test_random* random, float deviation);

/* The elements of `part`, a view of this tensor's buffer, may change. Without a call nothing may. */
void test_tensor_allow(test_tensor* tensor, const tdm_view* part);
/* Remembers the contents; forgets nothing of what was allowed. */
void test_tensor_watch(test_tensor* tensor);
/* Bytes that changed since test_tensor_watch though they were not allowed to; a Criterion failure when there are any.
 */
int64_t test_tensor_check(const test_tensor* tensor, const char* what);

#endif
