#ifndef TANDEM_TUNING_H
#define TANDEM_TUNING_H

/* In which way a model's steps run, and what measuring found to be the fastest way. */

#include "tandem/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* On which lanes a model's steps run. The results have the same bits. */
typedef enum tdm_strategy {
  TDM_STRATEGY_AUTO = 1, /* what the model's tuning found for the token bucket; untuned: soft, edges, 16 SMs, which was
                            the fastest at 1 to 128 tokens on an H200 (docs/notes/2026-11-22-launches-and-lanes.md) */
  TDM_STRATEGY_SERIAL = 2, /* one lane */
  TDM_STRATEGY_SOFT = 3,   /* a main lane on all SMs; the side lane's kernels limit themselves to side_sms */
  TDM_STRATEGY_GREEN = 4,  /* two partitions that the hardware keeps: side_sms, and all others for the main lane */
  TDM_STRATEGY_SPLIT = 5   /* soft lanes both: the side lane's kernels limit themselves to side_sms, the main lane's to
                              all others, so that neither waits for an SM that the other has */
} tdm_strategy;

/* Which experts a step computes. The results have the same bits. */
typedef enum tdm_moe_path {
  TDM_MOE_PATH_AUTO = 1,   /* what the model's tuning found for the token bucket; untuned, grouped for FP8 experts, and
                              for bf16 by the share of experts that would be hit, were choices uniform: hits up to 90 %
                              (8 of 256: up to 72 tokens), else dense */
  TDM_MOE_PATH_DENSE = 2,  /* all of them: FC1 needs no routing, so the router runs beside it */
  TDM_MOE_PATH_HITS = 3,   /* those that a token chose: their weights alone are read, once routing is done */
  TDM_MOE_PATH_GROUPED = 4 /* those, and each for the tokens alone that chose it; bf16 experts UNSUPPORTED on CUDA
                              devices in this version */
} tdm_moe_path;

/* One way to run a step. All ways give the same bits. */
typedef struct tdm_choice {
  tdm_strategy strategy;
  tdm_wait_form wait_form; /* of soft, split and green lanes; TDM_WAIT_EDGE with TDM_STRATEGY_SERIAL */
  int32_t side_sms;        /* of soft, split and green lanes; 0 with TDM_STRATEGY_SERIAL */
  tdm_moe_path moe_path;   /* AUTO: by the rule there, layer by layer */
} tdm_choice;

/* What was measured: the best choice by device, library, shape of the layers, kind of step and token bucket. Models
 * take from it what fits them (tdm_model_config.tuning), tdm_model_tune adds to it.
 * As a file it is JSON: for each of those identities the choices with the times that decided, and a checksum over all
 * of it. Nothing in it can change a result, only how fast it comes.
 * Threads: one thread at a time; any number may read at once. */
typedef struct tdm_tuning tdm_tuning;

/* An empty one. Allocates. */
TDM_API tdm_status tdm_tuning_create(tdm_runtime* runtime, tdm_tuning** out_tuning);
/* NULL is allowed. Models keep what they took. */
TDM_API void tdm_tuning_destroy(tdm_tuning* tuning);

/* Reads a file. All of it counts or nothing. Errors: INVALID_ARGUMENT, IO, OUT_OF_MEMORY; CORRUPT when it is not such a
 * file, is cut short, or was changed by other hands than tdm_tuning_write's; UNSUPPORTED when its format is another
 * version's. What it says of other devices, libraries or layers is kept, and not used. */
TDM_API tdm_status tdm_tuning_read(tdm_runtime* runtime, const char* path, tdm_tuning** out_tuning);
/* Writes a new file and puts it in the place of `path` in one move, so that readers see the old one or the new one.
 * Errors: INVALID_ARGUMENT, IO, OUT_OF_MEMORY; `path` is then as it was. */
TDM_API tdm_status tdm_tuning_write(const tdm_tuning* tuning, const char* path);
/* Takes over all that `from` says; where both speak of the same, `from` is right. */
TDM_API tdm_status tdm_tuning_merge(tdm_tuning* tuning, const tdm_tuning* from);

/* What was found for one token bucket. */
typedef struct tdm_tuning_entry {
  size_t size;         /* set by the caller: sizeof(tdm_tuning_entry) */
  const char* device;  /* "NVIDIA H200, 132 SMs, driver 13.0"; these three live as long as the tuning is not changed */
  const char* library; /* "tandem 0.1.0, kernels 9f86d081884c7d65" */
  const char* layers;  /* the shape, as tdm_model_tune wrote it */
  bool prefill;        /* a step with prefill; else decoding alone */
  int64_t n_tokens;    /* the bucket */
  tdm_choice choice;
  int64_t time_ns;    /* of the programs measured, median */
  int64_t default_ns; /* the same of what an untuned model would run */
  int32_t tried;      /* ways that were measured */
} tdm_tuning_entry;

/* Entries in all. 0 when `tuning` is NULL. */
TDM_API int32_t tdm_tuning_count(const tdm_tuning* tuning);
/* Entry number `index`; INVALID_ARGUMENT when there is none. */
TDM_API tdm_status tdm_tuning_get(const tdm_tuning* tuning, int32_t index, tdm_tuning_entry* out_entry);

#ifdef __cplusplus
}
#endif
#endif
