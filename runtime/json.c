#include "runtime/json.h"

#include <stdio.h>
#include <string.h>

/* ---- text for sentences ----------------------------------------------------------------------------------------- */

tdm_quoted tdm_json_describe(const json_t* value) {
  tdm_quoted quoted = {.text = "missing"};
  if (!value) return quoted;
  switch (json_typeof(value)) {
  case JSON_OBJECT:
    snprintf(quoted.text, sizeof quoted.text, "an object");
    break;
  case JSON_ARRAY:
    snprintf(quoted.text, sizeof quoted.text, "an array of %zu", json_array_size(value));
    break;
  case JSON_STRING:
    return tdm_quote(json_string_value(value));
  case JSON_INTEGER:
    snprintf(quoted.text, sizeof quoted.text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    break;
  case JSON_REAL: /* as JSON writes it: 4.0 is a real where 4 is an integer */
    snprintf(quoted.text, sizeof quoted.text, "%.9g", json_real_value(value));
    if (!strpbrk(quoted.text, ".e")) strcat(quoted.text, ".0");
    break;
  case JSON_TRUE:
  case JSON_FALSE:
    snprintf(quoted.text, sizeof quoted.text, "%s", json_is_true(value) ? "true" : "false");
    break;
  case JSON_NULL:
    snprintf(quoted.text, sizeof quoted.text, "null");
    break;
  }
  return quoted;
}

/* ---- parsing ---------------------------------------------------------------------------------------------------- */

/* What is too big or never legal, found before the parser allocates anything: one pass that knows strings and brackets,
 * and leaves the grammar to the parser. */
static tdm_status check_limits(const char* text, size_t n_bytes, const tdm_json_limits* limits, size_t* out_longest) {
  size_t depth = 0, values = 0, token = 0, longest = 0;
  bool in_string = false;
  for (size_t i = 0; i < n_bytes; i++) {
    char c = text[i];
    if ((unsigned char)c < 0x20 && (in_string || (c != ' ' && c != '\t' && c != '\n' && c != '\r')))
      return TDM_FAIL(TDM_CORRUPT, "byte %zu is the control character 0x%02x", i, (unsigned)(unsigned char)c);
    if (in_string) {
      token++;
      if (c == '"') {
        in_string = false;
        token--;
      } else if (c == '\\') {
        i++; /* the escaped character cannot end the string; if it is no legal escape the parser says so */
        token++;
      }
    } else if (c == '"') {
      in_string = true;
      token = 0;
    } else if (c == '{' || c == '[') {
      if (++depth > limits->depth) return TDM_FAIL(TDM_CORRUPT, "byte %zu: nested deeper than %zu", i, limits->depth);
      values++;
      token = 0;
    } else if (c == '}' || c == ']') {
      if (depth > 0) depth--;
      token = 0;
    } else if (c == ',') {
      values++;
      token = 0;
    } else if (c == ':' || c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      token = 0;
    } else {
      token++;
    }
    if (token > longest) longest = token;
    if (token > limits->string_bytes)
      return TDM_FAIL(TDM_CORRUPT, "byte %zu: a string or number longer than %zu bytes", i, limits->string_bytes);
    if (values > limits->values) return TDM_FAIL(TDM_CORRUPT, "byte %zu: more than %zu values", i, limits->values);
  }
  *out_longest = longest;
  return TDM_OK;
}

/* jansson 2.14 drops characters when the buffer of its lexer cannot grow, and then runs past its end or into an
 * assertion. That buffer doubles up to the longest token, so make sure that this much is there. */
static bool room_for_token(size_t longest) {
  json_malloc_t alloc;
  json_free_t release;
  json_get_alloc_funcs(&alloc, &release);
  void* probe = alloc(4 * longest + 64);
  if (!probe) return false;
  release(probe);
  return true;
}

/* jansson says so only when a value cannot be allocated: the error has no text then. A string it cannot allocate
 * becomes an invalid token, although the string was scanned to its closing quote; a malformed one has a text of its
 * own. */
static bool out_of_memory(const json_error_t* error, const char* text, size_t n_bytes) {
  if (error->text[0] == '\0' || json_error_code(error) == json_error_out_of_memory) return true;
  if (error->position < 1 || (size_t)error->position > n_bytes || text[error->position - 1] != '"') return false;
  static const char* const disguises[] = {"invalid token", "string or '}' expected"};
  for (size_t i = 0; i < sizeof disguises / sizeof *disguises; i++)
    if (strncmp(error->text, disguises[i], strlen(disguises[i])) == 0) return true;
  return false;
}

tdm_status tdm_json_parse(const char* text, size_t n_bytes, const tdm_json_limits* limits, json_t** out_object) {
  *out_object = NULL;
  if (n_bytes == 0) return TDM_FAIL(TDM_CORRUPT, "empty, expected a JSON object");
  if (n_bytes > limits->bytes)
    return TDM_FAIL(TDM_CORRUPT, "JSON text of %zu bytes, at most %zu are read", n_bytes, limits->bytes);
  size_t longest = 0;
  TDM_TRY(check_limits(text, n_bytes, limits, &longest));
  if (!room_for_token(longest)) return TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory for a JSON token of %zu bytes", longest);
  json_error_t error;
  json_t* root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
  if (!root) {
    if (out_of_memory(&error, text, n_bytes))
      return TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory for a JSON text of %zu bytes", n_bytes);
    return TDM_FAIL(TDM_CORRUPT, "line %d, column %d: %s", error.line, error.column, tdm_printable(error.text).text);
  }
  if (!json_is_object(root)) {
    tdm_status status = TDM_FAIL(TDM_CORRUPT, "%s, expected a JSON object", tdm_json_describe(root).text);
    json_decref(root);
    return status;
  }
  *out_object = root;
  return TDM_OK;
}

/* ---- typed members ---------------------------------------------------------------------------------------------- */

static const json_t* member(tdm_json_object object, const char* key) {
  return json_object_get(object.json, key);
}

const json_t* tdm_json_get(tdm_json_object object, const char* key) {
  const json_t* value = member(object, key);
  return value && !json_is_null(value) ? value : NULL;
}

static tdm_status mistyped(tdm_json_object object, const char* key, const char* expected) {
  return TDM_FAIL(TDM_CORRUPT, "%s%s is %s, expected %s", object.prefix, key,
                  tdm_json_describe(member(object, key)).text, expected);
}

tdm_status tdm_json_get_int(tdm_json_object object, const char* key, int64_t min, int64_t max, int64_t* out) {
  const json_t* value = member(object, key);
  if (!json_is_integer(value)) return mistyped(object, key, "an integer");
  int64_t number = json_integer_value(value);
  if (number < min || number > max)
    return TDM_FAIL(TDM_CORRUPT, "%s%s is %lld, expected %lld to %lld", object.prefix, key, (long long)number,
                    (long long)min, (long long)max);
  *out = number;
  return TDM_OK;
}

tdm_status tdm_json_get_int_at(const json_t* array, const char* key, size_t index, int64_t min, int64_t max,
                               int64_t* out) {
  const json_t* value = json_array_get(array, index);
  if (!json_is_integer(value))
    return TDM_FAIL(TDM_CORRUPT, "%s[%zu] is %s, expected an integer", key, index, tdm_json_describe(value).text);
  int64_t number = json_integer_value(value);
  if (number < min || number > max)
    return TDM_FAIL(TDM_CORRUPT, "%s[%zu] is %lld, expected %lld to %lld", key, index, (long long)number,
                    (long long)min, (long long)max);
  *out = number;
  return TDM_OK;
}

tdm_status tdm_json_get_real(tdm_json_object object, const char* key, double min, double max, double* out) {
  const json_t* value = member(object, key);
  if (!json_is_number(value)) return mistyped(object, key, "a number");
  double number = json_number_value(value);
  if (!(number >= min && number <= max))
    return TDM_FAIL(TDM_CORRUPT, "%s%s is %s, expected %.9g to %.9g", object.prefix, key, tdm_json_describe(value).text,
                    min, max);
  *out = number;
  return TDM_OK;
}

tdm_status tdm_json_get_bool(tdm_json_object object, const char* key, bool* out) {
  const json_t* value = member(object, key);
  if (!json_is_boolean(value)) return mistyped(object, key, "true or false");
  *out = json_is_true(value);
  return TDM_OK;
}

tdm_status tdm_json_get_string(tdm_json_object object, const char* key, const char** out) {
  const json_t* value = member(object, key);
  if (!json_is_string(value)) return mistyped(object, key, "a string");
  *out = json_string_value(value);
  return TDM_OK;
}

tdm_status tdm_json_get_array(tdm_json_object object, const char* key, const json_t** out) {
  const json_t* value = member(object, key);
  if (!json_is_array(value)) return mistyped(object, key, "an array");
  *out = value;
  return TDM_OK;
}

tdm_status tdm_json_get_object(tdm_json_object object, const char* key, const char* prefix, tdm_json_object* out) {
  const json_t* value = member(object, key);
  if (!json_is_object(value)) return mistyped(object, key, "an object");
  *out = (tdm_json_object){value, prefix};
  return TDM_OK;
}
