#ifndef TESTS_MODELS_GOLDEN_H
#define TESTS_MODELS_GOLDEN_H

/* A model with the golden sequences beside it. */

#include "tandem/tandem.h"
#include "tests/support/heap.h"

enum { GOLDEN_SEQUENCES = 3, GOLDEN_VOCAB = 256, GOLDEN_HIDDEN = 384, GOLDEN_LAYERS = 2, GOLDEN_LONGEST = 43 };

typedef struct golden {
  test_heap heap; /* host and device memory of the runtime */
  tdm_runtime* runtime;
  tdm_model* model;
  tdm_checkpoint* io;
  const int32_t* tokens[GOLDEN_SEQUENCES];
  int64_t lengths[GOLDEN_SEQUENCES];
  int n_errors; /* lines logged as errors */
} golden;

/* Small limits, taps on. */
tdm_model_config golden_config(tdm_activations activations);
/* Opens `directory` (NULL: the golden model). */
void golden_open(golden* g, const char* directory, const tdm_model_config* config);
/* The same without a model. */
void golden_open_runtime(golden* g);
/* Fails the test when anything is left. */
void golden_close(golden* g);

/* "seqS.NAME" from row `row` on. */
const float* golden_rows(const golden* g, int sequence, const char* name, int64_t row);

/* A sequence's logits [length, vocab]: `first` tokens as a prefill, the others in steps of `step`. To be freed. */
float* golden_run(golden* g, int sequence, int64_t first, int64_t step);

tdm_sequence* golden_sequence(golden* g);
/* Runs one item alone and copies its logits, if there are any and `out` is not NULL. Answers the last token drawn. */
int32_t golden_forward(golden* g, const tdm_batch_item* item, float* out);

/* ||a - b|| / ||b|| */
double relative_error(const float* a, const float* b, int64_t n);
/* Rows of a view of bf16 or f32. */
void golden_read(const tdm_view* view, int64_t rows, float* out);

#endif
