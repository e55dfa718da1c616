#ifndef EXAMPLE_REFERENCE_H
#define EXAMPLE_REFERENCE_H

/* Sequences to run, and what their activations should be: from a model's io.safetensors (tests/golden/README.md), or,
 * where there is none, made up and without a judge. */

#include <tandem/tandem.h>

enum { MAX_SEQUENCES = 8 };

typedef struct reference_set {
  tdm_checkpoint* checkpoint; /* NULL: nothing to compare with */
  int n_sequences;
  int64_t lengths[MAX_SEQUENCES];
  int32_t* tokens[MAX_SEQUENCES];
} reference_set;

/* Answers a tdm_status; on failure tdm_last_error says why. */
tdm_status reference_open(tdm_runtime* runtime, const char* directory, int64_t vocab_size,
                          reference_set* out_reference);
void reference_close(reference_set* reference);

/* The stored f32 tensor "seqS.NAME" [T, width] from row `row` on; NULL when there is none of that width. */
const float* reference_rows(const reference_set* reference, int sequence, const char* name, int64_t row, int64_t width);

/* A relative error in the making: sqrt(difference / reference). */
typedef struct error_sum {
  double difference, reference;
} error_sum;

void error_add(error_sum* sum, const float* values, const float* expected, int64_t n);
/* NaN when nothing was added. */
double error_value(const error_sum* sum);

/* Reads rows [row, row + n_rows) of a two-dimensional view of bf16 or f32 as f32. */
tdm_status read_rows(const tdm_view* view, int64_t row, int64_t n_rows, float* out);

#endif
