/* Files and directories of files. */

#include "tandem/checkpoint.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/safetensors.h"
#include "tests/checkpoint/fixture.h"

#define INDEX "model.safetensors.index.json"
#define ONE   "model-00001-of-00002.safetensors"
#define TWO   "model-00002-of-00002.safetensors"
#define HEADER_AB                                                                                                      \
  "{\"layer.a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"                                             \
  "\"layer.b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[8,12]}}"
#define HEADER_C                                                                                                       \
  "{\"__metadata__\":{\"format\":\"pt\"},\"aa.c\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[0,3]}}"
#define WEIGHT_MAP                                                                                                     \
  "{\"metadata\":{\"total_size\":15},\"weight_map\":{\"layer.a\":\"" ONE "\",\"aa.c\":\"" TWO "\",\"layer.b\":\"" ONE  \
  "\"}}"

static tdm_status open_and_close(fixture* f, const char* path) {
  tdm_checkpoint* checkpoint = (tdm_checkpoint*)f; /* must be NULLed */
  const tdm_status status = tdm_checkpoint_open(f->runtime, path, &checkpoint);
  cr_expect_eq(checkpoint == NULL, status != TDM_OK, "%s: a checkpoint after a failure, or none after success", path);
  tdm_checkpoint_close(checkpoint);
  return status;
}

static void write_sharded(fixture* f) {
  fixture_write_safetensors(f, ONE, HEADER_AB, 12);
  fixture_write_safetensors(f, TWO, HEADER_C, 3);
  fixture_write_text(f, INDEX, WEIGHT_MAP);
}

/* ---- what is right ---------------------------------------------------------------------------------------------- */

static tdm_checkpoint* open_good(fixture* f, const char* path) {
  tdm_checkpoint* checkpoint = NULL;
  cr_assert_eq(tdm_checkpoint_open(f->runtime, path, &checkpoint), TDM_OK, "%s", tdm_last_error()->message);
  return checkpoint;
}

/* Names in ascending order, each found by name, none found that is not there. */
static void expect_names(const tdm_checkpoint* checkpoint, const char* const* names, int64_t n) {
  cr_assert_eq(tdm_checkpoint_count(checkpoint), n, "%lld tensors", (long long)tdm_checkpoint_count(checkpoint));
  for (int64_t i = 0; i < n; i++) {
    tdm_tensor_info by_index, by_name;
    cr_assert_eq(tdm_checkpoint_get(checkpoint, i, &by_index), TDM_OK);
    cr_expect_str_eq(by_index.name, names[i]);
    cr_assert(tdm_checkpoint_find(checkpoint, names[i], &by_name), "%s", names[i]);
    cr_expect_eq(by_index.data, by_name.data);
    cr_expect(tdm_checkpoint_find(checkpoint, names[i], NULL));
  }
  cr_expect_not(tdm_checkpoint_find(checkpoint, "", NULL));
  cr_expect_not(tdm_checkpoint_find(checkpoint, "layer", NULL));
  cr_expect_not(tdm_checkpoint_find(checkpoint, "zzz", NULL));
  cr_expect_not(tdm_checkpoint_find(checkpoint, NULL, NULL));
}

Test(checkpoint, sharded_with_index) {
  fixture f;
  fixture_open(&f);
  write_sharded(&f);
  fixture_write_safetensors(&f, "other.safetensors", "{}", 0); /* not in the index: not read */
  fixture_write_text(&f, "model.safetensors", "not read either");
  tdm_checkpoint* checkpoint = open_good(&f, f.directory);
  expect_names(checkpoint, (const char* const[]){"aa.c", "layer.a", "layer.b"}, 3);
  tdm_tensor_info info;
  cr_assert(tdm_checkpoint_find(checkpoint, "layer.b", &info));
  cr_expect_str_eq(info.file, fixture_path(&f, ONE));
  cr_expect_eq(info.bytes, 4);
  cr_expect_arr_eq(info.data, "\x08\x09\x0a\x0b", 4);
  cr_assert(tdm_checkpoint_find(checkpoint, "aa.c", &info));
  cr_expect_arr_eq(info.data, "\x00\x01\x02", 3);
  cr_expect_eq(tdm_runtime_destroy(f.runtime), TDM_INVALID_STATE);
  cr_expect_not_null(strstr(tdm_last_error()->message, "1 checkpoints"), "%s", tdm_last_error()->message);
  tdm_checkpoint_close(checkpoint);
  tdm_checkpoint_close(NULL);
  fixture_close(&f);
}

Test(checkpoint, ways_to_name_one) {
  fixture f;
  fixture_open(&f);
  static const char* const ab[] = {"layer.a", "layer.b"};
  static const char* const abc[] = {"aa.c", "layer.a", "layer.b"};

  /* every *.safetensors but io, hidden ones and others; also with slashes at the end and through a link */
  fixture_write_safetensors(&f, "x.safetensors", HEADER_AB, 12);
  fixture_write_safetensors(&f, "y.safetensors", HEADER_C, 3);
  fixture_write_text(&f, "io.safetensors", "not read");
  fixture_write_text(&f, "._x.safetensors", "not read");
  fixture_write_text(&f, "x.safetensors.bak", "not read");
  fixture_write_text(&f, "config.json", "{}");
  tdm_checkpoint* checkpoint = open_good(&f, f.directory);
  expect_names(checkpoint, abc, 3);
  tdm_checkpoint_close(checkpoint);
  checkpoint = open_good(&f, fixture_path(&f, "//"));
  expect_names(checkpoint, abc, 3);
  tdm_checkpoint_close(checkpoint);

  /* model.safetensors alone counts where it is; it may be a link, as in the hub's cache */
  cr_assert_eq(symlink("x.safetensors", fixture_path(&f, "model.safetensors")), 0);
  checkpoint = open_good(&f, f.directory);
  expect_names(checkpoint, ab, 2);
  tdm_checkpoint_close(checkpoint);

  /* one file */
  checkpoint = open_good(&f, fixture_path(&f, "y.safetensors"));
  expect_names(checkpoint, abc, 1);
  tdm_checkpoint_close(checkpoint);

  /* one file with no tensor */
  fixture_write_safetensors(&f, "none.safetensors", "{}", 0);
  checkpoint = open_good(&f, fixture_path(&f, "none.safetensors"));
  expect_names(checkpoint, NULL, 0);
  tdm_checkpoint_close(checkpoint);
  fixture_close(&f);
}

/* The mapping shows the file's bytes as they are; the rows were read from the golden files by other means. */
Test(checkpoint, golden) {
  typedef struct golden_case {
    const char* path;
    const char* tensor;
    int64_t count; /* tensors in the file */
    tdm_dtype dtype;
    int32_t rank;
    int64_t shape[3];
    uint8_t first[4];
  } golden_case;
  static const golden_case cases[] = {
      {"deepseek_v3", "model.embed_tokens.weight", 93, TDM_BF16, 2, {256, 384}, {0xb7, 0x3c, 0x14, 0xbf}},
      {"deepseek_v3",
       "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
       93,
       TDM_E4M3,
       2,
       {576, 384},
       {0x63, 0x5d, 0x68, 0xd8}},
      {"deepseek_v3",
       "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv",
       93,
       TDM_F32,
       2,
       {5, 3},
       {0xa0, 0x1d, 0xf4, 0x39}},
      {"deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias", 93, TDM_F32, 1, {8}, {0x9c, 0x91, 0xff, 0xbe}},
      {"deepseek_v3/io.safetensors", "seq2.logits", 42, TDM_F32, 2, {43, 256}, {0xda, 0x2b, 0x95, 0xbf}},
      {"deepseek_v3/io.safetensors", "seq0.layer1.topk_ids", 42, TDM_I32, 2, {29, 3}, {0x04, 0x00, 0x00, 0x00}},
      {"deepseek_v4/model.safetensors",
       "layers.0.ffn.experts.0.w1.weight",
       216,
       TDM_I8,
       2,
       {128, 192},
       {0x93, 0xca, 0xd5, 0xd1}},
      {"deepseek_v4/model.safetensors",
       "layers.0.ffn.experts.0.w1.scale",
       216,
       TDM_UE8M0,
       2,
       {128, 12},
       {0x7a, 0x79, 0x79, 0x79}},
      {"deepseek_v4/model.safetensors",
       "layers.0.ffn.gate.tid2eid",
       216,
       TDM_I64,
       2,
       {256, 3},
       {0x00, 0x00, 0x00, 0x00}},
  };
  fixture f;
  fixture_open(&f);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const golden_case* c = &cases[i];
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/%s", TANDEM_SOURCE_DIR, c->path);
    tdm_checkpoint* checkpoint = open_good(&f, path);
    cr_expect_eq(tdm_checkpoint_count(checkpoint), c->count, "%s: %lld", c->path,
                 (long long)tdm_checkpoint_count(checkpoint));
    tdm_tensor_info info;
    cr_assert(tdm_checkpoint_find(checkpoint, c->tensor, &info), "%s", c->tensor);
    cr_expect_eq(info.dtype, c->dtype, "%s", c->tensor);
    cr_expect_eq(info.rank, c->rank, "%s", c->tensor);
    cr_expect_arr_eq(info.shape, c->shape, sizeof c->shape, "%s", c->tensor);
    cr_expect_arr_eq(info.data, c->first, sizeof c->first, "%s", c->tensor);
    size_t bytes = tdm_dtype_bytes(info.dtype);
    for (int32_t d = 0; d < info.rank; d++) bytes *= (size_t)info.shape[d];
    cr_expect_eq(info.bytes, bytes, "%s", c->tensor);
    for (int64_t t = 1; t < tdm_checkpoint_count(checkpoint); t++) {
      tdm_tensor_info before, after;
      cr_assert_eq(tdm_checkpoint_get(checkpoint, t - 1, &before), TDM_OK);
      cr_assert_eq(tdm_checkpoint_get(checkpoint, t, &after), TDM_OK);
      cr_assert(strcmp(before.name, after.name) < 0, "%s before %s", before.name, after.name);
    }
    tdm_checkpoint_close(checkpoint);
  }
  fixture_close(&f);
}

/* As many tensors as DeepSeek-V3 has, in 16 files. */
Test(checkpoint, many_tensors) {
  enum { FILES = 16, PER_FILE = 5750 };
  fixture f;
  fixture_open(&f);
  const size_t capacity = (size_t)PER_FILE * 128;
  char* header = malloc(capacity);
  char* index = malloc(capacity * FILES);
  size_t index_length = (size_t)sprintf(index, "{\"weight_map\":{");
  for (int file = 0; file < FILES; file++) {
    char name[64];
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", file + 1, FILES);
    size_t length = 0;
    for (int i = 0; i < PER_FILE; i++) {
      const int id = i * FILES + file;
      length += (size_t)sprintf(
          header + length, "%s\"model.layers.%d.weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
          i ? "," : "{", id, i, i + 1);
      index_length +=
          (size_t)sprintf(index + index_length, "%s\"model.layers.%d.weight\":\"%s\"", file || i ? "," : "", id, name);
    }
    strcpy(header + length, "}");
    fixture_write_safetensors(&f, name, header, PER_FILE);
  }
  strcpy(index + index_length, "}}");
  fixture_write_text(&f, INDEX, index);
  tdm_checkpoint* checkpoint = open_good(&f, f.directory);
  cr_assert_eq(tdm_checkpoint_count(checkpoint), FILES * PER_FILE);
  for (int id = 0; id < FILES * PER_FILE; id++) {
    char name[64];
    snprintf(name, sizeof name, "model.layers.%d.weight", id);
    tdm_tensor_info info;
    cr_assert(tdm_checkpoint_find(checkpoint, name, &info), "%s", name);
    cr_assert_eq(*(const uint8_t*)info.data, id / FILES & 255);
  }
  tdm_checkpoint_close(checkpoint);
  free(header);
  free(index);
  fixture_close(&f);
}

/* ---- what is wrong ---------------------------------------------------------------------------------------------- */

typedef struct bad_index {
  const char* name;
  const char* index;
  tdm_status status;
  const char* words;
} bad_index;

static const bad_index bad_indexes[] = {
    {"empty index", "", TDM_CORRUPT, INDEX "|empty"},
    {"index is no JSON", "weight_map", TDM_CORRUPT, INDEX "|line 1"},
    {"index is an array", "[]", TDM_CORRUPT, INDEX "|array of 0"},
    {"index cut short", "{\"weight_map\":{\"layer.a\":\"" ONE "\",", TDM_CORRUPT, INDEX "|line 1"},
    {"weight_map missing", "{\"metadata\":{}}", TDM_CORRUPT, INDEX "|weight_map is missing"},
    {"weight_map is an array", "{\"weight_map\":[\"" ONE "\"]}", TDM_CORRUPT, "weight_map is an array of 1"},
    {"weight_map empty", "{\"weight_map\":{}}", TDM_CORRUPT, "weight_map is empty"},
    {"file name is a number", "{\"weight_map\":{\"layer.a\":1}}", TDM_CORRUPT, "1 for tensor \"layer.a\""},
    {"file name is null", "{\"weight_map\":{\"layer.a\":null}}", TDM_CORRUPT, "null for tensor \"layer.a\""},
    {"file name is empty", "{\"weight_map\":{\"layer.a\":\"\"}}", TDM_CORRUPT, "file \"\""},
    {"absolute path", "{\"weight_map\":{\"layer.a\":\"/etc/x.safetensors\"}}", TDM_CORRUPT,
     "\"/etc/x.safetensors\"|plain"},
    {"path upwards", "{\"weight_map\":{\"layer.a\":\"../x.safetensors\"}}", TDM_CORRUPT, "\"../x.safetensors\"|plain"},
    {"path downwards", "{\"weight_map\":{\"layer.a\":\"d/x.safetensors\"}}", TDM_CORRUPT, "\"d/x.safetensors\"|plain"},
    {"the directory itself", "{\"weight_map\":{\"layer.a\":\"..\"}}", TDM_CORRUPT, "\"..\"|plain"},
    {"hidden file", "{\"weight_map\":{\"layer.a\":\".x.safetensors\"}}", TDM_CORRUPT, "\".x.safetensors\"|plain"},
    {"extension only", "{\"weight_map\":{\"layer.a\":\".safetensors\"}}", TDM_CORRUPT, "\".safetensors\"|plain"},
    {"another kind of file", "{\"weight_map\":{\"layer.a\":\"pytorch_model.bin\"}}", TDM_CORRUPT,
     "pytorch_model.bin|plain"},
    {"newline in a file name", "{\"weight_map\":{\"layer.a\":\"x\\n.safetensors\"}}", TDM_CORRUPT,
     "\"x\\x0a.safetensors\""},
    {"NUL in a file name", "{\"weight_map\":{\"layer.a\":\"x\\u0000.safetensors\"}}", TDM_CORRUPT, "u0000"},
    {"tensor twice", "{\"weight_map\":{\"layer.a\":\"" ONE "\",\"layer.a\":\"" TWO "\"}}", TDM_CORRUPT, "duplicate"},
    {"file that is not there", "{\"weight_map\":{\"layer.a\":\"model-9.safetensors\"}}", TDM_IO,
     "/model-9.safetensors|No such file"},
    {"tensor not in its file",
     "{\"weight_map\":{\"layer.a\":\"" ONE "\",\"aa.c\":\"" TWO "\",\"layer.b\":\"" ONE "\",\"layer.d\":\"" TWO "\"}}",
     TDM_CORRUPT, INDEX "|\"layer.d\"|\"" TWO "\""},
    {"tensor in another file",
     "{\"weight_map\":{\"layer.a\":\"" ONE "\",\"aa.c\":\"" TWO "\",\"layer.b\":\"" TWO "\"}}", TDM_CORRUPT,
     INDEX "|\"layer.b\"|/" ONE "|\"" TWO "\""},
    {"tensor not in the index", "{\"weight_map\":{\"layer.a\":\"" ONE "\",\"aa.c\":\"" TWO "\"}}", TDM_CORRUPT,
     INDEX "|\"layer.b\"|/" ONE "|not in weight_map"},
};

Test(checkpoint, bad_index) {
  fixture f;
  fixture_open(&f);
  write_sharded(&f);
  for (size_t i = 0; i < sizeof bad_indexes / sizeof *bad_indexes; i++) {
    const bad_index* c = &bad_indexes[i];
    fixture_write_text(&f, INDEX, c->index);
    fixture_expect_failure(c->name, open_and_close(&f, f.directory), c->status, c->words);
    cr_expect_eq(tdm_last_error()->raw_code, c->status == TDM_IO ? ENOENT : 0, "%s: raw code %d", c->name,
                 tdm_last_error()->raw_code);
  }
  fixture_close(&f);
}

Test(checkpoint, index_of_too_many_files) {
  fixture f;
  fixture_open(&f);
  const size_t size = 64 * 4098;
  char* text = malloc(size);
  size_t length = (size_t)snprintf(text, size, "{\"weight_map\":{");
  for (int i = 0; i < 4097; i++)
    length += (size_t)snprintf(text + length, size - length, "%s\"t%d\":\"f%d.safetensors\"", i ? "," : "", i, i);
  snprintf(text + length, size - length, "}}");
  fixture_write_text(&f, INDEX, text);
  fixture_expect_failure("4097 files", open_and_close(&f, f.directory), TDM_CORRUPT, "4097 safetensors files|4096");
  free(text);
  fixture_close(&f);
}

static void expect_io(const char* what, tdm_status status, int32_t raw_code, const char* words) {
  fixture_expect_failure(what, status, TDM_IO, words);
  cr_expect_eq(tdm_last_error()->raw_code, raw_code, "%s: raw code %d, expected %d", what, tdm_last_error()->raw_code,
               raw_code);
}

Test(checkpoint, bad_files) {
  fixture f;
  fixture_open(&f);
  expect_io("nothing there", open_and_close(&f, fixture_path(&f, "none")), ENOENT, "/none|No such file");
  expect_io("empty directory", open_and_close(&f, f.directory), ENOENT, "model.safetensors.index.json|*.safetensors");

  fixture_write_text(&f, "x.safetensors", "");
  fixture_expect_failure("empty file", open_and_close(&f, f.path), TDM_CORRUPT, "/x.safetensors|0 bytes");
  expect_io("below a file", open_and_close(&f, fixture_path(&f, "x.safetensors/y.safetensors")), ENOTDIR,
            "Not a directory");
  fixture_write_text(&f, "x.safetensors", "{\"a\":1}");
  fixture_expect_failure("seven bytes", open_and_close(&f, f.path), TDM_CORRUPT, "/x.safetensors|7 bytes");
  fixture_write_text(&f, "x.safetensors", "PK\x03\x04 a torch archive");
  fixture_expect_failure("another format", open_and_close(&f, f.path), TDM_CORRUPT, "header's length is|only");

  cr_assert_eq(mkdir(fixture_path(&f, "model.safetensors"), 0700), 0);
  expect_io("directory in place of a file", open_and_close(&f, f.directory), EISDIR,
            "/model.safetensors is a directory");
  cr_assert_eq(rmdir(f.path), 0);
  cr_assert_eq(mkfifo(fixture_path(&f, "model.safetensors"), 0600), 0);
  expect_io("FIFO in place of a file", open_and_close(&f, f.directory), ENODEV, "not a regular file");
  cr_assert_eq(unlink(f.path), 0);
  cr_assert_eq(symlink("nowhere", fixture_path(&f, "model.safetensors")), 0);
  expect_io("dangling link", open_and_close(&f, f.directory), ENOENT, "/model.safetensors|No such file");
  cr_assert_eq(unlink(f.path), 0);
  cr_assert_eq(symlink("model.safetensors", fixture_path(&f, "model.safetensors")), 0);
  expect_io("link to itself", open_and_close(&f, f.directory), ELOOP, "/model.safetensors");
  cr_assert_eq(unlink(f.path), 0);
  cr_assert_eq(mkdir(fixture_path(&f, INDEX), 0700), 0);
  expect_io("directory in place of the index", open_and_close(&f, f.directory), EISDIR, INDEX " is a directory");
  cr_assert_eq(rmdir(f.path), 0);
  expect_io("device", open_and_close(&f, "/dev/null"), ENODEV, "/dev/null is not a regular file");

  fixture_write_safetensors(&f, "x.safetensors", HEADER_AB, 12);
  fixture_write_safetensors(&f, "y.safetensors",
                            "{\"layer.b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
  fixture_expect_failure("tensor in two files", open_and_close(&f, f.directory), TDM_CORRUPT,
                         "\"layer.b\"|two files|/x.safetensors and |/y.safetensors");
  fixture_write_text(&f, "y.safetensors", "");
  fixture_expect_failure("one file of two is empty", open_and_close(&f, f.directory), TDM_CORRUPT, "/y.safetensors");

  if (geteuid() != 0) { /* to root nothing is unreadable */
    cr_assert_eq(chmod(fixture_path(&f, "x.safetensors"), 0), 0);
    expect_io("unreadable file", open_and_close(&f, f.path), EACCES, "/x.safetensors|Permission denied");
  }
  fixture_close(&f);
}

/* A sparse file: as long as its header says, and the header longer than any is. */
Test(checkpoint, huge_header) {
  fixture f;
  fixture_open(&f);
  const uint64_t length = (uint64_t)TDM_SAFETENSORS_MAX_HEADER + 1;
  uint8_t bytes[9];
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
  bytes[8] = '{';
  fixture_write(&f, "x.safetensors", bytes, sizeof bytes);
  cr_assert_eq(truncate(f.path, (off_t)length + 8), 0);
  fixture_expect_failure("header of more than 100 MB", open_and_close(&f, f.path), TDM_CORRUPT, "104857601|104857600");
  bytes[0] = 0; /* exactly 100 MB: read, and found to be NULs */
  fixture_write(&f, "x.safetensors", bytes, sizeof bytes);
  cr_assert_eq(truncate(f.path, (off_t)length + 8), 0);
  fixture_expect_failure("header of 100 MB of NULs", open_and_close(&f, f.path), TDM_CORRUPT, "control character 0x00");
  fixture_close(&f);
}

Test(checkpoint, bad_arguments) {
  fixture f;
  fixture_open(&f);
  tdm_checkpoint* checkpoint = NULL;
  static const char call[] = "tdm_checkpoint_open";
  fixture_expect_failure("no runtime", tdm_checkpoint_open(NULL, "x", &checkpoint), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("no path", tdm_checkpoint_open(f.runtime, NULL, &checkpoint), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("empty path", tdm_checkpoint_open(f.runtime, "", &checkpoint), TDM_INVALID_ARGUMENT, call);
  fixture_expect_failure("no out", tdm_checkpoint_open(f.runtime, "x", NULL), TDM_INVALID_ARGUMENT, call);

  fixture_write_safetensors(&f, "x.safetensors", HEADER_AB, 12);
  checkpoint = open_good(&f, f.path);
  tdm_tensor_info info;
  fixture_expect_failure("index -1", tdm_checkpoint_get(checkpoint, -1, &info), TDM_INVALID_ARGUMENT, "-1|2 tensors");
  fixture_expect_failure("index 2", tdm_checkpoint_get(checkpoint, 2, &info), TDM_INVALID_ARGUMENT, "2|2 tensors");
  fixture_expect_failure("no info", tdm_checkpoint_get(checkpoint, 0, NULL), TDM_INVALID_ARGUMENT, "out_info");
  fixture_expect_failure("no checkpoint", tdm_checkpoint_get(NULL, 0, &info), TDM_INVALID_ARGUMENT, "checkpoint");
  cr_expect_eq(tdm_checkpoint_count(NULL), 0);
  tdm_checkpoint_close(checkpoint);
  fixture_close(&f);
}

/* ---- no memory -------------------------------------------------------------------------------------------------- */

/* Opens `path` with the n-th allocation of `heap` failing, for n = 1, 2, ... until it succeeds. `once`: only that one.
 */
static int64_t fail_every_allocation(fixture* f, const char* path, test_heap* json, test_heap* heap, bool once) {
  const int64_t before = f->heap.outstanding;
  for (int64_t n = 1;; n++) {
    *json = (test_heap){0};
    heap->calls = 0;
    heap->fail_from = n;
    heap->fail_until = once ? n : 0;
    const tdm_status status = open_and_close(f, path);
    const bool reached = heap->calls >= n;
    heap->fail_from = 0;
    cr_assert_eq(f->heap.outstanding, before, "allocation %lld: a leak", (long long)n);
    cr_assert_eq(json->outstanding, 0, "allocation %lld: a leak of JSON", (long long)n);
    if (!reached) {
      cr_assert_eq(status, TDM_OK, "%s", tdm_last_error()->message);
      return n - 1;
    }
    cr_assert_eq(status, TDM_OUT_OF_MEMORY, "allocation %lld: %s", (long long)n, tdm_last_error()->message);
  }
}

Test(checkpoint, out_of_memory) {
  fixture f;
  fixture_open(&f);
  write_sharded(&f);
  test_heap* json = test_heap_watch_json();
  char path[256];
  snprintf(path, sizeof path, "%s", f.directory);
  cr_expect_geq(fail_every_allocation(&f, path, json, &f.heap, true), 8);
  /* A machine that is out of memory stays so; jansson 2.14 does not survive one failure alone where its lexer grows. */
  cr_expect_geq(fail_every_allocation(&f, path, json, json, false), 40);

  cr_assert_eq(unlink(fixture_path(&f, INDEX)), 0);
  cr_expect_geq(fail_every_allocation(&f, path, json, &f.heap, true), 8);
  snprintf(path, sizeof path, "%s/%s", f.directory, ONE);
  cr_expect_geq(fail_every_allocation(&f, path, json, &f.heap, true), 5);
  cr_expect_geq(fail_every_allocation(&f, path, json, json, false), 20);
  fixture_close(&f);
}
