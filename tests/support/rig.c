#include "tests/support/rig.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/convert.h"

void test_rig_open(test_rig* rig) {
  memset(rig, 0, sizeof *rig);
  rig->random.state = 20240;
  tdm_lane_config config;
  cr_assert_eq(tdm_runtime_create(NULL, &rig->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = "test";
  cr_assert_eq(tdm_lane_get(rig->runtime, &config, &rig->lane), TDM_OK, "%s", tdm_last_error()->message);
}

void test_rig_close(test_rig* rig) {
  tdm_program_destroy(rig->program);
  for (int32_t i = 0; i < rig->n_tensors; i++) test_tensor_free(&rig->tensors[i]);
  cr_assert_eq(tdm_runtime_destroy(rig->runtime), TDM_OK, "%s", tdm_last_error()->message);
}

void test_rig_label(test_rig* rig, const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(rig->label, sizeof rig->label, format, list);
  va_end(list);
}

static test_tensor* next_tensor(test_rig* rig, const char* name) {
  cr_assert_lt(rig->n_tensors, TEST_RIG_TENSORS, "a rig has %d tensors", TEST_RIG_TENSORS);
  rig->names[rig->n_tensors] = name;
  return &rig->tensors[rig->n_tensors++];
}

test_tensor* test_rig_tensor(test_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape) {
  return test_rig_strided(rig, name, dtype, rank, shape, NULL);
}

test_tensor* test_rig_strided(test_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                              const int64_t* stride) {
  test_tensor* tensor = next_tensor(rig, name);
  test_tensor_init(tensor, rig->runtime, dtype, rank, shape, stride, 0);
  return tensor;
}

test_tensor* test_rig_scales(test_rig* rig, const char* name, int64_t rows, int64_t cols, int64_t extra) {
  test_tensor* tensor = next_tensor(rig, name);
  int64_t padded = tdm_scale_stride(rows);
  const int64_t stride[] = {padded + extra, 1};
  test_tensor_init(tensor, rig->runtime, TDM_F32, 2, (int64_t[]){cols / 128, rows}, stride, padded - rows);
  return tensor;
}

test_tensor* test_rig_count(test_rig* rig, const char* name, int32_t value) {
  test_tensor* tensor = test_rig_tensor(rig, name, TDM_I32, 1, (int64_t[]){1});
  *(int32_t*)tdm_view_data(&tensor->view) = value;
  return tensor;
}

test_tensor* test_rig_chosen(test_rig* rig, int64_t rows, int64_t live, int64_t experts,
                             bool (*has)(const void* ctx, int64_t row, int64_t expert), const void* ctx) {
  const int64_t words = (experts + 31) / 32;
  test_tensor* tensor =
      test_rig_strided(rig, "chosen", TDM_I32, 2, (int64_t[]){rows, words}, (int64_t[]){words + 2, 1});
  for (int64_t m = 0; m < live; m++)
    for (int64_t w = 0; w < words; w++) {
      uint32_t bits = 0;
      for (int64_t e = 32 * w; e < experts && e < 32 * w + 32; e++) bits |= (uint32_t)has(ctx, m, e) << e % 32;
      *(uint32_t*)test_view_at(&tensor->view, m * words + w) = bits;
    }
  return tensor;
}

test_tensor* test_rig_activation(test_rig* rig, const char* name, tdm_dtype dtype, int64_t rows, int64_t cols,
                                 int64_t stride, float deviation, test_tensor* scales) {
  test_tensor* tensor =
      test_rig_strided(rig, name, dtype, 2, (int64_t[]){rows, cols}, (int64_t[]){stride != 0 ? stride : cols, 1});
  if (dtype != TDM_E4M3) {
    test_view_set_normal(&tensor->view, &rig->random, deviation);
    return tensor;
  }
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t block = 0; block < cols / 128; block++) {
      float values[128];
      test_random_fill_normal(&rig->random, values, 128, deviation);
      *(float*)test_view_at(&scales->view, block * rows + m) =
          tdm_quant_block(values, test_view_at(&tensor->view, m * cols + block * 128), 1e-4f, false);
    }
  }
  return tensor;
}

/* `scales` as wide as the pads of `live` rows reach. */
static tdm_view padded_view(const test_tensor* scales, int64_t live) {
  tdm_view view = scales->view;
  view.shape[1] = tdm_scale_stride(live);
  return view;
}

void test_allow_scales(test_tensor* scales, int64_t live) {
  tdm_view view = padded_view(scales, live);
  test_tensor_allow(scales, &view);
}

void test_expect_zero_pads(const test_rig* rig, const test_tensor* scales, int64_t live) {
  tdm_view view = padded_view(scales, live);
  for (int64_t block = 0; block < view.shape[0]; block++) {
    for (int64_t m = live; m < view.shape[1]; m++) {
      float value = *(const float*)test_view_at(&view, block * view.shape[1] + m);
      cr_expect_eq(value, 0.0f, "%s: pad column %lld of scale row %lld is %g", rig->label, (long long)m,
                   (long long)block, (double)value);
    }
  }
}

tdm_program* test_rig_program(test_rig* rig) {
  tdm_program_destroy(rig->program);
  rig->program = NULL;
  cr_assert_eq(tdm_program_create(rig->runtime, "test", &rig->program), TDM_OK, "%s", tdm_last_error()->message);
  for (int32_t i = 0; i < rig->n_tensors; i++) test_tensor_watch(&rig->tensors[i]);
  return rig->program;
}

static void check_tensors(test_rig* rig) {
  for (int32_t i = 0; i < rig->n_tensors; i++) {
    char what[192];
    snprintf(what, sizeof what, "%s: %s", rig->label, rig->names[i]);
    test_tensor_check(&rig->tensors[i], what);
  }
}

tdm_status test_rig_run(test_rig* rig, tdm_status appended) {
  tdm_status status = appended;
  if (status == TDM_OK) status = tdm_program_seal(rig->program, NULL);
  if (status == TDM_OK) status = tdm_program_launch(rig->program, NULL);
  check_tensors(rig);
  return status;
}

tdm_status test_rig_run_direct(test_rig* rig, const tdm_op* op, const void* args) {
  void* copy = malloc(op->args_bytes);
  cr_assert_not_null(copy);
  memcpy(copy, args, op->args_bytes);
  for (int32_t i = 0; i < rig->n_tensors; i++) test_tensor_watch(&rig->tensors[i]);
  tdm_status status = op->check(copy);
  if (status == TDM_OK) {
    tdm_plan plan = {.variant = "ref", .splits = 1};
    op->plan(copy, 0, &plan);
    void* scratch = malloc(plan.scratch_bytes != 0 ? plan.scratch_bytes : 1);
    cr_assert_not_null(scratch);
    status = op->ref(copy, &plan, scratch);
    free(scratch);
  }
  free(copy);
  check_tensors(rig);
  return status;
}

static void apply(const test_patch* patch, void* args) {
  char* to = (char*)args + patch->offset;
  if (patch->kind == TEST_PATCH_COPY) {
    memmove(to, (char*)args + patch->from, patch->bytes);
  } else if (patch->kind == TEST_PATCH_FLOAT) {
    memcpy(to, &patch->number, patch->bytes);
  } else { /* little-endian: the low bytes come first */
    memcpy(to, &patch->integer, patch->bytes);
  }
}

void test_rig_refusals(test_rig* rig, const tdm_op* op, const void* good, tdm_status expected,
                       const test_refusal* refusals, size_t count) {
  void* args = malloc(op->args_bytes);
  cr_assert_not_null(args);
  cr_assert_eq(tdm_program_append(test_rig_program(rig), rig->lane, op, "good", good), TDM_OK, "%s",
               tdm_last_error()->message);
  for (size_t i = 0; i < count; i++) {
    memcpy(args, good, op->args_bytes);
    for (int j = 0; j < 6 && refusals[i].patches[j].bytes != 0; j++) apply(&refusals[i].patches[j], args);
    tdm_status status = tdm_program_append(rig->program, rig->lane, op, "bad", args);
    test_expect_failure(refusals[i].name, status, expected, refusals[i].words);
    test_expect_failure(refusals[i].name, status, expected, op->name);
  }
  free(args);
}

void test_expect_failure(const char* what, tdm_status status, tdm_status expected, const char* words) {
  cr_expect_eq(status, expected, "%s: %s, expected %s (%s)", what, tdm_status_name(status), tdm_status_name(expected),
               tdm_last_error()->message);
  if (status != TDM_OK) test_expect_words(what, tdm_last_error()->message, words);
}

void test_expect_words(const char* what, const char* text, const char* words) {
  while (*words != '\0') {
    char word[96] = {0};
    size_t length = strcspn(words, "|");
    if (length >= sizeof word) length = sizeof word - 1;
    memcpy(word, words, length);
    cr_expect_not_null(strstr(text, word), "%s: \"%s\" is not in \"%s\"", what, word, text);
    words += strcspn(words, "|");
    if (*words == '|') words++;
  }
}
