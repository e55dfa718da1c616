#ifndef MODELS_TUNING_FILE_H
#define MODELS_TUNING_FILE_H

/* A tuning as a JSON file:
 *
 *   {"format": "tandem tuning", "version": 1, "checksum": "fnv1a64:...",
 *    "entries": [{"device": "...", "library": "...", "layers": "...", "step": "decode", "tokens": 64,
 *                 "strategy": "soft", "wait": "edge", "side_sms": 16, "moe": "dense",
 *                 "time_ns": 365500, "default_ns": 371200, "tried": 12}, ...]}
 *
 * "moe" is "auto", "dense", "hits" or "grouped".
 * The checksum is that of "entries" in jansson's compact form with sorted keys. */

#include "models/tuning.h"
#include "runtime/runtime.h"

/* Adds what the file says to an empty tuning. */
tdm_status tdm_tuning_file_read(const char* path, tdm_tuning* tuning);
tdm_status tdm_tuning_file_write(const tdm_tuning* tuning, const char* path);

#endif
