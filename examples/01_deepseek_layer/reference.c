#include "reference.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- sequences -------------------------------------------------------------------------------------------------- */

static tdm_status take_stored_tokens(reference_set* reference) {
  for (int s = 0; s < MAX_SEQUENCES; s++) {
    char name[32];
    tdm_tensor_info ids;
    snprintf(name, sizeof name, "seq%d.input_ids", s);
    if (!tdm_checkpoint_find(reference->checkpoint, name, &ids) || ids.dtype != TDM_I32 || ids.rank != 1) break;
    reference->tokens[s] = malloc(ids.bytes);
    if (!reference->tokens[s]) return TDM_OUT_OF_MEMORY;
    memcpy(reference->tokens[s], ids.data, ids.bytes);
    reference->lengths[s] = ids.shape[0];
    reference->n_sequences = s + 1;
  }
  return TDM_OK;
}

static tdm_status make_up_tokens(reference_set* reference, int64_t vocab_size) {
  static const int64_t lengths[] = {29, 5, 43};
  uint32_t state = 1;
  for (int s = 0; s < 3; s++) {
    reference->tokens[s] = malloc((size_t)lengths[s] * sizeof(int32_t));
    if (!reference->tokens[s]) return TDM_OUT_OF_MEMORY;
    for (int64_t i = 0; i < lengths[s]; i++) {
      state = state * 1664525u + 1013904223u;
      reference->tokens[s][i] = (int32_t)((state >> 8) % (uint64_t)vocab_size);
    }
    reference->lengths[s] = lengths[s];
    reference->n_sequences = s + 1;
  }
  return TDM_OK;
}

tdm_status reference_open(tdm_runtime* runtime, const char* directory, int64_t vocab_size,
                          reference_set* out_reference) {
  *out_reference = (reference_set){0};
  char path[4096];
  struct stat status;
  snprintf(path, sizeof path, "%s/io.safetensors", directory);
  if (stat(path, &status) != 0 && errno == ENOENT) return make_up_tokens(out_reference, vocab_size);
  const tdm_status opened = tdm_checkpoint_open(runtime, path, &out_reference->checkpoint);
  return opened == TDM_OK ? take_stored_tokens(out_reference) : opened;
}

void reference_close(reference_set* reference) {
  for (int s = 0; s < MAX_SEQUENCES; s++) free(reference->tokens[s]);
  tdm_checkpoint_close(reference->checkpoint);
}

const float* reference_rows(const reference_set* reference, int sequence, const char* name, int64_t row,
                            int64_t width) {
  char full[64];
  tdm_tensor_info info;
  snprintf(full, sizeof full, "seq%d.%s", sequence, name);
  if (!reference->checkpoint || !tdm_checkpoint_find(reference->checkpoint, full, &info)) return NULL;
  if (info.dtype != TDM_F32 || info.rank != 2 || info.shape[0] < row || info.shape[1] != width) return NULL;
  if ((uintptr_t)info.data % sizeof(float) != 0) return NULL;
  return (const float*)info.data + row * width;
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

void error_add(error_sum* sum, const float* values, const float* expected, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const double difference = (double)values[i] - (double)expected[i];
    sum->difference += difference * difference;
    sum->reference += (double)expected[i] * (double)expected[i];
  }
}

double error_value(const error_sum* sum) {
  return sqrt(sum->difference / sum->reference);
}

tdm_status read_rows(const tdm_view* view, int64_t row, int64_t n_rows, float* out) {
  const size_t element = tdm_dtype_bytes(view->dtype), count = (size_t)(n_rows * view->shape[1]);
  const size_t offset = (size_t)view->offset_bytes + (size_t)(row * view->stride[0]) * element;
  const tdm_status status = tdm_buffer_read(view->buffer, offset, out, count * element);
  if (status != TDM_OK || view->dtype == TDM_F32) return status;
  /* bf16 is the upper half of an f32; widen in place from the end. */
  for (size_t i = count; i-- > 0;) {
    uint16_t half;
    memcpy(&half, (const char*)out + 2 * i, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    memcpy(&out[i], &bits, sizeof bits);
  }
  return TDM_OK;
}
