#include "tests/emulated/run.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulated/emulated.h"
#include "tests/support/compare.h"

enum { MOST_OUTPUTS = 9, GUARD_BYTES = 1024, GUARD = 0xa5 };

static void* filled(size_t bytes, int value) {
  void* memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
  cr_assert_not_null(memory);
  memset(memory, value, bytes);
  return memory;
}

static uint8_t* copy_of(const test_tensor* tensor) {
  uint8_t* copy = filled(tensor->bytes, 0);
  memcpy(copy, tensor->memory, tensor->bytes);
  return copy;
}

static void launch_all(test_rig* rig, const tdm_encoded_step* step, const char* kernel) {
  for (int32_t i = 0; i < step->n_launches; i++) {
    const char* name = step->launches[i].launch.kernel;
    cr_assert(emulated_launch(&step->launches[i], test_random_u64(&rig->random)), "%s: %s is not emulated", rig->label,
              name);
    if (i + 1 == step->n_launches) cr_expect_not_null(strstr(name, kernel), "%s: %s, not %s", rig->label, name, kernel);
  }
}

/* Memory of a step, NULL where there is none; what lies behind it must stay as it is. */
static uint8_t* guarded(size_t bytes, int value) {
  if (bytes == 0) return NULL;
  uint8_t* memory = filled(bytes + GUARD_BYTES, GUARD);
  memset(memory, value, bytes);
  return memory;
}

static void expect_guard(const char* what, const char* name, const uint8_t* memory, size_t bytes) {
  for (size_t i = bytes; memory && i < bytes + GUARD_BYTES; i++)
    cr_assert_eq(memory[i], GUARD, "%s: byte %zu of %zu of the %s is written", what, i, bytes, name);
}

static void run_kernels(test_rig* rig, const emulated_call* call, int32_t sms, const char* kernel) {
  static tdm_encoded_step step; /* large */
  const tdm_op* op = call->op;
  tdm_plan plan = {.splits = 1};
  void* args = malloc(op->args_bytes);
  cr_assert_not_null(args);
  memcpy(args, call->args, op->args_bytes);
  cr_assert_eq(op->check(args), TDM_OK, "%s: %s", rig->label, tdm_last_error()->message);
  op->plan(args, sms, &plan);
  if (call->encode) plan.scratch_bytes = plan.state_bytes = call->memory_bytes;
  uint8_t *scratch = guarded(plan.scratch_bytes, 0xff), *state = guarded(plan.state_bytes, 0);
  const tdm_encode_env env = {.sms = sms, .scratch = scratch, .state = state, .tensor_map = emulated_encode};
  step.n_launches = 0;
  cr_assert_eq(call->encode ? call->encode(args, &env, &step) : op->encode(args, &plan, &env, &step), TDM_OK, "%s: %s",
               rig->label, tdm_last_error()->message);
  launch_all(rig, &step, kernel);
  if (call->counts_launches) { /* with nothing that the first has left in the workspace */
    if (scratch) memset(scratch, 0xff, plan.scratch_bytes);
    launch_all(rig, &step, kernel);
  }
  for (size_t i = call->counts_launches ? sizeof(uint32_t) : 0; i < plan.state_bytes; i++)
    cr_assert_eq(state[i], 0, "%s: byte %zu of the counters is not zero", rig->label, i);
  expect_guard(rig->label, "scratch", scratch, plan.scratch_bytes);
  expect_guard(rig->label, "counters", state, plan.state_bytes);
  free(scratch);
  free(state);
  free(args);
}

void emulated_run(test_rig* rig, const emulated_call* call) {
  run_kernels(rig, call, 132, call->kernel);
}

static void poison(test_rig* rig, const emulated_call* call) {
  for (int32_t i = 0; i < call->n_outputs; i++) {
    const test_tensor* tensor = call->outputs[i].tensor;
    if (tensor) memset(tensor->memory, 0xff, tensor->bytes);
  }
  for (int32_t i = 0; i < rig->n_tensors; i++) test_tensor_watch(&rig->tensors[i]);
}

/* Values of `dtype` that were rounded from nearly the same numbers. */
static void expect_rounded(const char* what, tdm_dtype dtype, const float* got, const float* want, int64_t count) {
  const float step = dtype == TDM_E4M3 ? 1.0f / 8.0f : 1.0f / 128.0f;
  float largest = 0.0f;
  for (int64_t i = 0; i < count; i++) largest = fmaxf(largest, isfinite(want[i]) ? fabsf(want[i]) : 0.0f);
  const float least = dtype == TDM_E4M3 ? 1.0f / 512.0f : 1e-6f * largest; /* subnormal codes; sums that cancel out */
  int64_t off = 0;
  for (int64_t i = 0; i < count; i++) {
    if (got[i] == want[i] || (isnan(got[i]) && isnan(want[i]))) continue;
    const bool near = fabsf(got[i] - want[i]) <= fmaxf(step * fabsf(want[i]), least);
    cr_assert(near, "%s: element %lld is %g, expected %g", what, (long long)i, (double)got[i], (double)want[i]);
    off++;
  }
  cr_expect_leq(off, 1 + count / 1000, "%s: %lld of %lld elements are off", what, (long long)off, (long long)count);
}

/* The contents of `memory` as the tensor's. */
static float* values_of(const test_tensor* tensor, const uint8_t* memory) {
  uint8_t* mine = copy_of(tensor);
  memcpy(tensor->memory, memory, tensor->bytes);
  float* values = test_view_values(&tensor->view);
  memcpy(tensor->memory, mine, tensor->bytes);
  free(mine);
  return values;
}

static void compare(const char* what, const emulated_output* output, const uint8_t* want) {
  const test_tensor* tensor = output->tensor;
  const tdm_view* view = &tensor->view;
  const bool rounded = view->dtype == TDM_E4M3 || view->dtype == TDM_BF16;
  if (!rounded && (output->exact || view->dtype != TDM_F32)) {
    (void)test_expect_bits(what, tensor->memory, want, (int64_t)tensor->bytes);
    return;
  }
  const int64_t count = test_view_count(view), cols = view->shape[view->rank - 1];
  float *got = test_view_values(view), *reference = values_of(tensor, want);
  double* values = filled((size_t)count * sizeof *values, 0);
  for (int64_t i = 0; i < count; i++) values[i] = (double)reference[i];
  if (rounded)
    expect_rounded(what, view->dtype, got, reference, count);
  else
    (void)test_expect_close(what, got, values, count / cols, cols, EMULATED_TOLERANCE);
  free(values);
  free(reference);
  free(got);
}

/* What is no element of the view, pads for one. */
static void compare_rest(const char* what, const test_tensor* tensor, const uint8_t* want) {
  uint8_t *mine = copy_of(tensor), *rest;
  test_view_poison(&tensor->view);
  rest = copy_of(tensor);
  memcpy(tensor->memory, want, tensor->bytes);
  test_view_poison(&tensor->view);
  (void)test_expect_bits(what, rest, tensor->memory, (int64_t)tensor->bytes);
  memcpy(tensor->memory, mine, tensor->bytes);
  free(rest);
  free(mine);
}

/* The first run is kept in `first`. */
static void check_run(test_rig* rig, const emulated_call* call, int run, int32_t sms, uint8_t* const* want,
                      uint8_t** first) {
  char what[224];
  for (int32_t i = 0; i < rig->n_tensors; i++) {
    (void)snprintf(what, sizeof what, "%s, run %d on %d SMs: %s", rig->label, run, sms, rig->names[i]);
    (void)test_tensor_check(&rig->tensors[i], what);
  }
  for (int32_t i = 0; i < call->n_outputs; i++) {
    const test_tensor* tensor = call->outputs[i].tensor;
    if (!tensor) continue;
    (void)snprintf(what, sizeof what, "%s, run %d on %d SMs: %s", rig->label, run, sms,
                   rig->names[tensor - rig->tensors]);
    if (run > 0) {
      (void)test_expect_bits(what, tensor->memory, first[i], (int64_t)tensor->bytes);
    } else {
      first[i] = copy_of(tensor);
      compare(what, &call->outputs[i], want[i]);
      compare_rest(what, tensor, want[i]);
    }
  }
}

void emulated_compare(test_rig* rig, const emulated_call* call) {
  static const int32_t usual_sms[EMULATED_RUNS] = {132, 5, 2};
  const int32_t* sms = call->sms[0] != 0 ? call->sms : usual_sms;
  uint8_t *want[MOST_OUTPUTS] = {0}, *first[MOST_OUTPUTS] = {0};
  cr_assert_leq(call->n_outputs, MOST_OUTPUTS);
  poison(rig, call);
  cr_assert_eq(test_rig_run_direct(rig, call->op, call->args), TDM_OK, "%s: %s", rig->label, tdm_last_error()->message);
  for (int32_t i = 0; i < call->n_outputs; i++)
    if (call->outputs[i].tensor) want[i] = copy_of(call->outputs[i].tensor);
  for (int run = 0; run < EMULATED_RUNS; run++) {
    poison(rig, call);
    run_kernels(rig, call, sms[run], run > 0 && call->few_kernel ? call->few_kernel : call->kernel);
    check_run(rig, call, run, sms[run], want, first);
  }
  for (int32_t i = 0; i < call->n_outputs; i++) {
    free(want[i]);
    free(first[i]);
  }
}
