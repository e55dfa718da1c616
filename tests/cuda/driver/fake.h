#ifndef TESTS_CUDA_DRIVER_FAKE_H
#define TESTS_CUDA_DRIVER_FAKE_H

/* Inside of the fake driver. calls.c counts calls and makes them fail, objects.c keeps what is alive, streams.c has the
 * order of things and captures; device.c, memory.c and kernels.c the rest of the functions. */

#include <pthread.h>

#include "tests/cuda/driver/fake_cuda.h"

typedef enum object_kind {
  OBJECT_STREAM = 1,
  OBJECT_EVENT,
  OBJECT_POOL,
  OBJECT_LIBRARY,
  OBJECT_KERNEL,
  OBJECT_GREEN,
  OBJECT_GRAPH,
  OBJECT_EXEC,
  OBJECT_BLOCK,
  OBJECT_DESC,
  OBJECT_PINNED
} object_kind;

/* First member of everything that has a handle, which is its address. */
typedef struct object {
  object_kind kind;
  struct object* next;
} object;

/* Ops in the order in which they were put on streams. */
typedef struct op_list {
  fake_op* ops;
  int n, capacity;
} op_list;

typedef struct capture {
  int id; /* from 1 */
  CUstream origin;
  bool broken; /* something forbidden was done */
  op_list list;
} capture;

typedef struct fake_state {
  pthread_mutex_t mutex; /* recursive; held by every function */
  fake_device device;
  fake_fault fault;
  const char* failed;
  int64_t calls;
  int breaches;
  char breach[256];
  object* objects;
  unsigned queries; /* for the whole device's SMs */
  int contexts;
  op_list eager, captured;
  capture* captures[16]; /* running */
  int n_captures, last_capture;
  size_t pool_bytes;
} fake_state;

extern fake_state fake;

/* First in every function: takes the mutex, counts the call and decides whether it fails. */
CUresult fake_begin(const char* name);
CUresult fake_end(CUresult result);
/* Records a breach and answers `result`. */
CUresult fake_breach(CUresult result, const char* format, ...) __attribute__((format(printf, 2, 3)));
bool fake_context_is_current(void);

/* FAKE_CALL in functions that then do nothing, FAKE_CALL_ANYWAY in those that do their work all the same. Both leave
 * `name` for sentences; the latter leaves `injected`. */
#define FAKE_CALL(function)                                                                                            \
  const char* const name = #function;                                                                                  \
  do {                                                                                                                 \
    const CUresult begun_ = fake_begin(name);                                                                          \
    if (begun_ != CUDA_SUCCESS) return fake_end(begun_);                                                               \
  } while (0)
#define FAKE_CALL_ANYWAY(function)                                                                                     \
  const char* const name = #function;                                                                                  \
  const CUresult injected = fake_begin(name)
#define FAKE_NEED(condition, result, ...)                                                                              \
  do {                                                                                                                 \
    if (!(condition)) return fake_end(fake_breach((result), __VA_ARGS__));                                             \
  } while (0)
#define FAKE_NEED_CONTEXT()                                                                                            \
  FAKE_NEED(fake_context_is_current(), CUDA_ERROR_INVALID_CONTEXT, "%s: no context is current", name)

/* NULL when there is no memory. */
void* fake_object_new(object_kind kind, size_t bytes);
/* Whether the handle is alive and of that kind. */
bool fake_object_is(const void* handle, object_kind kind);
void fake_object_delete(void* handle);
int fake_object_count(object_kind kind);

/* Puts an op on a stream, or into the capture that it is in. */
void fake_put(CUstream stream, fake_op op);
bool fake_is_capturing(CUstream stream);
/* Something that capturing forbids: breaks that capture. */
CUresult fake_break_capture(CUstream stream, const char* name);
/* The same for a call that touches everything in the context. */
CUresult fake_break_captures(const char* name);
void fake_streams_new(CUstream* out_stream, CUgreenCtx green);
void fake_list_free(op_list* list);

#endif
