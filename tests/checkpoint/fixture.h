#ifndef TESTS_CHECKPOINT_FIXTURE_H
#define TESTS_CHECKPOINT_FIXTURE_H

/* What the tests of this folder work with: a runtime whose memory is counted and can fail and whose log is kept, a
 * directory for files, a writer of safetensors. */

#include "tandem/checkpoint.h"
#include "tests/support/heap.h"

enum { FIXTURE_LOG_LINES = 64 };

typedef struct fixture {
  tdm_runtime* runtime;
  test_heap heap; /* host memory of the runtime */
  int32_t n_lines;
  tdm_log_level levels[FIXTURE_LOG_LINES];
  char lines[FIXTURE_LOG_LINES][1024];
  char directory[64]; /* empty, removed with all that is in it by fixture_close */
  char path[256];     /* what fixture_path made last */
} fixture;

void fixture_open(fixture* f);
/* Fails the test when memory of the runtime is left. */
void fixture_close(fixture* f);
/* Lines logged at `level`; forgets them all with fixture_forget_log. */
int32_t fixture_count_log(const fixture* f, tdm_log_level level);
void fixture_forget_log(fixture* f);

/* "directory/name"; valid until the next call. name NULL: the directory itself. */
const char* fixture_path(fixture* f, const char* name);
void fixture_write(fixture* f, const char* name, const void* bytes, size_t n_bytes);
void fixture_write_text(fixture* f, const char* name, const char* text);
/* A safetensors file of this header and n_data bytes 0, 1, 2, ... */
void fixture_write_safetensors(fixture* f, const char* name, const char* header, size_t n_data);

/* The same in memory, of exactly *out_bytes bytes, to be freed. `length` is what the file says of its header; -1: the
 * truth. */
char* fixture_safetensors(const char* header, int64_t length, size_t n_data, size_t* out_bytes);

/* A file of the source tree; NUL behind its bytes; to be freed. */
char* fixture_read_source(const char* path, size_t* out_bytes);
/* `text` with the first `find` replaced (which must be there); to be freed. */
char* fixture_replace(const char* text, const char* find, const char* replace);

/* test_expect_failure, and no control character of a stranger's got into the sentence. */
void fixture_expect_failure(const char* what, tdm_status status, tdm_status expected, const char* words);

#endif
