#ifndef TESTS_SUPPORT_HEAP_H
#define TESTS_SUPPORT_HEAP_H

/* Memory that is counted and fails on demand, from several threads. */

#include <pthread.h>

#include "tandem/runtime.h"

typedef struct test_heap {
  pthread_mutex_t mutex;
  int64_t calls;       /* of alloc so far */
  int64_t fail_from;   /* the first call that fails, counted from 1; 0: none */
  int64_t fail_until;  /* the last one; 0: all from fail_from on */
  int64_t largest;     /* blocks of more bytes fail; 0: none */
  int64_t outstanding; /* blocks not freed */
  int64_t bytes;       /* in them: frees with a wrong size show here */
} test_heap;

#define TEST_HEAP_INIT                                                                                                 \
  { .mutex = PTHREAD_MUTEX_INITIALIZER }

tdm_allocator test_heap_allocator(test_heap* heap);
/* Counts calls anew; the n-th of them, and no other, fails. n 0: none does. */
void test_heap_fail_at(test_heap* heap, int64_t n);
/* Counts a call for `bytes` and says whether it is to fail: for allocators of other libraries. */
bool test_heap_fails(test_heap* heap, size_t bytes);

/* From now on, in this process, jansson's memory is counted as well and fails on demand. */
test_heap* test_heap_watch_json(void);

#endif
