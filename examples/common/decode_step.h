#ifndef EXAMPLES_COMMON_DECODE_STEP_H
#define EXAMPLES_COMMON_DECODE_STEP_H

/* A decode step of DeepSeek-V3 layers with random weights, for the examples that look at one. */

#include "tandem/tandem.h"

enum { DECODE_STEP_MOST = 1024 /* sequences */ };

typedef struct decode_step_options {
  bool any_device; /* a GPU where there is one, else the host */
  tdm_device_kind device;
  int32_t ordinal;
  bool whole; /* all heads and all of each expert's width; false: the slice of one of 8 tensor-parallel ranks */
  bool tiny;  /* a layer small enough for the host device */
  int64_t layers;
  int64_t context; /* tokens in the cache of each sequence */
} decode_step_options;

/* "auto", "host" or "cuda:N" into the options; false for anything else. */
bool decode_step_parse_device(const char* text, decode_step_options* options);
/* "auto", "dense", "hits" or "grouped". */
#define DECODE_STEP_MOE "auto|dense|hits|grouped"
bool decode_step_parse_moe(const char* text, tdm_moe_path* out);
bool decode_step_parse_number(const char* text, int64_t least, int64_t most, int64_t* out);

/* A runtime on that device; warnings go to stderr. */
tdm_status decode_step_open(const decode_step_options* options, tdm_runtime** out_runtime);

/* The layers, with room for steps of up to `most` sequences; `config` has what else is wanted. */
tdm_status decode_step_model(tdm_runtime* runtime, const decode_step_options* options, int64_t most,
                             tdm_model_config* config, tdm_model** out_model);

/* Runs one step of `batch` sequences, which builds its program; launching that repeats the step. */
typedef struct decode_step {
  tdm_batch_item items[DECODE_STEP_MOST];
  int64_t batch;
  tdm_program* program; /* borrowed */
} decode_step;
tdm_status decode_step_begin(tdm_model* model, const decode_step_options* options, int64_t batch, decode_step* step);
void decode_step_end(decode_step* step);

#endif
