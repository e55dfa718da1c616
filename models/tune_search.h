#ifndef MODELS_TUNE_SEARCH_H
#define MODELS_TUNE_SEARCH_H

/* Which ways of one bucket are measured, and which of them wins. Knows no model and no clock. */

#include "tandem/tuning.h"

typedef struct tdm_tune_space {
  tdm_choice usual; /* what an untuned model runs; its moe_path is not AUTO */
  bool routes;      /* some layer routes: all of the experts' paths are worth a try */
  bool green;       /* the device has SMs to divide */
  int32_t sms;      /* of it; side lanes leave at least one */
  double gain;      /* over the usual way */
} tdm_tune_space;

/* Measures a way: nanoseconds of the whole program, or TDM_TUNE_NONE where it cannot be had. May give up early, with
 * the time so far, on one that is clearly slower than `best_ns` (0: nothing to compare with). */
#define TDM_TUNE_NONE INT64_MAX
typedef tdm_status (*tdm_tune_time_fn)(void* ctx, const tdm_choice* choice, int64_t best_ns, int64_t* out_ns);

/* The experts' path first, with the usual lanes; then lanes, with the best path; then the other paths on the best
 * lanes, but for those that could not be had on the usual ones. The winner is measured against the usual way once more,
 * by turns, and must keep its gain. Fills choice, time_ns, default_ns and tried. Errors: those of `time`. */
tdm_status tdm_tune_search(const tdm_tune_space* space, tdm_tune_time_fn time, void* ctx, tdm_tuning_entry* out_entry);

#endif
