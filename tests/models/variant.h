#ifndef TESTS_MODELS_VARIANT_H
#define TESTS_MODELS_VARIANT_H

/* Model folders made from the golden DeepSeek-V3 one with changes: tensors edited, dropped, added, in one file or
 * several. */

#include "tandem/tandem.h"

#define GOLDEN_V3 TANDEM_SOURCE_DIR "/tests/golden/deepseek_v3"

/* A tensor on its way into a variant; the edit may change everything, and free and replace data (by malloc). */
typedef struct variant_tensor {
  char name[160];
  char dtype[16]; /* as in safetensors: "F8_E4M3" */
  int rank;
  int64_t shape[4];
  void* data;
  size_t bytes;
} variant_tensor;

/* False: leave the tensor out. */
typedef bool (*variant_edit)(variant_tensor* tensor);

typedef struct variant_config {
  variant_edit edit;          /* NULL: none */
  const variant_tensor* more; /* tensors to add */
  int n_more;
  int shards;                           /* 0 or 1: model.safetensors; more: as many files and an index */
  const char *config_find, *config_put; /* text to replace in config.json; NULL: none */
} variant_config;

/* Makes the folder; its path is valid until variant_remove. */
const char* variant_make(const variant_config* config);
/* An edit: FP8 weights become bf16 ones, of other values. */
bool variant_to_bf16(variant_tensor* tensor);
/* Removes all folders made by this process. */
void variant_remove(void);

#endif
