#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/driver/fake.h"

static const fake_device default_device = {.count = 1, .major = 9, .sms = 132, .step = 8};

fake_state fake = {.mutex = PTHREAD_MUTEX_INITIALIZER, .device = {.count = 1, .major = 9, .sms = 132, .step = 8}};

/* ---- calls ------------------------------------------------------------------------------------------------------ */

CUresult fake_begin(const char* name) {
  pthread_mutex_lock(&fake.mutex);
  const fake_fault* fault = &fake.fault;
  if (fault->name && strcmp(fault->name, name) != 0) return CUDA_SUCCESS;
  fake.calls++;
  if (!fault->nth || fake.calls < fault->nth || (fake.calls > fault->nth && !fault->onwards)) return CUDA_SUCCESS;
  if (!fake.failed) fake.failed = name;
  return fault->result;
}

CUresult fake_end(CUresult result) {
  pthread_mutex_unlock(&fake.mutex);
  return result;
}

CUresult fake_breach(CUresult result, const char* format, ...) {
  if (fake.breaches++ == 0) {
    va_list args;
    va_start(args, format);
    vsnprintf(fake.breach, sizeof fake.breach, format, args);
    va_end(args);
  }
  return result;
}

/* ---- objects ---------------------------------------------------------------------------------------------------- */

void* fake_object_new(object_kind kind, size_t bytes) {
  object* one = calloc(1, bytes);
  if (!one) return NULL;
  one->kind = kind;
  one->next = fake.objects;
  fake.objects = one;
  return one;
}

bool fake_object_is(const void* handle, object_kind kind) {
  for (const object* one = fake.objects; one; one = one->next)
    if (one == handle) return one->kind == kind;
  return false;
}

void fake_object_delete(void* handle) {
  object** link = &fake.objects;
  while (*link != handle) link = &(*link)->next;
  *link = (*link)->next;
  free(handle);
}

int fake_object_count(object_kind kind) {
  int n = 0;
  for (const object* one = fake.objects; one; one = one->next) n += one->kind == kind;
  return n;
}

/* ---- controls --------------------------------------------------------------------------------------------------- */

void fake_cuda_reset(const fake_device* device) {
  pthread_mutex_lock(&fake.mutex);
  fake.device = device ? *device : default_device;
  fake.fault = (fake_fault){0};
  fake.failed = NULL;
  fake.calls = 0;
  fake.breaches = 0;
  fake.breach[0] = 0;
  pthread_mutex_unlock(&fake.mutex);
  fake_cuda_forget();
}

void fake_cuda_limit_memory(size_t bytes) {
  pthread_mutex_lock(&fake.mutex);
  fake.device.memory = bytes;
  pthread_mutex_unlock(&fake.mutex);
}

void fake_cuda_fail(const fake_fault* fault) {
  pthread_mutex_lock(&fake.mutex);
  fake.fault = *fault;
  fake.failed = NULL;
  fake.calls = 0;
  pthread_mutex_unlock(&fake.mutex);
}

const char* fake_cuda_failed(void) {
  return fake.failed;
}

int64_t fake_cuda_calls(void) {
  return fake.calls;
}

int fake_cuda_left(void) {
  const fake_live live = fake_cuda_live();
  return live.contexts + live.streams + live.events + live.pools + live.libraries + live.greens + live.graphs +
         live.execs + live.blocks + live.pinned + live.pushed;
}

int fake_cuda_breaches(void) {
  return fake.breaches;
}

const char* fake_cuda_breach(void) {
  return fake.breach;
}
