#include "tests/support/heap.h"

#include <jansson.h>
#include <stdlib.h>

bool test_heap_fails(test_heap* heap, size_t bytes) {
  heap->calls++;
  if (heap->largest && bytes > (size_t)heap->largest) return true;
  return heap->fail_from && heap->calls >= heap->fail_from && (!heap->fail_until || heap->calls <= heap->fail_until);
}

void test_heap_fail_at(test_heap* heap, int64_t n) {
  heap->calls = 0;
  heap->fail_from = heap->fail_until = n;
}

static void* heap_alloc(void* ctx, size_t bytes, size_t alignment) {
  test_heap* heap = ctx;
  pthread_mutex_lock(&heap->mutex);
  void* memory = NULL;
  if (!test_heap_fails(heap, bytes) && posix_memalign(&memory, alignment, bytes) == 0) {
    heap->outstanding++;
    heap->bytes += (int64_t)bytes;
  }
  pthread_mutex_unlock(&heap->mutex);
  return memory;
}

static void heap_free(void* ctx, void* memory, size_t bytes) {
  test_heap* heap = ctx;
  pthread_mutex_lock(&heap->mutex);
  heap->outstanding--;
  heap->bytes -= (int64_t)bytes;
  pthread_mutex_unlock(&heap->mutex);
  free(memory);
}

tdm_allocator test_heap_allocator(test_heap* heap) {
  return (tdm_allocator){.alloc = heap_alloc, .free = heap_free, .ctx = heap};
}

/* ---- jansson's --------------------------------------------------------------------------------------------------- */

static test_heap json_heap;

static void* json_heap_alloc(size_t bytes) {
  void* memory = test_heap_fails(&json_heap, bytes) ? NULL : malloc(bytes);
  json_heap.outstanding += memory != NULL;
  return memory;
}

static void json_heap_free(void* memory) {
  json_heap.outstanding -= memory != NULL;
  free(memory);
}

test_heap* test_heap_watch_json(void) {
  json_set_alloc_funcs(json_heap_alloc, json_heap_free);
  return &json_heap;
}
