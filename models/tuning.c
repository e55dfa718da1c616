#include "models/tuning.h"

#include <stdio.h>
#include <string.h>

#include "models/tuning_file.h"
#include "runtime/quote.h"

/* What is known for one identity: entries ascending by kind (decoding first) and tokens. */
typedef struct section {
  tdm_tuning_identity identity;
  tdm_tuning_entry* entries;
  int64_t n, capacity;
} section;

struct tdm_tuning {
  tdm_runtime* runtime;
  section* sections;
  int64_t n, capacity;
};

/* ---- names ------------------------------------------------------------------------------------------------------ */

const char* tdm_strategy_name(tdm_strategy strategy) {
  static const char* const names[] = {NULL, "auto", "serial", "soft", "green", "split"};
  return (size_t)strategy < sizeof names / sizeof *names ? names[strategy] : NULL;
}

const char* tdm_wait_form_name(tdm_wait_form form) {
  static const char* const names[] = {NULL, "edge", "signal"};
  return (size_t)form < sizeof names / sizeof *names ? names[form] : NULL;
}

const char* tdm_moe_path_name(tdm_moe_path path) {
  static const char* const names[] = {NULL, "auto", "dense", "hits", "grouped"};
  return (size_t)path < sizeof names / sizeof *names ? names[path] : NULL;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

tdm_status tdm_tuning_create(tdm_runtime* runtime, tdm_tuning** out_tuning) {
  if (out_tuning) *out_tuning = NULL;
  if (!runtime || !out_tuning)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_create: runtime and out_tuning must not be NULL");
  tdm_tuning* tuning = tdm_host_alloc(runtime, sizeof *tuning);
  if (!tuning) return TDM_OUT_OF_MEMORY;
  tuning->runtime = runtime;
  tdm_runtime_retain(runtime, TDM_OBJECT_TUNING);
  *out_tuning = tuning;
  return TDM_OK;
}

void tdm_tuning_destroy(tdm_tuning* tuning) {
  if (!tuning) return;
  tdm_runtime* runtime = tuning->runtime;
  for (int64_t i = 0; i < tuning->n; i++)
    tdm_host_free(runtime, tuning->sections[i].entries,
                  (size_t)tuning->sections[i].capacity * sizeof *tuning->sections[i].entries);
  tdm_host_free(runtime, tuning->sections, (size_t)tuning->capacity * sizeof *tuning->sections);
  tdm_host_free(runtime, tuning, sizeof *tuning);
  tdm_runtime_release(runtime, TDM_OBJECT_TUNING);
}

/* ---- entries ---------------------------------------------------------------------------------------------------- */

static bool same_identity(const tdm_tuning_identity* a, const tdm_tuning_identity* b) {
  return strcmp(a->device, b->device) == 0 && strcmp(a->library, b->library) == 0 && strcmp(a->layers, b->layers) == 0;
}

static section* find_section(const tdm_tuning* tuning, const tdm_tuning_identity* identity) {
  for (int64_t i = 0; i < tuning->n; i++)
    if (same_identity(&tuning->sections[i].identity, identity)) return &tuning->sections[i];
  return NULL;
}

/* Where the bucket's entry is, or would have to be. */
static int64_t place_of(const section* s, bool prefill, int64_t n_tokens) {
  int64_t i = 0;
  while (i < s->n &&
         (s->entries[i].prefill < prefill || (s->entries[i].prefill == prefill && s->entries[i].n_tokens < n_tokens)))
    i++;
  return i;
}

static bool is_at(const section* s, int64_t place, bool prefill, int64_t n_tokens) {
  return place < s->n && s->entries[place].prefill == prefill && s->entries[place].n_tokens == n_tokens;
}

tdm_status tdm_tuning_add(tdm_tuning* tuning, const tdm_tuning_identity* identity, const tdm_tuning_entry* entry) {
  section* s = find_section(tuning, identity);
  if (!s) {
    TDM_TRY(tdm_host_grow(tuning->runtime, (void**)&tuning->sections, tuning->n, &tuning->capacity,
                          sizeof *tuning->sections));
    s = &tuning->sections[tuning->n];
    *s = (section){.identity = *identity};
  }
  const int64_t place = place_of(s, entry->prefill, entry->n_tokens);
  if (!is_at(s, place, entry->prefill, entry->n_tokens)) {
    TDM_TRY(tdm_host_grow(tuning->runtime, (void**)&s->entries, s->n, &s->capacity, sizeof *s->entries));
    memmove(&s->entries[place + 1], &s->entries[place], (size_t)(s->n - place) * sizeof *s->entries);
    s->n++;
  }
  s->entries[place] = *entry;
  if (s == &tuning->sections[tuning->n]) tuning->n++; /* only now: a section without entries is none */
  return TDM_OK;
}

const tdm_tuning_entry* tdm_tuning_find(const tdm_tuning* tuning, const tdm_tuning_identity* identity, bool prefill,
                                        int64_t n_tokens) {
  const section* s = tuning ? find_section(tuning, identity) : NULL;
  if (!s) return NULL;
  const int64_t place = place_of(s, prefill, n_tokens);
  return is_at(s, place, prefill, n_tokens) ? &s->entries[place] : NULL;
}

static tdm_status take_section(tdm_tuning* tuning, const section* from) {
  for (int64_t i = 0; i < from->n; i++) TDM_TRY(tdm_tuning_add(tuning, &from->identity, &from->entries[i]));
  return TDM_OK;
}

tdm_status tdm_tuning_take(tdm_tuning* tuning, const tdm_tuning* from, const tdm_tuning_identity* identity,
                           int32_t* out_count) {
  const section* s = from ? find_section(from, identity) : NULL;
  *out_count = s ? (int32_t)s->n : 0;
  return s ? take_section(tuning, s) : TDM_OK;
}

tdm_status tdm_tuning_merge(tdm_tuning* tuning, const tdm_tuning* from) {
  if (!tuning || !from) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_merge: tuning and from must not be NULL");
  if (tuning == from) return TDM_OK;
  for (int64_t i = 0; i < from->n; i++) TDM_TRY(take_section(tuning, &from->sections[i]));
  return TDM_OK;
}

int32_t tdm_tuning_count(const tdm_tuning* tuning) {
  int64_t n = 0;
  for (int64_t i = 0; tuning && i < tuning->n; i++) n += tuning->sections[i].n;
  return (int32_t)n;
}

tdm_status tdm_tuning_get(const tdm_tuning* tuning, int32_t index, tdm_tuning_entry* out_entry) {
  if (!tuning || !out_entry)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_get: tuning and out_entry must not be NULL");
  int64_t left = index;
  for (int64_t i = 0; i < tuning->n && index >= 0; left -= tuning->sections[i++].n) {
    const section* s = &tuning->sections[i];
    if (left >= s->n) continue;
    tdm_tuning_entry entry = s->entries[left];
    entry.size = sizeof entry;
    entry.device = s->identity.device;
    entry.library = s->identity.library;
    entry.layers = s->identity.layers;
    return tdm_info_copy("tdm_tuning_entry", &entry, sizeof entry, out_entry, out_entry->size);
  }
  return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_get: the tuning has %d entries, and no number %d",
                  tdm_tuning_count(tuning), index);
}

/* ---- what does not fit ------------------------------------------------------------------------------------------ */

void tdm_tuning_difference(const tdm_tuning* tuning, const tdm_tuning_identity* identity, char* text, size_t bytes) {
  const section* nearest = NULL;
  int most = -1;
  for (int64_t i = 0; i < tuning->n; i++) {
    const tdm_tuning_identity* one = &tuning->sections[i].identity;
    const int alike = 4 * (strcmp(one->layers, identity->layers) == 0) +
                      2 * (strcmp(one->device, identity->device) == 0) + (strcmp(one->library, identity->library) == 0);
    if (alike <= most) continue;
    most = alike;
    nearest = &tuning->sections[i];
  }
  if (!nearest) {
    (void)snprintf(text, bytes, "it is empty");
    return;
  }
  /* A file's strings are a stranger's. */
  const tdm_tuning_identity* one = &nearest->identity;
  if (strcmp(one->device, identity->device) != 0)
    (void)snprintf(text, bytes, "it was measured on %s, this is %s", tdm_printable(one->device).text, identity->device);
  else if (strcmp(one->library, identity->library) != 0)
    (void)snprintf(text, bytes, "it was measured with %s, this is %s", tdm_printable(one->library).text,
                   identity->library);
  else
    (void)snprintf(text, bytes, "it was measured for %s; this is %s", tdm_printable(one->layers).text,
                   identity->layers);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

tdm_status tdm_tuning_read(tdm_runtime* runtime, const char* path, tdm_tuning** out_tuning) {
  if (out_tuning) *out_tuning = NULL;
  if (!runtime || !path || !out_tuning)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_read: runtime, path and out_tuning must not be NULL");
  tdm_tuning* tuning;
  TDM_TRY(tdm_tuning_create(runtime, &tuning));
  const tdm_status status = tdm_tuning_file_read(path, tuning);
  if (status != TDM_OK) {
    tdm_tuning_destroy(tuning);
    return status;
  }
  *out_tuning = tuning;
  return TDM_OK;
}

tdm_status tdm_tuning_write(const tdm_tuning* tuning, const char* path) {
  if (!tuning || !path) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_tuning_write: tuning and path must not be NULL");
  return tdm_tuning_file_write(tuning, path);
}
