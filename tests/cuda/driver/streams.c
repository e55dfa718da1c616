#include <stdlib.h>
#include <string.h>

#include "tests/cuda/driver/fake.h"

struct CUstream_st {
  object base;
  CUgreenCtx green;
  capture* capture; /* NULL when it is not in one */
  int last;         /* op in the capture's list, else in the eager one; -1: none */
};

struct CUevent_st {
  object base;
  int capture; /* id of the capture it was recorded in; 0: none */
  int op;      /* -1: not recorded */
};

struct CUgraph_st {
  object base;
};

struct CUgraphExec_st {
  object base;
};

/* ---- ops -------------------------------------------------------------------------------------------------------- */

static int list_add(op_list* list, const fake_op* op) {
  if (list->n == list->capacity) {
    list->capacity = list->capacity ? 2 * list->capacity : 256;
    list->ops = realloc(list->ops, (size_t)list->capacity * sizeof *list->ops);
    if (!list->ops) abort();
  }
  list->ops[list->n] = *op;
  return list->n++;
}

void fake_list_free(op_list* list) {
  free(list->ops);
  *list = (op_list){0};
}

void fake_put(CUstream stream, fake_op op) {
  op_list* list = stream->capture ? &stream->capture->list : &fake.eager;
  op.stream = stream;
  op.before[0] = stream->last;
  op.before[1] = -1;
  if (op.kind == FAKE_WAIT) op.before[1] = op.event->op;
  stream->last = list_add(list, &op);
  if (op.kind == FAKE_RECORD) {
    op.event->op = stream->last;
    op.event->capture = stream->capture ? stream->capture->id : 0;
  }
}

bool fake_is_capturing(CUstream stream) {
  return stream->capture != NULL;
}

CUresult fake_break_capture(CUstream stream, const char* name) {
  stream->capture->broken = true;
  return fake_breach(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s on a stream that captures", name);
}

CUresult fake_break_captures(const char* name) {
  if (!fake.n_captures) return CUDA_SUCCESS;
  for (int i = 0; i < fake.n_captures; i++) fake.captures[i]->broken = true;
  return fake_breach(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while a stream of the context captures", name);
}

const fake_op* fake_cuda_ops(int* out_count) {
  *out_count = fake.eager.n;
  return fake.eager.ops;
}

const fake_op* fake_cuda_captured(int* out_count) {
  *out_count = fake.captured.n;
  return fake.captured.ops;
}

void fake_cuda_forget(void) {
  pthread_mutex_lock(&fake.mutex);
  fake_list_free(&fake.eager);
  fake_list_free(&fake.captured);
  for (object* one = fake.objects; one; one = one->next) {
    if (one->kind == OBJECT_STREAM && !((CUstream)(void*)one)->capture) ((CUstream)(void*)one)->last = -1;
    if (one->kind == OBJECT_EVENT) ((CUevent)(void*)one)->op = -1;
  }
  pthread_mutex_unlock(&fake.mutex);
}

bool fake_cuda_ordered(const fake_op* ops, int a, int b) {
  if (b <= a) return false;
  bool* after = calloc((size_t)b + 1, sizeof *after);
  if (!after) abort();
  for (int i = a + 1; i <= b; i++)
    for (int k = 0; k < 2; k++) {
      const int before = ops[i].before[k];
      after[i] = after[i] || before == a || (before > a && after[before]);
    }
  const bool ordered = after[b];
  free(after);
  return ordered;
}

/* ---- streams ---------------------------------------------------------------------------------------------------- */

void fake_streams_new(CUstream* out_stream, CUgreenCtx green) {
  *out_stream = fake_object_new(OBJECT_STREAM, sizeof **out_stream);
  (*out_stream)->green = green;
  (*out_stream)->last = -1;
}

CUresult cuStreamCreate(CUstream* out_stream, unsigned flags) {
  FAKE_CALL(cuStreamCreate);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(flags <= 1, CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  fake_streams_new(out_stream, NULL);
  return fake_end(CUDA_SUCCESS);
}

CUresult cuStreamDestroy(CUstream stream) {
  FAKE_CALL_ANYWAY(cuStreamDestroy);
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s: it captures", name);
  fake_object_delete(stream);
  return fake_end(injected);
}

CUresult cuStreamSynchronize(CUstream stream) {
  FAKE_CALL(cuStreamSynchronize);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  if (stream->capture) return fake_end(fake_break_capture(stream, name));
  fake_put(stream, (fake_op){.kind = FAKE_SYNC});
  return fake_end(CUDA_SUCCESS);
}

/* A stream joins a capture by waiting for an event that was recorded in it. */
static CUresult wait_event(CUstream stream, CUevent event) {
  if (event->op < 0) return CUDA_SUCCESS;
  if (!event->capture) {
    if (!stream->capture) return CUDA_SUCCESS;
    stream->capture->broken = true;
    return fake_breach(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a captured stream waits for what is not captured");
  }
  capture* joined = NULL;
  for (int i = 0; i < fake.n_captures; i++)
    if (fake.captures[i]->id == event->capture) joined = fake.captures[i];
  if (!joined) return fake_breach(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture that has ended");
  if (stream->capture && stream->capture != joined)
    return fake_breach(CUDA_ERROR_STREAM_CAPTURE_MERGE, "a wait would merge two captures");
  if (!stream->capture) stream->last = -1;
  stream->capture = joined;
  return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  FAKE_CALL(cuStreamWaitEvent);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(fake_object_is(event, OBJECT_EVENT), CUDA_ERROR_INVALID_HANDLE, "%s: no event", name);
  FAKE_NEED(flags == 0, CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  const CUresult result = wait_event(stream, event);
  if (result == CUDA_SUCCESS) fake_put(stream, (fake_op){.kind = FAKE_WAIT, .event = event});
  return fake_end(result);
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

CUresult cuEventCreate(CUevent* out_event, unsigned flags) {
  FAKE_CALL(cuEventCreate);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(flags <= 3, CUDA_ERROR_INVALID_VALUE, "%s: flags %u", name, flags);
  *out_event = fake_object_new(OBJECT_EVENT, sizeof **out_event);
  (*out_event)->op = -1;
  return fake_end(CUDA_SUCCESS);
}

CUresult cuEventSynchronize(CUevent event) {
  FAKE_CALL(cuEventSynchronize);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(event, OBJECT_EVENT), CUDA_ERROR_INVALID_HANDLE, "%s: no event", name);
  FAKE_NEED(!event->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s: the event was captured", name);
  return fake_end(CUDA_SUCCESS);
}

CUresult cuEventDestroy(CUevent event) {
  FAKE_CALL_ANYWAY(cuEventDestroy);
  FAKE_NEED(fake_object_is(event, OBJECT_EVENT), CUDA_ERROR_INVALID_HANDLE, "%s: no event", name);
  fake_object_delete(event);
  return fake_end(injected);
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  FAKE_CALL(cuEventRecord);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(fake_object_is(event, OBJECT_EVENT), CUDA_ERROR_INVALID_HANDLE, "%s: no event", name);
  fake_put(stream, (fake_op){.kind = FAKE_RECORD, .event = event});
  return fake_end(CUDA_SUCCESS);
}

/* ---- captures and graphs ---------------------------------------------------------------------------------------- */

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  FAKE_CALL(cuStreamBeginCapture);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(!stream->capture && fake.n_captures < 16 && mode <= CU_STREAM_CAPTURE_MODE_RELAXED,
            CUDA_ERROR_ILLEGAL_STATE, "%s: it captures already", name);
  capture* begun = calloc(1, sizeof *begun);
  if (!begun) abort();
  begun->id = ++fake.last_capture;
  begun->origin = stream;
  stream->capture = begun;
  stream->last = -1;
  fake.captures[fake.n_captures++] = begun;
  return fake_end(CUDA_SUCCESS);
}

static int last_launch(const op_list* list, CUstream stream) {
  for (int i = list->n - 1; i >= 0; i--)
    if (list->ops[i].kind == FAKE_LAUNCH && list->ops[i].stream == stream) return i;
  return -1;
}

/* Everything in the capture must come before where its origin stands. */
static CUresult judge_capture(const capture* ended) {
  if (ended->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (const object* one = fake.objects; one; one = one->next) {
    const CUstream stream = (CUstream)(uintptr_t)one;
    if (one->kind != OBJECT_STREAM || stream->capture != ended || stream == ended->origin) continue;
    const int last = last_launch(&ended->list, stream);
    if (last >= 0 && !fake_cuda_ordered(ended->list.ops, last, ended->origin->last))
      return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  }
  return CUDA_SUCCESS;
}

static void remove_capture(capture* ended) {
  for (object* one = fake.objects; one; one = one->next)
    if (one->kind == OBJECT_STREAM && ((CUstream)(void*)one)->capture == ended) {
      ((CUstream)(void*)one)->capture = NULL;
      ((CUstream)(void*)one)->last = -1;
    }
  int i = 0;
  while (fake.captures[i] != ended) i++;
  fake.captures[i] = fake.captures[--fake.n_captures];
  fake_list_free(&fake.captured);
  fake.captured = ended->list;
  free(ended);
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* out_graph) {
  FAKE_CALL_ANYWAY(cuStreamEndCapture);
  *out_graph = NULL;
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  FAKE_NEED(stream->capture && stream->capture->origin == stream, CUDA_ERROR_ILLEGAL_STATE, "%s: it began no capture",
            name);
  const CUresult result = injected != CUDA_SUCCESS ? injected : judge_capture(stream->capture);
  remove_capture(stream->capture);
  if (result == CUDA_SUCCESS) *out_graph = fake_object_new(OBJECT_GRAPH, sizeof **out_graph);
  return fake_end(result);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* out_exec, CUgraph graph, unsigned long long flags) {
  FAKE_CALL(cuGraphInstantiateWithFlags);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(graph, OBJECT_GRAPH) && flags == 0, CUDA_ERROR_INVALID_VALUE, "%s: no graph", name);
  *out_exec = fake_object_new(OBJECT_EXEC, sizeof **out_exec);
  return fake_end(CUDA_SUCCESS);
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  FAKE_CALL(cuGraphLaunch);
  FAKE_NEED_CONTEXT();
  FAKE_NEED(fake_object_is(exec, OBJECT_EXEC), CUDA_ERROR_INVALID_HANDLE, "%s: no executable graph", name);
  FAKE_NEED(fake_object_is(stream, OBJECT_STREAM), CUDA_ERROR_INVALID_HANDLE, "%s: no stream", name);
  fake_put(stream, (fake_op){.kind = FAKE_GRAPH, .exec = exec});
  return fake_end(CUDA_SUCCESS);
}

CUresult cuGraphDestroy(CUgraph graph) {
  FAKE_CALL_ANYWAY(cuGraphDestroy);
  FAKE_NEED(fake_object_is(graph, OBJECT_GRAPH), CUDA_ERROR_INVALID_VALUE, "%s: no graph", name);
  fake_object_delete(graph);
  return fake_end(injected);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
  FAKE_CALL_ANYWAY(cuGraphExecDestroy);
  FAKE_NEED(fake_object_is(exec, OBJECT_EXEC), CUDA_ERROR_INVALID_VALUE, "%s: no executable graph", name);
  fake_object_delete(exec);
  return fake_end(injected);
}
