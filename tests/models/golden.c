#include "golden.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/common/convert.h"
#include "variant.h"

static void count_errors(void* ctx, tdm_log_level level, const char* line) {
  golden* g = ctx;
  (void)line;
  g->n_errors += level == TDM_LOG_ERROR;
}

tdm_model_config golden_config(tdm_activations activations) {
  tdm_model_config config;
  cr_assert_eq(tdm_model_config_init(&config, sizeof config), TDM_OK);
  config.activations = activations;
  config.max_tokens = 96;
  config.max_seqs = 4;
  config.max_context = 256;
  config.cache_pages = 12;
  config.taps = true;
  return config;
}

void golden_open_runtime(golden* g) {
  *g = (golden){.heap = TEST_HEAP_INIT};
  tdm_runtime_config config;
  cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
  config.host_allocator = config.device_allocator = test_heap_allocator(&g->heap);
  config.log = count_errors;
  config.log_ctx = g;
  cr_assert_eq(tdm_runtime_create(&config, &g->runtime), TDM_OK);
}

void golden_open(golden* g, const char* directory, const tdm_model_config* config) {
  golden_open_runtime(g);
  cr_assert_eq(tdm_model_load(g->runtime, directory ? directory : GOLDEN_V3, config, &g->model), TDM_OK, "%s",
               tdm_last_error()->message);
  cr_assert_eq(tdm_checkpoint_open(g->runtime, GOLDEN_V3 "/io.safetensors", &g->io), TDM_OK, "%s",
               tdm_last_error()->message);
  for (int s = 0; s < GOLDEN_SEQUENCES; s++) {
    char name[32];
    tdm_tensor_info ids;
    snprintf(name, sizeof name, "seq%d.input_ids", s);
    cr_assert(tdm_checkpoint_find(g->io, name, &ids));
    g->tokens[s] = ids.data;
    g->lengths[s] = ids.shape[0];
  }
}

void golden_close(golden* g) {
  cr_assert_eq(tdm_model_destroy(g->model), TDM_OK, "%s", tdm_last_error()->message);
  tdm_checkpoint_close(g->io);
  cr_assert_eq(tdm_runtime_destroy(g->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(g->heap.outstanding, 0, "%d blocks leaked", (int)g->heap.outstanding);
  cr_assert_eq(g->heap.bytes, 0);
}

const float* golden_rows(const golden* g, int sequence, const char* name, int64_t row) {
  char full[64];
  tdm_tensor_info info;
  snprintf(full, sizeof full, "seq%d.%s", sequence, name);
  cr_assert(tdm_checkpoint_find(g->io, full, &info), "%s", full);
  return (const float*)info.data + row * info.shape[1];
}

tdm_sequence* golden_sequence(golden* g) {
  tdm_sequence* sequence;
  cr_assert_eq(tdm_sequence_create(g->model, &sequence), TDM_OK, "%s", tdm_last_error()->message);
  return sequence;
}

int32_t golden_forward(golden* g, const tdm_batch_item* item, float* out) {
  tdm_forward_result result = {.size = sizeof result};
  cr_assert_eq(tdm_model_forward(g->model, item, 1, &result), TDM_OK, "%s", tdm_last_error()->message);
  if (out) golden_read(&result.logits, result.n_logits, out);
  return result.n_logits ? result.tokens[result.n_logits - 1] : -1;
}

float* golden_run(golden* g, int sequence, int64_t first, int64_t step) {
  const int64_t length = g->lengths[sequence];
  float* logits = calloc((size_t)(length * GOLDEN_VOCAB), sizeof *logits);
  tdm_sequence* handle = golden_sequence(g);
  for (int64_t done = 0; done < length;) {
    int64_t count = done ? step : first;
    if (count > length - done) count = length - done;
    const tdm_batch_item item = {
        .sequence = handle, .tokens = g->tokens[sequence] + done, .n_tokens = count, .logits = TDM_LOGITS_ALL};
    (void)golden_forward(g, &item, logits + done * GOLDEN_VOCAB);
    done += count;
  }
  cr_assert_eq(tdm_sequence_length(handle), length);
  tdm_sequence_destroy(handle);
  return logits;
}

double relative_error(const float* a, const float* b, int64_t n) {
  double difference = 0, reference = 0;
  for (int64_t i = 0; i < n; i++) {
    difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    reference += (double)b[i] * (double)b[i];
  }
  return sqrt(difference / reference);
}

void golden_read(const tdm_view* view, int64_t rows, float* out) {
  const int64_t n = rows * view->shape[1];
  const size_t element = tdm_dtype_bytes(view->dtype);
  uint8_t* raw = malloc((size_t)n * element + 1);
  cr_assert_eq(tdm_buffer_read(view->buffer, (size_t)view->offset_bytes, raw, (size_t)n * element), TDM_OK);
  for (int64_t i = 0; i < n; i++) out[i] = tdm_load_f32(raw, view->dtype, i);
  free(raw);
}
