#ifndef RUNTIME_JSON_H
#define RUNTIME_JSON_H

/* JSON written by strangers: a bounded parse, and typed getters that say what they expected and what they found. */

#include <jansson.h>

#include "runtime/quote.h"
#include "runtime/status.h"

/* What a text may hold before it is refused as CORRUPT. Bounds memory and stack: a parsed value takes up to 300 bytes.
 */
typedef struct tdm_json_limits {
  size_t bytes;        /* of the text */
  size_t depth;        /* of nesting; the outermost object is 1 */
  size_t string_bytes; /* of a string as written, and of a number */
  size_t values;       /* members and elements, all levels together */
} tdm_json_limits;

/* The object in text[0, n_bytes), to be freed with json_decref. Refuses what is not one object in UTF-8, duplicate
 * keys, NUL characters, NaN and infinities, and numbers beyond int64 or double. CORRUPT ("line 3, column 7: ..."),
 * OUT_OF_MEMORY. */
tdm_status tdm_json_parse(const char* text, size_t n_bytes, const tdm_json_limits* limits, json_t** out_object);

/* What a value is: 12, "text", true, null, an array of 3, an object; "missing" for NULL. */
tdm_quoted tdm_json_describe(const json_t* value);

/* An object and its place: "" for the outermost, "rope_scaling." inside of that member. */
typedef struct tdm_json_object {
  const json_t* json;
  const char* prefix;
} tdm_json_object;

/* The member, NULL when it is absent or null. */
const json_t* tdm_json_get(tdm_json_object object, const char* key);

/* Typed members. CORRUPT when absent, null, of another type or outside of [min, max]; *out is then left alone. Numbers
 * may be written as integers where a real is wanted, never the other way round. */
tdm_status tdm_json_get_int(tdm_json_object object, const char* key, int64_t min, int64_t max, int64_t* out);
tdm_status tdm_json_get_real(tdm_json_object object, const char* key, double min, double max, double* out);
tdm_status tdm_json_get_bool(tdm_json_object object, const char* key, bool* out);
tdm_status tdm_json_get_string(tdm_json_object object, const char* key,
                               const char** out); /* lives as long as the object */
tdm_status tdm_json_get_array(tdm_json_object object, const char* key, const json_t** out);
/* `prefix` is the place of the member's own members, "key." */
tdm_status tdm_json_get_object(tdm_json_object object, const char* key, const char* prefix, tdm_json_object* out);
/* Element `index` < json_array_size of the array that is member `key`. */
tdm_status tdm_json_get_int_at(const json_t* array, const char* key, size_t index, int64_t min, int64_t max,
                               int64_t* out);

#endif
