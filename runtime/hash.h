#ifndef RUNTIME_HASH_H
#define RUNTIME_HASH_H

#include <stddef.h>
#include <stdint.h>

/* FNV-1a, 64 bits: tells texts and builds apart; no defence against intent. */
#define TDM_HASH_BEGIN UINT64_C(0xcbf29ce484222325)

/* `hash` gone on with `bytes`; TDM_HASH_BEGIN before the first. */
uint64_t tdm_hash(uint64_t hash, const void* data, size_t bytes);

#endif
