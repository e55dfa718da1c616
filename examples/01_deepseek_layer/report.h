#ifndef EXAMPLE_REPORT_H
#define EXAMPLE_REPORT_H

/* What a run found, as a table or as JSON. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "reference.h"

enum { MAX_LAYERS = 128 };

/* One layer, fed with the stored input: its own error. `chained` is the error of its output in the whole model. */
typedef struct layer_row {
  bool routed;
  error_sum attn, mlp, out, chained;
  int64_t rows, rows_other_topk; /* rows whose top-k set differs from the stored one: judged apart */
  double milliseconds;
} layer_row;

/* One model run in one activation mode. */
typedef struct mode_report {
  const char* activations;
  bool judged;        /* there was something to compare with */
  double layer_limit; /* for attn, mlp and out */
  double chain_limit; /* for chained and logits; 0: shown, not judged */
  int64_t n_layers;
  layer_row layers[MAX_LAYERS];
  error_sum logits;
  int64_t greedy_rows, greedy_same; /* rows of logits, and those whose largest entry is the stored one's */
  double prefill_seconds, decode_seconds;
  int64_t prefill_tokens, decode_tokens;
  bool alone_same;  /* a sequence alone gave the bits that it gave in the batch */
  bool serial_same; /* serial steps gave the bits of overlapped lanes */
  int n_sequences;
  int64_t n_generated;
  int32_t* generated[MAX_SEQUENCES]; /* [n_generated] each */
  double generate_seconds;
} mode_report;

/* Whether everything judged is within its limit. */
bool report_passes(const mode_report* report);

void report_print(FILE* file, const mode_report* report);
/* The reports as one JSON document. False when memory ran out. */
bool report_json(FILE* file, const char* directory, const char* device, const mode_report* reports, int n);

#endif
