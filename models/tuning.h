#ifndef MODELS_TUNING_H
#define MODELS_TUNING_H

/* Inside of a tuning: entries by what they hold for. */

#include "tandem/tuning.h"

/* What an entry holds for, in words: to be compared, and to be read. */
typedef struct tdm_tuning_identity {
  char device[128];
  char library[64];
  char layers[320];
} tdm_tuning_identity;

/* Ways by their names in files and sentences; NULL for what has none. */
const char* tdm_strategy_name(tdm_strategy strategy);
const char* tdm_wait_form_name(tdm_wait_form form);
const char* tdm_moe_path_name(tdm_moe_path path);

/* Adds an entry, or puts it in the place of the one for the same bucket; its strings are not looked at. */
tdm_status tdm_tuning_add(tdm_tuning* tuning, const tdm_tuning_identity* identity, const tdm_tuning_entry* entry);
/* The entry for a bucket; NULL when there is none. Borrowed until the tuning is changed. */
const tdm_tuning_entry* tdm_tuning_find(const tdm_tuning* tuning, const tdm_tuning_identity* identity, bool prefill,
                                        int64_t n_tokens);
/* Takes over what `from` (may be NULL) says for that identity; how many entries. */
tdm_status tdm_tuning_take(tdm_tuning* tuning, const tdm_tuning* from, const tdm_tuning_identity* identity,
                           int32_t* out_count);
/* Why nothing in it holds for that identity, in a clause: what the nearest one has instead. */
void tdm_tuning_difference(const tdm_tuning* tuning, const tdm_tuning_identity* identity, char* text, size_t bytes);

#endif
