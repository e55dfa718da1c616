#include "models/tuning_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/hash.h"
#include "runtime/json.h"
#include "runtime/mapped_file.h"

/* Room for a hundred models with 64 buckets of both kinds, and more. */
static const tdm_json_limits limits = {.bytes = 16 << 20, .depth = 4, .string_bytes = 1024, .values = 1 << 20};
enum { VERSION = 1, CHECKSUM_BYTES = 32 };
#define FORMAT "tandem tuning"

static int add_to_hash(const char* text, size_t bytes, void* ctx) {
  uint64_t* hash = ctx;
  *hash = tdm_hash(*hash, text, bytes);
  return 0;
}

/* Of the text as it comes: json_dumps of jansson 2.14 leaves keys out of its text when that cannot grow. */
static tdm_status checksum_of(const json_t* entries, char text[CHECKSUM_BYTES]) {
  uint64_t hash = TDM_HASH_BEGIN;
  if (json_dump_callback(entries, add_to_hash, &hash, JSON_COMPACT | JSON_SORT_KEYS) != 0)
    return TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory for the checksum of a tuning");
  (void)snprintf(text, CHECKSUM_BYTES, "fnv1a64:%016" PRIx64, hash);
  return TDM_OK;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static tdm_status get_text(tdm_json_object object, const char* key, char* out, size_t bytes) {
  const char* text;
  TDM_TRY(tdm_json_get_string(object, key, &text));
  if (strlen(text) >= bytes)
    return TDM_FAIL(TDM_CORRUPT, "%s%s has %zu characters, at most %zu are expected", object.prefix, key, strlen(text),
                    bytes - 1);
  memcpy(out, text, strlen(text) + 1);
  return TDM_OK;
}

/* The place of a member's value among names; the first is names[1]. */
static tdm_status get_name(tdm_json_object object, const char* key, const char* (*name)(int), int* out) {
  const char* text;
  TDM_TRY(tdm_json_get_string(object, key, &text));
  for (int i = 1; name(i); i++)
    if (strcmp(text, name(i)) == 0) {
      *out = i;
      return TDM_OK;
    }
  return TDM_FAIL(TDM_CORRUPT, "%s%s is %s, which means nothing", object.prefix, key, tdm_quote(text).text);
}

static const char* strategy_name(int i) {
  return tdm_strategy_name((tdm_strategy)i);
}
static const char* wait_name(int i) {
  return tdm_wait_form_name((tdm_wait_form)i);
}
static const char* moe_name(int i) {
  return tdm_moe_path_name((tdm_moe_path)i);
}
static const char* step_name(int i) {
  static const char* const names[] = {NULL, "decode", "prefill"};
  return i < 3 ? names[i] : NULL;
}

/* Serial has no side lane, and a way is never "auto" in its lanes. */
static tdm_status check_choice(tdm_json_object object, const tdm_choice* choice) {
  const bool serial = choice->strategy == TDM_STRATEGY_SERIAL;
  if (choice->strategy == TDM_STRATEGY_AUTO)
    return TDM_FAIL(TDM_CORRUPT, "%sstrategy is \"auto\", which is nothing to measure", object.prefix);
  if (serial != (choice->side_sms == 0) || (choice->wait_form == TDM_WAIT_SIGNAL && serial))
    return TDM_FAIL(TDM_CORRUPT, "%sstrategy %s does not go with %d side_sms and wait %s", object.prefix,
                    tdm_strategy_name(choice->strategy), choice->side_sms, tdm_wait_form_name(choice->wait_form));
  return TDM_OK;
}

static tdm_status read_entry(tdm_json_object object, tdm_tuning* tuning) {
  tdm_tuning_identity identity;
  tdm_tuning_entry entry = {.size = sizeof entry};
  int step = 0, strategy = 0, wait = 0, moe = 0;
  int64_t side_sms = 0, tried = 0;
  TDM_TRY(get_text(object, "device", identity.device, sizeof identity.device));
  TDM_TRY(get_text(object, "library", identity.library, sizeof identity.library));
  TDM_TRY(get_text(object, "layers", identity.layers, sizeof identity.layers));
  TDM_TRY(get_name(object, "step", step_name, &step));
  TDM_TRY(tdm_json_get_int(object, "tokens", 1, 1 << 20, &entry.n_tokens));
  TDM_TRY(get_name(object, "strategy", strategy_name, &strategy));
  TDM_TRY(get_name(object, "wait", wait_name, &wait));
  TDM_TRY(tdm_json_get_int(object, "side_sms", 0, 1024, &side_sms));
  TDM_TRY(get_name(object, "moe", moe_name, &moe));
  TDM_TRY(tdm_json_get_int(object, "time_ns", 1, INT64_MAX, &entry.time_ns));
  TDM_TRY(tdm_json_get_int(object, "default_ns", 1, INT64_MAX, &entry.default_ns));
  TDM_TRY(tdm_json_get_int(object, "tried", 1, 1 << 20, &tried));
  entry.prefill = step == 2;
  entry.choice = (tdm_choice){.strategy = (tdm_strategy)strategy,
                              .wait_form = (tdm_wait_form)wait,
                              .side_sms = (int32_t)side_sms,
                              .moe_path = (tdm_moe_path)moe};
  entry.tried = (int32_t)tried;
  TDM_TRY(check_choice(object, &entry.choice));
  return tdm_tuning_add(tuning, &identity, &entry);
}

static tdm_status read_entries(const json_t* entries, tdm_tuning* tuning) {
  for (size_t i = 0; i < json_array_size(entries); i++) {
    char prefix[32];
    const json_t* one = json_array_get(entries, i);
    if (!json_is_object(one))
      return TDM_FAIL(TDM_CORRUPT, "entries[%zu] is %s, expected an object", i, tdm_json_describe(one).text);
    (void)snprintf(prefix, sizeof prefix, "entries[%zu].", i);
    TDM_TRY(read_entry((tdm_json_object){one, prefix}, tuning));
  }
  return TDM_OK;
}

static tdm_status read_root(const json_t* json, tdm_tuning* tuning) {
  const tdm_json_object root = {json, ""};
  const char *format, *checksum;
  const json_t* entries;
  int64_t version = 0;
  char expected[CHECKSUM_BYTES];
  TDM_TRY(tdm_json_get_string(root, "format", &format));
  if (strcmp(format, FORMAT) != 0)
    return TDM_FAIL(TDM_CORRUPT, "format is %s, expected \"" FORMAT "\"", tdm_quote(format).text);
  TDM_TRY(tdm_json_get_int(root, "version", 1, INT32_MAX, &version));
  if (version != VERSION)
    return TDM_FAIL(TDM_UNSUPPORTED, "version is %d, this library reads %d", (int)version, VERSION);
  TDM_TRY(tdm_json_get_string(root, "checksum", &checksum));
  TDM_TRY(tdm_json_get_array(root, "entries", &entries));
  TDM_TRY(checksum_of(entries, expected));
  if (strcmp(checksum, expected) != 0)
    return TDM_FAIL(TDM_CORRUPT, "checksum is %s, and \"%s\" would fit the entries: they were changed by hand or cut",
                    tdm_quote(checksum).text, expected);
  return read_entries(entries, tuning);
}

tdm_status tdm_tuning_file_read(const char* path, tdm_tuning* tuning) {
  tdm_mapped_file file;
  json_t* root = NULL;
  TDM_TRY(tdm_mapped_file_open(path, &file));
  tdm_status status = tdm_json_parse(file.bytes, file.n_bytes, &limits, &root);
  if (status == TDM_OK) status = read_root(root, tuning);
  json_decref(root);
  tdm_mapped_file_close(&file);
  return status == TDM_OK ? TDM_OK : tdm_fail_prefix(status, "%s", path);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static json_t* entry_json(const tdm_tuning_entry* entry) {
  return json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:i, s:s, s:I, s:I, s:i}", "device", entry->device, "library",
                   entry->library, "layers", entry->layers, "step", step_name(entry->prefill ? 2 : 1), "tokens",
                   (json_int_t)entry->n_tokens, "strategy", tdm_strategy_name(entry->choice.strategy), "wait",
                   tdm_wait_form_name(entry->choice.wait_form), "side_sms", entry->choice.side_sms, "moe",
                   tdm_moe_path_name(entry->choice.moe_path), "time_ns", (json_int_t)entry->time_ns, "default_ns",
                   (json_int_t)entry->default_ns, "tried", entry->tried);
}

static tdm_status entries_json(const tdm_tuning* tuning, json_t** out_entries) {
  json_t* entries = json_array();
  for (int32_t i = 0; entries && i < tdm_tuning_count(tuning); i++) {
    tdm_tuning_entry entry = {.size = sizeof entry};
    (void)tdm_tuning_get(tuning, i, &entry); /* there is one */
    if (json_array_append_new(entries, entry_json(&entry)) != 0) {
      json_decref(entries);
      entries = NULL;
    }
  }
  *out_entries = entries;
  return entries ? TDM_OK : TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory for the entries of a tuning");
}

static tdm_status root_json(const tdm_tuning* tuning, json_t** out_root) {
  json_t* entries;
  char checksum[CHECKSUM_BYTES];
  *out_root = NULL;
  TDM_TRY(entries_json(tuning, &entries));
  const tdm_status status = checksum_of(entries, checksum);
  if (status != TDM_OK) {
    json_decref(entries);
    return status;
  }
  *out_root =
      json_pack("{s:s, s:i, s:s, s:o}", "format", FORMAT, "version", VERSION, "checksum", checksum, "entries", entries);
  return *out_root ? TDM_OK : TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory for a tuning");
}

/* To `temporary`, a name made by mkstemp, and from there to `path`. */
static tdm_status write_and_move(json_t* root, int fd, const char* temporary, const char* path) {
  FILE* file = fdopen(fd, "w");
  if (!file) {
    const int error = errno;
    (void)close(fd);
    return TDM_FAIL_RAW(TDM_IO, error, "%s: %s", temporary, strerror(error));
  }
  errno = ENOMEM; /* jansson sets none */
  bool ok = json_dumpf(root, file, JSON_INDENT(1)) == 0 && fputc('\n', file) != EOF && fflush(file) == 0 &&
            !ferror(file) && fchmod(fd, 0644) == 0 && fsync(fd) == 0; /* jansson passes over some errors */
  int error = errno;
  if (fclose(file) != 0 && ok) {
    ok = false;
    error = errno;
  }
  if (!ok && error == ENOMEM) return TDM_FAIL(TDM_OUT_OF_MEMORY, "%s: no memory for its text", path);
  if (!ok) return TDM_FAIL_RAW(TDM_IO, error, "%s: writing: %s", path, strerror(error));
  if (rename(temporary, path) != 0)
    return TDM_FAIL_RAW(TDM_IO, errno, "%s: putting a new file there: %s", path, strerror(errno));
  return TDM_OK;
}

tdm_status tdm_tuning_file_write(const tdm_tuning* tuning, const char* path) {
  char temporary[4096];
  if (snprintf(temporary, sizeof temporary, "%s.XXXXXX", path) >= (int)sizeof temporary)
    return TDM_FAIL_RAW(TDM_IO, ENAMETOOLONG, "%.80s...: %s", path, strerror(ENAMETOOLONG));
  json_t* root;
  TDM_TRY(root_json(tuning, &root));
  const int fd = mkstemp(temporary);
  tdm_status status = TDM_OK;
  if (fd < 0) {
    status = TDM_FAIL_RAW(TDM_IO, errno, "%s: making a new file beside it: %s", path, strerror(errno));
  } else {
    status = write_and_move(root, fd, temporary, path);
    if (status != TDM_OK) (void)unlink(temporary);
  }
  json_decref(root);
  return status;
}
