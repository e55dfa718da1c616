#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/rig.h"

/* ---- runtime ---------------------------------------------------------------------------------------------------- */

static void keep_line(void* ctx, tdm_log_level level, const char* line) {
  fixture* f = ctx;
  cr_expect_null(strchr(line, '\n'), "a log line with a newline: %s", line);
  if (f->n_lines == FIXTURE_LOG_LINES) return;
  f->levels[f->n_lines] = level;
  snprintf(f->lines[f->n_lines++], sizeof f->lines[0], "%s", line);
}

void fixture_open(fixture* f) {
  memset(f, 0, sizeof *f);
  tdm_runtime_config config;
  cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
  config.host_allocator = test_heap_allocator(&f->heap);
  config.log = keep_line;
  config.log_ctx = f;
  cr_assert_eq(tdm_runtime_create(&config, &f->runtime), TDM_OK, "%s", tdm_last_error()->message);
  snprintf(f->directory, sizeof f->directory, "/tmp/tandem_checkpoint_XXXXXX");
  cr_assert_not_null(mkdtemp(f->directory));
}

static int remove_entry(const char* path, const struct stat* info, int type, struct FTW* place) {
  (void)info;
  (void)type;
  (void)place;
  return remove(path);
}

void fixture_close(fixture* f) {
  cr_assert_eq(nftw(f->directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
  cr_assert_eq(tdm_runtime_destroy(f->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_expect_eq(f->heap.outstanding, 0, "%lld blocks are left", (long long)f->heap.outstanding);
  cr_expect_eq(f->heap.bytes, 0, "%lld bytes are left, or freed with another size", (long long)f->heap.bytes);
}

int32_t fixture_count_log(const fixture* f, tdm_log_level level) {
  int32_t count = 0;
  for (int32_t i = 0; i < f->n_lines; i++) count += f->levels[i] == level;
  return count;
}

void fixture_forget_log(fixture* f) {
  f->n_lines = 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

const char* fixture_path(fixture* f, const char* name) {
  snprintf(f->path, sizeof f->path, "%s%s%s", f->directory, name ? "/" : "", name ? name : "");
  return f->path;
}

void fixture_write(fixture* f, const char* name, const void* bytes, size_t n_bytes) {
  FILE* file = fopen(fixture_path(f, name), "wb");
  cr_assert_not_null(file, "%s", f->path);
  cr_assert_eq(fwrite(bytes, 1, n_bytes, file), n_bytes);
  cr_assert_eq(fclose(file), 0);
}

void fixture_write_text(fixture* f, const char* name, const char* text) {
  fixture_write(f, name, text, strlen(text));
}

char* fixture_safetensors(const char* header, int64_t length, size_t n_data, size_t* out_bytes) {
  const size_t n_header = strlen(header);
  const uint64_t said = length < 0 ? n_header : (uint64_t)length;
  *out_bytes = 8 + n_header + n_data;
  char* bytes = malloc(*out_bytes);
  cr_assert_not_null(bytes);
  for (int i = 0; i < 8; i++) bytes[i] = (char)(said >> (8 * i) & 255);
  memcpy(bytes + 8, header, n_header);
  for (size_t i = 0; i < n_data; i++) bytes[8 + n_header + i] = (char)(i & 255);
  return bytes;
}

void fixture_write_safetensors(fixture* f, const char* name, const char* header, size_t n_data) {
  size_t n_bytes;
  char* bytes = fixture_safetensors(header, -1, n_data, &n_bytes);
  fixture_write(f, name, bytes, n_bytes);
  free(bytes);
}

char* fixture_read_source(const char* path, size_t* out_bytes) {
  char full[512];
  snprintf(full, sizeof full, "%s/%s", TANDEM_SOURCE_DIR, path);
  FILE* file = fopen(full, "rb");
  cr_assert_not_null(file, "%s", full);
  cr_assert_eq(fseek(file, 0, SEEK_END), 0);
  const long size = ftell(file);
  cr_assert(size >= 0);
  rewind(file);
  char* text = calloc((size_t)size + 1, 1);
  cr_assert_not_null(text);
  cr_assert_eq(fread(text, 1, (size_t)size, file), (size_t)size);
  fclose(file);
  if (out_bytes) *out_bytes = (size_t)size;
  return text;
}

char* fixture_replace(const char* text, const char* find, const char* replace) {
  const char* at = strstr(text, find);
  cr_assert_not_null(at, "the text has no %s", find);
  const size_t before = (size_t)(at - text), n_replace = strlen(replace), after = strlen(at) - strlen(find);
  char* result = malloc(before + n_replace + after + 1);
  cr_assert_not_null(result);
  memcpy(result, text, before);
  memcpy(result + before, replace, n_replace);
  memcpy(result + before + n_replace, at + strlen(find), after + 1);
  return result;
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

void fixture_expect_failure(const char* what, tdm_status status, tdm_status expected, const char* words) {
  test_expect_failure(what, status, expected, words);
  if (status == TDM_OK) return;
  for (const char* c = tdm_last_error()->message; *c; c++)
    cr_expect((unsigned char)*c >= 0x20 && *c != 0x7f, "%s: control character 0x%02x in the sentence", what,
              (unsigned)(unsigned char)*c);
}
