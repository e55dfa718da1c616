#ifndef EXAMPLE_RUN_H
#define EXAMPLE_RUN_H

/* One model in one activation mode: judged layer by layer and as a whole, then generating. */

#include "report.h"

typedef struct run_options {
  const char* directory;
  int64_t generate; /* tokens for each sequence */
  bool progress;    /* a progress line on stderr */
  const char* dot;  /* write the decode program as Graphviz here, or NULL */
  bool print_program;
} run_options;

/* Fills `out_report`, which is to be freed in any case. On failure tdm_last_error says why. */
tdm_status run_mode(tdm_runtime* runtime, const run_options* options, tdm_activations activations,
                    mode_report* out_report);
void mode_report_free(mode_report* report);

#endif
