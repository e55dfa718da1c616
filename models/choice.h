#ifndef MODELS_CHOICE_H
#define MODELS_CHOICE_H

/* In which way the program of a token bucket runs, and the lanes for it. */

#include "models/tuning.h"
#include "tandem/model.h"

/* The bucket that a step of so many tokens runs in; the largest for more. */
int64_t tdm_model_bucket(const tdm_model* model, int64_t n_tokens);

/* The way of that bucket. Never fails: what cannot be had shows when its lanes are asked for. */
void tdm_model_choose(const tdm_model* model, int64_t bucket, bool prefill, tdm_choice_info* out_info);
/* What an untuned model would run, whatever its config decides by hand. */
tdm_choice tdm_model_rule(const tdm_model* model);

/* INVALID_ARGUMENT for a way that makes no sense. `who` begins the sentence. */
tdm_status tdm_choice_check(const char* who, const tdm_choice* choice);

typedef struct tdm_model_lanes {
  tdm_lane* main;
  tdm_lane* side;        /* the main one where there is one lane */
  tdm_strategy strategy; /* in force */
  tdm_wait_form wait_form;
  char reason[160]; /* why it is not the one chosen; "" when it is */
} tdm_model_lanes;

/* The lanes for a way, from the runtime's pool. Where green or split ones cannot be had: soft ones with the reason,
 * unless `strict`. Makes lanes the first time. */
tdm_status tdm_model_get_lanes(const tdm_model* model, const tdm_choice* choice, bool strict,
                               tdm_model_lanes* out_lanes);

/* What a tuning's entries must hold for, to hold for the model. */
tdm_status tdm_model_identify(const tdm_model* model, tdm_tuning_identity* out_identity);

#endif
