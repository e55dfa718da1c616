/* Tunings: what they hold, as files, and what models make of them. */

#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "golden.h"
#include "models/tuning.h"
#include "tests/support/rig.h"
#include "variant.h"

/* ---- what they hold --------------------------------------------------------------------------------------------- */

static const tdm_tuning_identity here = {"a GPU, 132 SMs", "tandem 1", "layers A"};
static const tdm_tuning_identity there = {"another GPU, 78 SMs", "tandem 1", "layers A"};

static tdm_tuning_entry entry_of(bool prefill, int64_t n_tokens, int64_t time_ns) {
  return (tdm_tuning_entry){.size = sizeof(tdm_tuning_entry),
                            .prefill = prefill,
                            .n_tokens = n_tokens,
                            .choice = {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 8, TDM_MOE_PATH_HITS},
                            .time_ns = time_ns,
                            .default_ns = 2000,
                            .tried = 11};
}

static tdm_tuning* new_tuning(tdm_runtime* runtime) {
  tdm_tuning* tuning;
  cr_assert_eq(tdm_tuning_create(runtime, &tuning), TDM_OK, "%s", tdm_last_error()->message);
  return tuning;
}

static void add(tdm_tuning* tuning, const tdm_tuning_identity* identity, bool prefill, int64_t n_tokens,
                int64_t time_ns) {
  const tdm_tuning_entry entry = entry_of(prefill, n_tokens, time_ns);
  cr_assert_eq(tdm_tuning_add(tuning, identity, &entry), TDM_OK, "%s", tdm_last_error()->message);
}

static tdm_tuning* two_devices(tdm_runtime* runtime) {
  tdm_tuning* tuning = new_tuning(runtime);
  add(tuning, &here, true, 16, 1);
  add(tuning, &here, false, 64, 2);
  add(tuning, &there, false, 64, 3);
  add(tuning, &here, false, 1, 4);
  add(tuning, &here, false, 64, 5); /* instead of 2 */
  return tuning;
}

static void expect_same(const char* what, const tdm_tuning* a, const tdm_tuning* b) {
  cr_assert_eq(tdm_tuning_count(a), tdm_tuning_count(b), "%s: %d and %d entries", what, tdm_tuning_count(a),
               tdm_tuning_count(b));
  for (int32_t i = 0; i < tdm_tuning_count(a); i++) {
    tdm_tuning_entry x = {.size = sizeof x}, y = {.size = sizeof y};
    cr_assert_eq(tdm_tuning_get(a, i, &x), TDM_OK);
    cr_assert_eq(tdm_tuning_get(b, i, &y), TDM_OK);
    cr_assert(strcmp(x.device, y.device) == 0 && strcmp(x.library, y.library) == 0 && strcmp(x.layers, y.layers) == 0,
              "%s: entry %d", what, i);
    cr_assert(x.prefill == y.prefill && x.n_tokens == y.n_tokens && x.time_ns == y.time_ns &&
                  x.default_ns == y.default_ns && x.tried == y.tried,
              "%s: entry %d", what, i);
    cr_assert_arr_eq(&x.choice, &y.choice, sizeof x.choice, "%s: entry %d", what, i);
  }
}

Test(tuning, holds_one_entry_a_bucket) {
  golden g;
  golden_open_runtime(&g);
  tdm_tuning *tuning = two_devices(g.runtime), *other = new_tuning(g.runtime);
  static const struct {
    const tdm_tuning_identity* identity;
    bool prefill;
    int64_t n_tokens, time_ns;
  } expected[] = {{&here, false, 1, 4}, {&here, false, 64, 5}, {&here, true, 16, 1}, {&there, false, 64, 3}};
  cr_assert_eq(tdm_tuning_count(tuning), 4);
  for (int32_t i = 0; i < 4; i++) {
    tdm_tuning_entry entry = {.size = sizeof entry};
    cr_assert_eq(tdm_tuning_get(tuning, i, &entry), TDM_OK);
    cr_assert_str_eq(entry.device, expected[i].identity->device, "entry %d", i);
    cr_assert_eq(entry.prefill, expected[i].prefill, "entry %d", i);
    cr_assert_eq(entry.n_tokens, expected[i].n_tokens, "entry %d", i);
    cr_assert_eq(entry.time_ns, expected[i].time_ns, "entry %d", i);
    const tdm_tuning_entry* found =
        tdm_tuning_find(tuning, expected[i].identity, expected[i].prefill, expected[i].n_tokens);
    cr_assert(found && found->time_ns == expected[i].time_ns, "entry %d", i);
  }
  cr_assert_null(tdm_tuning_find(tuning, &here, false, 2));
  cr_assert_null(tdm_tuning_find(tuning, &there, true, 16));
  cr_assert_null(tdm_tuning_find(NULL, &there, true, 16));
  tdm_tuning_entry entry = {.size = sizeof entry};
  test_expect_failure("no entry 4", tdm_tuning_get(tuning, 4, &entry), TDM_INVALID_ARGUMENT, "4 entries|number 4");
  test_expect_failure("no entry -1", tdm_tuning_get(tuning, -1, &entry), TDM_INVALID_ARGUMENT, "number -1");
  test_expect_failure("NULL", tdm_tuning_merge(tuning, NULL), TDM_INVALID_ARGUMENT, "from");
  cr_assert_eq(tdm_tuning_count(NULL), 0);
  add(other, &there, false, 64, 7);
  add(other, &there, false, 128, 8);
  cr_assert_eq(tdm_tuning_merge(tuning, other), TDM_OK);
  cr_assert_eq(tdm_tuning_merge(tuning, tuning), TDM_OK);
  cr_assert_eq(tdm_tuning_count(tuning), 5);
  cr_assert_eq(tdm_tuning_find(tuning, &there, false, 64)->time_ns, 7, "the newer one is right");
  test_expect_failure("still there", tdm_runtime_destroy(g.runtime), TDM_INVALID_STATE, "2 tunings");
  tdm_tuning_destroy(tuning);
  tdm_tuning_destroy(other);
  tdm_tuning_destroy(NULL);
  golden_close(&g);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static const char* scratch_path(const char* name, char path[256]) {
  snprintf(path, 256, "/tmp/tandem_tuning_%d_%s.json", (int)getpid(), name);
  return path;
}

static char* read_file(const char* path, size_t* out_bytes) {
  FILE* file = fopen(path, "rb");
  cr_assert_not_null(file, "%s", path);
  char* text = calloc(1, 1 << 16);
  *out_bytes = fread(text, 1, (1 << 16) - 1, file);
  (void)fclose(file);
  return text;
}

static void write_file(const char* path, const char* text, size_t bytes) {
  FILE* file = fopen(path, "wb");
  cr_assert(file && fwrite(text, 1, bytes, file) == bytes, "%s", path);
  (void)fclose(file);
}

Test(tuning, files_give_back_what_was_written) {
  golden g;
  char path[256];
  struct stat info;
  golden_open_runtime(&g);
  tdm_tuning *tuning = two_devices(g.runtime), *empty = new_tuning(g.runtime), *read;
  cr_assert_eq(tdm_tuning_write(tuning, scratch_path("whole", path)), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert(stat(path, &info) == 0 && (info.st_mode & 0777) == 0644);
  cr_assert_eq(tdm_tuning_read(g.runtime, path, &read), TDM_OK, "%s", tdm_last_error()->message);
  expect_same("written and read", tuning, read);
  tdm_tuning_destroy(read);
  cr_assert_eq(tdm_tuning_write(empty, path), TDM_OK, "over the first");
  cr_assert_eq(tdm_tuning_read(g.runtime, path, &read), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_tuning_count(read), 0);
  tdm_tuning_destroy(read);
  test_expect_failure("no folder", tdm_tuning_write(tuning, "/nonexistent/x.json"), TDM_IO,
                      "/nonexistent/x.json|No such");
  test_expect_failure("a folder", tdm_tuning_write(tuning, "/tmp"), TDM_IO, "/tmp");
  test_expect_failure("no file", tdm_tuning_read(g.runtime, "/nonexistent/x.json", &read), TDM_IO, "No such");
  test_expect_failure("NULL", tdm_tuning_write(tuning, NULL), TDM_INVALID_ARGUMENT, "path");
  test_expect_failure("NULL", tdm_tuning_read(g.runtime, NULL, &read), TDM_INVALID_ARGUMENT, "path");
  cr_assert_null(read);
  (void)unlink(path);
  tdm_tuning_destroy(tuning);
  tdm_tuning_destroy(empty);
  golden_close(&g);
}

/* Whatever is done to one byte, or cut off the end: the file is refused, or says the same. */
Test(tuning, files_cut_or_changed_are_refused) {
  golden g;
  char path[256];
  size_t bytes;
  golden_open_runtime(&g);
  tdm_tuning *tuning = two_devices(g.runtime), *read;
  cr_assert_eq(tdm_tuning_write(tuning, scratch_path("changed", path)), TDM_OK);
  char* text = read_file(path, &bytes);
  for (size_t n = 0; n + 2 < bytes; n++) { /* the last two are the bracket and the line's end */
    write_file(path, text, n);
    const tdm_status status = tdm_tuning_read(g.runtime, path, &read);
    cr_assert(status == TDM_CORRUPT && !read, "%zu of %zu bytes: %s", n, bytes, tdm_status_name(status));
  }
  int refused = 0;
  for (size_t at = 0; at < bytes; at++)
    for (int bit = 0; bit < 2; bit++) {
      text[at] = (char)(text[at] ^ (bit ? 0x20 : 1));
      write_file(path, text, bytes);
      const tdm_status status = tdm_tuning_read(g.runtime, path, &read);
      cr_assert(status == TDM_OK || status == TDM_CORRUPT || status == TDM_UNSUPPORTED, "byte %zu: %s", at,
                tdm_status_name(status));
      if (status == TDM_OK) expect_same("one byte changed", tuning, read);
      refused += status != TDM_OK;
      tdm_tuning_destroy(read);
      text[at] = (char)(text[at] ^ (bit ? 0x20 : 1));
    }
  cr_assert_gt(refused, (int)bytes);
  free(text);
  (void)unlink(path);
  tdm_tuning_destroy(tuning);
  golden_close(&g);
}

/* Each allocation of jansson's fails once: writing leaves the old file, reading answers nothing, and nothing is lost.
 */
Test(tuning, files_survive_running_out_of_memory) {
  golden g;
  char path[256];
  test_heap* heap = test_heap_watch_json();
  golden_open_runtime(&g);
  tdm_tuning *tuning = two_devices(g.runtime), *read;
  for (int writes = 1; writes >= 0; writes--)
    for (int64_t nth = 1;; nth++) {
      if (writes) write_file(scratch_path("memory", path), "old", 3);
      test_heap_fail_at(heap, nth);
      const tdm_status status = writes ? tdm_tuning_write(tuning, path) : tdm_tuning_read(g.runtime, path, &read);
      const bool failed = heap->calls >= nth;
      test_heap_fail_at(heap, 0);
      cr_assert_eq(heap->outstanding, 0, "block %d: %d are left", (int)nth, (int)heap->outstanding);
      if (!failed) {
        cr_assert_eq(status, TDM_OK, "%s", tdm_last_error()->message);
        break;
      }
      /* A token that jansson's lexer lost a piece of is CORRUPT: runtime/json.c has the story. */
      cr_assert(status == TDM_OUT_OF_MEMORY || (!writes && status == TDM_CORRUPT), "%s, block %d: status %d, %s",
                writes ? "writing" : "reading", (int)nth, (int)status, tdm_last_error()->message);
      if (!writes) continue;
      size_t bytes;
      char* text = read_file(path, &bytes);
      cr_assert_str_eq(text, "old");
      free(text);
    }
  expect_same("in the end", tuning, read);
  tdm_tuning_destroy(read);
  tdm_tuning_destroy(tuning);
  (void)unlink(path);
  golden_close(&g);
}

/* `text` with the first `from` in it replaced; to be freed. */
static char* replaced(const char* text, const char* from, const char* to) {
  const char* at = strstr(text, from);
  cr_assert_not_null(at, "no %s", from);
  char* made = calloc(1, strlen(text) + strlen(to) + 1);
  memcpy(made, text, (size_t)(at - text));
  strcat(strcat(made, to), at + strlen(from));
  return made;
}

/* The checksum that the refusal asks for, put in: then it is the values that are looked at. */
static char* with_checksum(tdm_runtime* runtime, const char* path, char* text) {
  char wanted[32] = "", had[32] = "";
  tdm_tuning* read;
  write_file(path, text, strlen(text));
  if (tdm_tuning_read(runtime, path, &read) == TDM_OK) {
    tdm_tuning_destroy(read);
    return text;
  }
  const char* message = strstr(tdm_last_error()->message, "and \"fnv1a64:");
  if (!message) return text;
  memcpy(wanted, message + 5, 24);
  memcpy(had, strstr(text, "fnv1a64:"), 24);
  char* made = replaced(text, had, wanted);
  free(text);
  write_file(path, made, strlen(made));
  return made;
}

Test(tuning, files_with_values_that_cannot_be_are_refused) {
  static const struct {
    const char *from, *to;
    tdm_status status;
    const char* words;
  } cases[] = {
      {"tandem tuning", "tandem turning", TDM_CORRUPT, "format is|turning"},
      {"\"version\": 1", "\"version\": 2", TDM_UNSUPPORTED, "version is 2|reads 1"},
      {"\"version\": 1", "\"version\": \"1\"", TDM_CORRUPT, "version is \"1\""},
      {"\"tokens\": 1,", "\"tokens\": 3,", TDM_OK, ""},
      {"\"tokens\": 1,", "\"tokens\": 0,", TDM_CORRUPT, "entries[0].tokens is 0"},
      {"\"tokens\": 1,", "\"tokens\": 1.5,", TDM_CORRUPT, "entries[0].tokens is 1.5"},
      {"\"green\"", "\"purple\"", TDM_CORRUPT, "entries[0].strategy is \"purple\""},
      {"\"green\"", "\"auto\"", TDM_CORRUPT, "entries[0].strategy is \"auto\""},
      {"\"green\"", "\"serial\"", TDM_CORRUPT,
       "entries[0].strategy serial does not go with 8 side_sms and wait signal"},
      {"\"signal\"", "\"smoke\"", TDM_CORRUPT, "entries[0].wait is \"smoke\""},
      {"\"hits\"", "7", TDM_CORRUPT, "entries[0].moe is 7"},
      {"\"hits\"", "\"grouped\"", TDM_OK, ""},
      {"\"hits\"", "\"groups\"", TDM_CORRUPT, "entries[0].moe is \"groups\""},
      {"\"decode\"", "\"decay\"", TDM_CORRUPT, "entries[0].step is \"decay\""},
      {"\"side_sms\": 8", "\"side_sms\": -8", TDM_CORRUPT, "entries[0].side_sms is -8"},
      {"\"side_sms\": 8", "\"side_sms\": 0", TDM_CORRUPT, "green does not go with 0 side_sms"},
      {"\"time_ns\": 4", "\"time_ns\": 0", TDM_CORRUPT, "entries[0].time_ns is 0"},
      {"\"device\"", "\"divine\"", TDM_CORRUPT, "entries[0].device is missing"},
      {"\"layers A\"", "null", TDM_CORRUPT, "entries[0].layers is null"},
      {"\"entries\": [", "\"entries\": [4, ", TDM_CORRUPT, "entries[0] is 4"},
      {"\"entries\": [", "\"entries\": 4, \"e\": [", TDM_CORRUPT, "entries is 4"},
  };
  golden g;
  char path[256];
  size_t bytes;
  golden_open_runtime(&g);
  tdm_tuning *tuning = two_devices(g.runtime), *read;
  cr_assert_eq(tdm_tuning_write(tuning, scratch_path("values", path)), TDM_OK);
  char* text = read_file(path, &bytes);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char* made = with_checksum(g.runtime, path, replaced(text, cases[i].from, cases[i].to));
    const tdm_status status = tdm_tuning_read(g.runtime, path, &read);
    if (cases[i].status == TDM_OK)
      cr_assert_eq(status, TDM_OK, "%s: %s", cases[i].to, tdm_last_error()->message);
    else
      test_expect_failure(cases[i].to, status, cases[i].status, cases[i].words);
    tdm_tuning_destroy(read);
    free(made);
  }
  free(text);
  (void)unlink(path);
  tdm_tuning_destroy(tuning);
  golden_close(&g);
}

/* ---- models that go by one -------------------------------------------------------------------------------------- */

static tdm_model* load(golden* g, const tdm_model_config* config) {
  cr_assert_eq(tdm_model_load(g->runtime, GOLDEN_V3, config, &g->model), TDM_OK, "%s", tdm_last_error()->message);
  return g->model;
}

static const int64_t buckets[] = {2, 8, 24};

static tdm_model_config small_config(const tdm_tuning* tuning) {
  tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  config.max_tokens = 24;
  config.buckets = buckets;
  config.n_buckets = 3;
  config.tuning = tuning;
  return config;
}

static tdm_choice_info choice_of(const tdm_model* model, int64_t n_tokens, bool prefill) {
  tdm_choice_info info = {.size = sizeof info};
  cr_assert_eq(tdm_model_get_choice(model, n_tokens, prefill, &info), TDM_OK, "%s", tdm_last_error()->message);
  return info;
}

/* The identity that the golden model has here, by tuning nothing: every bucket is past a limit of 0 seconds but the
 * first. */
static tdm_tuning* tuned_once(golden* g, tdm_tuning_entry* out_entry) {
  const tdm_model_config config = small_config(NULL);
  tdm_tuning* tuning = new_tuning(g->runtime);
  tdm_tune_config tune;
  tdm_tune_result result = {.size = sizeof result};
  cr_assert_eq(tdm_tune_config_init(&tune, sizeof tune), TDM_OK);
  tune.limit_s = 0;
  cr_assert_eq(tdm_model_tune(load(g, &config), &tune, tuning, &result), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_model_destroy(g->model), TDM_OK);
  g->model = NULL;
  cr_assert_eq(result.buckets, 1);
  cr_assert_eq(result.left, 3, "%d: two buckets of decoding and the one that can prefill", result.left);
  *out_entry = (tdm_tuning_entry){.size = sizeof *out_entry};
  cr_assert_eq(tdm_tuning_get(tuning, 0, out_entry), TDM_OK);
  return tuning;
}

static tdm_tuning_identity identity_of(const tdm_tuning_entry* entry) {
  tdm_tuning_identity identity;
  snprintf(identity.device, sizeof identity.device, "%s", entry->device);
  snprintf(identity.library, sizeof identity.library, "%s", entry->library);
  snprintf(identity.layers, sizeof identity.layers, "%s", entry->layers);
  return identity;
}

/* Buckets go by their entries, what is set by hand stays, and the bits are those of any other way. */
Test(tuning, models_go_by_it) {
  golden g;
  tdm_tuning_entry entry;
  static float usual[24 * GOLDEN_VOCAB], tuned[24 * GOLDEN_VOCAB];
  static const int32_t tokens[24] = {3, 1, 4, 1, 5, 9, 2, 6};
  golden_open_runtime(&g);
  tdm_tuning* tuning = tuned_once(&g, &entry);
  const tdm_tuning_identity identity = identity_of(&entry);
  test_expect_words("the shape", identity.layers, "deepseek_v3|hidden 384|routed experts|e4m3");
  entry.choice = (tdm_choice){TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE};
  entry.time_ns = 7000, entry.default_ns = 9000, entry.tried = 12;
  cr_assert_eq(tdm_tuning_add(tuning, &identity, &entry), TDM_OK); /* decoding of 2 tokens */
  entry.n_tokens = 24;
  entry.prefill = true;
  entry.choice = (tdm_choice){TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 8, TDM_MOE_PATH_HITS};
  cr_assert_eq(tdm_tuning_add(tuning, &identity, &entry), TDM_OK);

  for (int given = 0; given < 2; given++) {
    const tdm_model_config config = small_config(given ? tuning : NULL);
    (void)load(&g, &config);
    tdm_sequence* sequence = golden_sequence(&g);
    tdm_batch_item item = {.sequence = sequence, .tokens = tokens, .n_tokens = 20, .logits = TDM_LOGITS_ALL};
    float* out = given ? tuned : usual;
    (void)golden_forward(&g, &item, out);
    item.n_tokens = 2;
    (void)golden_forward(&g, &item, out + 20 * GOLDEN_VOCAB);
    const tdm_choice_info one = choice_of(g.model, 1, false), many = choice_of(g.model, 17, true),
                          middle = choice_of(g.model, 3, false);
    tdm_model_info info = {.size = sizeof info};
    cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
    cr_assert_eq(info.tuned_buckets, given ? 2 : 0);
    cr_assert_eq(info.strategy, TDM_STRATEGY_SOFT);
    cr_assert_str_empty(info.tuning_reason);
    cr_assert_eq(one.bucket, 2);
    cr_assert_eq(one.source, given ? TDM_CHOICE_TUNING : TDM_CHOICE_RULE);
    cr_assert_eq(one.choice.strategy, given ? TDM_STRATEGY_SERIAL : TDM_STRATEGY_SOFT);
    cr_assert_eq(many.choice.strategy, given ? TDM_STRATEGY_GREEN : TDM_STRATEGY_SOFT);
    cr_assert_eq(many.choice.side_sms, given ? 8 : 16);
    cr_assert_eq(middle.source, TDM_CHOICE_RULE);
    test_expect_words("reason", one.reason, given ? "measured 12 ways|7.0 us|9.0 us" : "nothing was measured");
    tdm_sequence_destroy(sequence);
    cr_assert_eq(tdm_model_destroy(g.model), TDM_OK);
    g.model = NULL;
  }
  cr_assert_arr_eq(usual, tuned, sizeof usual);

  tdm_model_config by_hand = small_config(tuning);
  by_hand.strategy = TDM_STRATEGY_SOFT;
  by_hand.side_sms = 5;
  (void)load(&g, &by_hand);
  tdm_choice_info info = choice_of(g.model, 2, false);
  cr_assert_eq(info.choice.strategy, TDM_STRATEGY_SOFT);
  cr_assert_eq(info.choice.side_sms, 5);
  cr_assert_eq(info.choice.moe_path, TDM_MOE_PATH_DENSE, "that is left open, so the tuning decides");
  test_expect_words("lanes by hand", info.reason, "sets the lanes|measured 12 ways");
  cr_assert_eq(tdm_model_destroy(g.model), TDM_OK);
  by_hand.moe_path = TDM_MOE_PATH_HITS;
  (void)load(&g, &by_hand);
  info = choice_of(g.model, 2, false);
  cr_assert_eq(info.choice.moe_path, TDM_MOE_PATH_HITS);
  cr_assert_eq(info.source, TDM_CHOICE_CONFIGURED);
  test_expect_failure("none", tdm_model_get_choice(g.model, 0, false, &info), TDM_INVALID_ARGUMENT, "0 tokens|1 to 24");
  test_expect_failure("many", tdm_model_get_choice(g.model, 25, false, &info), TDM_INVALID_ARGUMENT, "25 tokens");
  tdm_tuning_destroy(tuning);
  golden_close(&g);
}

/* What was measured elsewhere is not used, and the model says why. */
Test(tuning, of_something_else_is_of_no_use) {
  static const struct {
    const char* name;
    size_t offset, bytes;
    const char* words;
  } cases[] = {{"device", offsetof(tdm_tuning_identity, device), 16, "measured on X\\x0a\\x1b[31m, |this is host"},
               {"library", offsetof(tdm_tuning_identity, library), 16, "measured with X|this is tandem"},
               {"layers", offsetof(tdm_tuning_identity, layers), 16, "measured for X|this is deepseek_v3"},
               {"buckets", 0, 0, "1 buckets, and none is one of this model"},
               {"nothing", 0, 1, "it is empty"}};
  golden g;
  tdm_tuning_entry entry;
  golden_open_runtime(&g);
  tdm_tuning* source = tuned_once(&g, &entry);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tdm_tuning_identity identity = identity_of(&entry);
    tdm_tuning* tuning = new_tuning(g.runtime);
    if (cases[i].bytes > 1) strcpy((char*)&identity + cases[i].offset, "X\n\x1b[31m");
    tdm_tuning_entry changed = entry;
    if (cases[i].bytes == 0) changed.n_tokens = 3;
    if (cases[i].bytes != 1) cr_assert_eq(tdm_tuning_add(tuning, &identity, &changed), TDM_OK);
    const tdm_model_config config = small_config(tuning);
    (void)load(&g, &config);
    tdm_tuning_destroy(tuning);
    tdm_model_info info = {.size = sizeof info};
    cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
    cr_assert_eq(info.tuned_buckets, 0, "%s", cases[i].name);
    test_expect_words(cases[i].name, info.tuning_reason, cases[i].words);
    cr_assert_eq(choice_of(g.model, 2, false).source, TDM_CHOICE_RULE);
    tdm_sequence* sequence = golden_sequence(&g);
    const int32_t token = 5;
    const tdm_batch_item item = {.sequence = sequence, .tokens = &token, .n_tokens = 1};
    (void)golden_forward(&g, &item, NULL);
    tdm_sequence_destroy(sequence);
    cr_assert_eq(tdm_model_destroy(g.model), TDM_OK);
    g.model = NULL;
  }
  tdm_tuning_destroy(source);
  golden_close(&g);
}

/* ---- tuning a model --------------------------------------------------------------------------------------------- */

static tdm_tune_result tune(golden* g, const tdm_tune_config* config, tdm_tuning* tuning) {
  tdm_tune_result result = {.size = sizeof result};
  cr_assert_eq(tdm_model_tune(g->model, config, tuning, &result), TDM_OK, "%s", tdm_last_error()->message);
  return result;
}

/* All buckets get an entry, a sequence that was there before goes on as if nothing had been, and another model goes by
 * the same findings. */
Test(tuning, measures_every_bucket) {
  golden g;
  char path[256];
  static const int32_t tokens[8] = {3, 1, 4, 1, 5, 9, 2, 6};
  static float alone[8 * GOLDEN_VOCAB], between[8 * GOLDEN_VOCAB];
  golden_open_runtime(&g);
  tdm_tuning *tuning = new_tuning(g.runtime), *read;
  const tdm_model_config config = small_config(NULL);
  for (int tunes = 0; tunes < 2; tunes++) {
    float* out = tunes ? between : alone;
    (void)load(&g, &config);
    tdm_sequence* sequence = golden_sequence(&g);
    tdm_batch_item item = {.sequence = sequence, .tokens = tokens, .n_tokens = 5, .logits = TDM_LOGITS_ALL};
    (void)golden_forward(&g, &item, out);
    if (tunes) {
      tdm_tune_config few;
      cr_assert_eq(tdm_tune_config_init(&few, sizeof few), TDM_OK);
      few.context = 40;
      few.layers = 1;
      const tdm_tune_result result = tune(&g, &few, tuning);
      cr_assert_eq(result.buckets, 4);
      cr_assert_eq(result.left, 0);
      cr_assert_geq(result.programs, 4 * 3);
      cr_assert_gt(result.seconds, 0);
      cr_assert_eq(tdm_tuning_count(tuning), 4);
      tdm_model_info info = {.size = sizeof info};
      cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
      cr_assert_eq(info.tuned_buckets, 4);
      cr_assert_eq(info.cache_pages_free, info.cache_pages - 1, "the sequence of before has one");
    }
    item.tokens = tokens + 5;
    item.n_tokens = 3;
    (void)golden_forward(&g, &item, out + 5 * GOLDEN_VOCAB);
    tdm_sequence_destroy(sequence);
    if (tunes) break;
    cr_assert_eq(tdm_model_destroy(g.model), TDM_OK);
  }
  cr_assert_arr_eq(alone, between, sizeof alone);
  for (int32_t i = 0; i < 4; i++) {
    tdm_tuning_entry entry = {.size = sizeof entry};
    cr_assert_eq(tdm_tuning_get(tuning, i, &entry), TDM_OK);
    cr_assert_eq(entry.n_tokens, i < 3 ? buckets[i] : 24);
    cr_assert_eq(entry.prefill, i == 3);
    cr_assert(entry.tried >= 3 && entry.time_ns > 0 && entry.time_ns <= entry.default_ns);
    const tdm_choice_info chosen = choice_of(g.model, entry.n_tokens, entry.prefill);
    cr_assert_arr_eq(&chosen.choice, &entry.choice, sizeof entry.choice);
    cr_assert_eq(chosen.source, TDM_CHOICE_TUNING);
  }
  cr_assert_eq(tdm_model_destroy(g.model), TDM_OK);
  cr_assert_eq(tdm_tuning_write(tuning, scratch_path("model", path)), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_tuning_read(g.runtime, path, &read), TDM_OK, "%s", tdm_last_error()->message);
  const tdm_model_config tuned = small_config(read);
  (void)load(&g, &tuned);
  for (int32_t i = 0; i < 3; i++)
    cr_assert_eq(choice_of(g.model, buckets[i], false).source, TDM_CHOICE_TUNING, "bucket %d", i);
  tdm_tuning_destroy(read);
  tdm_tuning_destroy(tuning);
  (void)unlink(path);
  golden_close(&g);
}

Test(tuning, refuses_what_cannot_be_measured) {
  golden g;
  golden_open_runtime(&g);
  tdm_model_config config = small_config(NULL);
  config.cache_pages = 2;
  (void)load(&g, &config);
  tdm_tuning* tuning = new_tuning(g.runtime);
  tdm_tune_result result = {.size = sizeof result};
  test_expect_failure("NULL", tdm_model_tune(NULL, NULL, tuning, &result), TDM_INVALID_ARGUMENT, "model");
  test_expect_failure("NULL", tdm_model_tune(g.model, NULL, NULL, &result), TDM_INVALID_ARGUMENT, "tuning");
  static const struct {
    const char* words;
    int64_t layers, context;
    double gain, limit_s;
  } cases[] = {{"0 layers", 0, 1, 0, 1},        {"context 0", 1, 0, 0, 1},      {"gain is 1", 1, 1, 1, 1},
               {"gain is -0.1", 1, 1, -0.1, 1}, {"limit_s is -1", 1, 1, 0, -1}, {"limit_s is inf", 1, 1, 0, 1.0 / 0.0}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tdm_tune_config tune_config;
    cr_assert_eq(tdm_tune_config_init(&tune_config, sizeof tune_config), TDM_OK);
    tune_config.layers = cases[i].layers;
    tune_config.context = cases[i].context;
    tune_config.gain = cases[i].gain;
    tune_config.limit_s = cases[i].limit_s;
    test_expect_failure(cases[i].words, tdm_model_tune(g.model, &tune_config, tuning, &result), TDM_INVALID_ARGUMENT,
                        cases[i].words);
  }
  /* Two pages are enough for the bucket of two sequences, not for that of eight, which takes four. */
  test_expect_failure("pages", tdm_model_tune(g.model, NULL, tuning, &result), TDM_OUT_OF_MEMORY, "4 sequences|2 free");
  cr_assert_eq(result.buckets, 1);
  cr_assert_eq(tdm_tuning_count(tuning), 1, "what was found stays");
  cr_assert_eq(choice_of(g.model, 2, false).source, TDM_CHOICE_RULE, "the model goes on as before");
  tdm_model_info info = {.size = sizeof info};
  cr_assert_eq(tdm_model_get_info(g.model, &info), TDM_OK);
  cr_assert_eq(info.cache_pages_free, 2);
  tdm_tuning_destroy(tuning);
  golden_close(&g);
}

/* Allocations fail, one in so many of them: a status, nothing lost, and the model still runs. */
Test(tuning, survives_running_out_of_memory) {
  tdm_tune_config short_one;
  cr_assert_eq(tdm_tune_config_init(&short_one, sizeof short_one), TDM_OK);
  short_one.layers = 1;
  short_one.context = 40;
  for (int64_t nth = 1;; nth += 37) {
    golden g;
    golden_open_runtime(&g);
    tdm_model_config config = small_config(NULL);
    config.n_buckets = 1;
    config.max_tokens = 2;
    config.layers = 2;
    (void)load(&g, &config);
    tdm_tuning* tuning = new_tuning(g.runtime);
    tdm_tune_result result = {.size = sizeof result};
    test_heap_fail_at(&g.heap, nth);
    const tdm_status status = tdm_model_tune(g.model, &short_one, tuning, &result);
    const bool failed = g.heap.calls >= nth;
    test_heap_fail_at(&g.heap, 0);
    cr_assert_eq(status, failed ? TDM_OUT_OF_MEMORY : TDM_OK, "block %d: %s", (int)nth, tdm_last_error()->message);
    tdm_sequence* sequence = golden_sequence(&g);
    const int32_t token = 5;
    const tdm_batch_item item = {.sequence = sequence, .tokens = &token, .n_tokens = 1};
    (void)golden_forward(&g, &item, NULL);
    tdm_sequence_destroy(sequence);
    tdm_tuning_destroy(tuning);
    golden_close(&g);
    if (!failed) break;
  }
}

/* ---- graphs of layers by themselves ----------------------------------------------------------------------------- */

/* Every way gives the bits of the call before. */
Test(tuning, captured_layers_give_the_same_bits) {
  static const struct {
    const char* name;
    tdm_choice choice;
  } ways[] = {{"serial", {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE}},
              {"serial, hits", {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_HITS}},
              {"serial, grouped", {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_GROUPED}},
              {"soft", {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 4, TDM_MOE_PATH_DENSE}},
              {"soft, hits", {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 32, TDM_MOE_PATH_HITS}},
              {"split", {TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, 4, TDM_MOE_PATH_DENSE}},
              {"green", {TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_AUTO}},
              {"signals", {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 16, TDM_MOE_PATH_DENSE}},
              {"signals, grouped", {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 16, TDM_MOE_PATH_GROUPED}}};
  static float in[20 * GOLDEN_HIDDEN], expected[20 * GOLDEN_HIDDEN], got[20 * GOLDEN_HIDDEN];
  golden g;
  test_random random = {7};
  tdm_graph* graph;
  golden_open_runtime(&g);
  const tdm_model_config config = small_config(NULL);
  (void)load(&g, &config);
  test_expect_failure("no call yet", tdm_model_capture_layers(g.model, 0, 2, 24, true, NULL, &graph), TDM_INVALID_STATE,
                      "24 tokens|had 0");
  test_random_fill_normal(&random, in, 20 * GOLDEN_HIDDEN, 1);
  tdm_sequence* sequence = golden_sequence(&g);
  tdm_batch_item item = {.sequence = sequence, .n_tokens = 20};
  for (int prefill = 1; prefill >= 0; prefill--, item.n_tokens = 2) {
    cr_assert_eq(tdm_model_forward_layers(g.model, &item, 1, 0, 2, in, expected), TDM_OK, "%s",
                 tdm_last_error()->message);
    for (size_t i = 0; i <= sizeof ways / sizeof *ways; i++) {
      const bool given = i < sizeof ways / sizeof *ways;
      const char* name = given ? ways[i].name : "the model's own";
      tdm_view out;
      cr_assert_eq(
          tdm_model_capture_layers(g.model, 0, 2, item.n_tokens, prefill, given ? &ways[i].choice : NULL, &graph),
          TDM_OK, "%s: %s", name, tdm_last_error()->message);
      for (int replay = 0; replay < 2; replay++) cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
      cr_assert_eq(tdm_program_find(tdm_graph_program(graph), "layer1.out", &out), TDM_OK);
      golden_read(&out, item.n_tokens, got);
      cr_assert_arr_eq(got, expected, (size_t)(item.n_tokens * GOLDEN_HIDDEN) * sizeof *got, "%s, %d tokens", name,
                       (int)item.n_tokens);
      tdm_graph_destroy(graph);
    }
    if (prefill)
      test_expect_failure("prefill", tdm_model_capture_layers(g.model, 0, 2, 24, false, NULL, &graph),
                          TDM_INVALID_STATE, "prefill");
  }
  static const struct {
    const char* words;
    int64_t first, count, n_tokens;
    tdm_choice choice;
  } bad[] = {{"layers 1 .. 2", 1, 2, 2, {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE}},
             {"layers -1", -1, 1, 2, {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE}},
             {"25 tokens", 0, 1, 25, {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE}},
             {"strategy 1", 0, 1, 2, {TDM_STRATEGY_AUTO, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE}},
             {"wait_form 3", 0, 1, 2, {TDM_STRATEGY_SOFT, (tdm_wait_form)3, 16, TDM_MOE_PATH_DENSE}},
             {"moe_path 0", 0, 1, 2, {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, (tdm_moe_path)0}},
             {"moe_path 5", 0, 1, 2, {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, (tdm_moe_path)5}},
             {"serial with 16 side_sms", 0, 1, 2, {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE}},
             {"serial with 0 side_sms and wait_form signal",
              0,
              1,
              2,
              {TDM_STRATEGY_SERIAL, TDM_WAIT_SIGNAL, 0, TDM_MOE_PATH_DENSE}},
             {"soft with 0 side_sms", 0, 1, 2, {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE}}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    test_expect_failure(
        bad[i].words,
        tdm_model_capture_layers(g.model, bad[i].first, bad[i].count, bad[i].n_tokens, false, &bad[i].choice, &graph),
        TDM_INVALID_ARGUMENT, bad[i].words);
  test_expect_failure("NULL", tdm_model_capture_layers(g.model, 0, 1, 2, false, NULL, NULL), TDM_INVALID_ARGUMENT,
                      "out_graph");
  cr_assert_null(graph);
  tdm_sequence_destroy(sequence);
  golden_close(&g);
}
