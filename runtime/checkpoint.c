#include "tandem/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/json.h"
#include "runtime/mapped_file.h"
#include "runtime/safetensors.h"

#define INDEX_NAME  "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"
#define IO_NAME     "io.safetensors" /* activations that belong to a checkpoint, not weights */
#define EXTENSION   ".safetensors"
#define MAX_FILES   4096

static const tdm_json_limits index_limits = {
    .bytes = (size_t)100 << 20, .depth = 8, .string_bytes = 4096, .values = 1 << 22};

typedef struct checkpoint_file {
  char* path;
  const char* name; /* the last part of path */
  tdm_mapped_file mapping;
  tdm_safetensors content;
} checkpoint_file;

struct tdm_checkpoint {
  tdm_runtime* runtime;
  checkpoint_file* files;
  int64_t n_files;
  int64_t files_capacity;
  const tdm_tensor_info** tensors; /* of all files, by name */
  int64_t n_tensors;
};

/* ---- which files ------------------------------------------------------------------------------------------------ */

typedef struct name_list {
  const char** names;
  int64_t n_names;
  int64_t capacity;
} name_list;

static tdm_status list_append(tdm_runtime* runtime, name_list* list, const char* name) {
  void* names = list->names;
  tdm_status status = tdm_host_grow(runtime, &names, list->n_names, &list->capacity, sizeof *list->names);
  list->names = names;
  if (status == TDM_OK) list->names[list->n_names++] = name;
  return status;
}

static void list_free(tdm_runtime* runtime, name_list* list) {
  tdm_host_free(runtime, list->names, (size_t)list->capacity * sizeof *list->names);
}

static int by_string(const void* left, const void* right) {
  const char *const *a = left, *const *b = right;
  return strcmp(*a, *b);
}

static void list_sort(name_list* list) {
  if (list->n_names > 1) qsort(list->names, (size_t)list->n_names, sizeof *list->names, by_string);
}

/* Of a sorted list of borrowed names, each once. */
static void list_drop_duplicates(name_list* list) {
  int64_t kept = 0;
  for (int64_t i = 0; i < list->n_names; i++)
    if (kept == 0 || strcmp(list->names[i], list->names[kept - 1]) != 0) list->names[kept++] = list->names[i];
  list->n_names = kept;
}

/* A name that stays in its directory: "x.safetensors", not hidden, no path. */
static bool is_plain_name(const char* name) {
  const size_t extension = sizeof EXTENSION - 1;
  size_t length = strlen(name);
  if (length <= extension || length > 255 || name[0] == '.' || strchr(name, '/')) return false;
  for (size_t i = 0; i < length; i++)
    if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
  return strcmp(name + length - extension, EXTENSION) == 0;
}

/* The distinct file names of a weight_map. They live in the JSON. */
static tdm_status list_index_files(tdm_runtime* runtime, tdm_json_object weight_map, name_list* list) {
  const char* key;
  json_t* value;
  json_t* mutable_map = (json_t*)(uintptr_t)weight_map.json; /* jansson iterates over non-const objects only */
  json_object_foreach(mutable_map, key, value) {
    if (!json_is_string(value))
      return TDM_FAIL(TDM_CORRUPT, "weight_map gives %s for tensor %s, expected a file name",
                      tdm_json_describe(value).text, tdm_quote(key).text);
    const char* name = json_string_value(value);
    if (!is_plain_name(name))
      return TDM_FAIL(TDM_CORRUPT, "weight_map gives file %s for tensor %s, expected a plain name ending in " EXTENSION,
                      tdm_quote(name).text, tdm_quote(key).text);
    TDM_TRY(list_append(runtime, list, name));
  }
  list_sort(list);
  list_drop_duplicates(list);
  if (list->n_names == 0) return TDM_FAIL(TDM_CORRUPT, "weight_map is empty");
  return TDM_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* Maps and checks the file at `path`, which becomes the checkpoint's. */
static tdm_status add_file(tdm_checkpoint* checkpoint, char* path) {
  checkpoint_file* file = &checkpoint->files[checkpoint->n_files++];
  file->path = path;
  const char* slash = strrchr(path, '/');
  file->name = slash ? slash + 1 : path;
  TDM_TRY(tdm_mapped_file_open(path, &file->mapping));
  TDM_TRY(tdm_safetensors_parse(checkpoint->runtime, path, file->mapping.bytes, file->mapping.n_bytes, &file->content));
  checkpoint->n_tensors += file->content.n_tensors;
  return TDM_OK;
}

/* Once, before the first add_file. */
static tdm_status reserve_files(tdm_checkpoint* checkpoint, int64_t n) {
  checkpoint->files = tdm_host_alloc_array(checkpoint->runtime, n, sizeof *checkpoint->files);
  if (!checkpoint->files) return TDM_OUT_OF_MEMORY;
  checkpoint->files_capacity = n;
  return TDM_OK;
}

static int by_name(const void* left, const void* right) {
  const tdm_tensor_info *const *a = left, *const *b = right;
  return strcmp((*a)->name, (*b)->name);
}

static tdm_status sort_tensors(tdm_checkpoint* checkpoint) {
  if (checkpoint->n_tensors == 0) return TDM_OK;
  checkpoint->tensors = tdm_host_alloc_array(checkpoint->runtime, checkpoint->n_tensors, sizeof *checkpoint->tensors);
  if (!checkpoint->tensors) return TDM_OUT_OF_MEMORY;
  int64_t n = 0;
  for (int64_t i = 0; i < checkpoint->n_files; i++)
    for (int64_t j = 0; j < checkpoint->files[i].content.n_tensors; j++)
      checkpoint->tensors[n++] = &checkpoint->files[i].content.tensors[j];
  qsort(checkpoint->tensors, (size_t)n, sizeof *checkpoint->tensors, by_name);
  for (int64_t i = 1; i < n; i++) {
    const tdm_tensor_info *a = checkpoint->tensors[i - 1], *b = checkpoint->tensors[i];
    if (strcmp(a->name, b->name) == 0)
      return TDM_FAIL(TDM_CORRUPT, "tensor %s is in two files, %s and %s", tdm_quote(a->name).text,
                      strcmp(a->file, b->file) < 0 ? a->file : b->file,
                      strcmp(a->file, b->file) < 0 ? b->file : a->file);
  }
  return TDM_OK;
}

static tdm_status open_files(tdm_checkpoint* checkpoint, const char* directory, const name_list* list) {
  if (list->n_names > MAX_FILES)
    return TDM_FAIL(TDM_CORRUPT, "%s: %lld safetensors files, at most %d are read", directory, (long long)list->n_names,
                    MAX_FILES);
  TDM_TRY(reserve_files(checkpoint, list->n_names));
  for (int64_t i = 0; i < list->n_names; i++) {
    char* path = tdm_path_join(checkpoint->runtime, directory, list->names[i]);
    if (!path) return TDM_OUT_OF_MEMORY;
    TDM_TRY(add_file(checkpoint, path));
  }
  return sort_tensors(checkpoint);
}

static tdm_status open_single(tdm_checkpoint* checkpoint, const char* path) {
  TDM_TRY(reserve_files(checkpoint, 1));
  char* copy = tdm_host_strdup(checkpoint->runtime, path);
  if (!copy) return TDM_OUT_OF_MEMORY;
  TDM_TRY(add_file(checkpoint, copy));
  return sort_tensors(checkpoint);
}

/* ---- index ------------------------------------------------------------------------------------------------------ */

/* Index and files agree: each tensor of a file is mapped to that file, and there is no other entry. */
static tdm_status check_index(const tdm_checkpoint* checkpoint, tdm_json_object weight_map) {
  for (int64_t i = 0; i < checkpoint->n_files; i++) {
    const checkpoint_file* file = &checkpoint->files[i];
    for (int64_t j = 0; j < file->content.n_tensors; j++) {
      const char* name = file->content.tensors[j].name;
      const char* mapped = json_string_value(tdm_json_get(weight_map, name));
      if (!mapped)
        return TDM_FAIL(TDM_CORRUPT, "tensor %s of %s is not in weight_map", tdm_quote(name).text, file->path);
      if (strcmp(mapped, file->name) != 0)
        return TDM_FAIL(TDM_CORRUPT, "tensor %s is in %s, weight_map says %s", tdm_quote(name).text, file->path,
                        tdm_quote(mapped).text);
    }
  }
  if (json_object_size(weight_map.json) == (size_t)checkpoint->n_tensors) return TDM_OK;
  const char* key;
  json_t* value;
  json_t* mutable_map = (json_t*)(uintptr_t)weight_map.json;
  json_object_foreach(mutable_map, key, value) {
    if (!tdm_checkpoint_find(checkpoint, key, NULL))
      return TDM_FAIL(TDM_CORRUPT, "weight_map says that tensor %s is in %s, but it is not there", tdm_quote(key).text,
                      tdm_quote(json_string_value(value)).text);
  }
  return TDM_OK;
}

/* Everything that the index at `path` names. */
static tdm_status open_index(tdm_checkpoint* checkpoint, const char* directory, const char* path) {
  tdm_mapped_file index;
  TDM_TRY(tdm_mapped_file_open(path, &index));
  json_t* root = NULL;
  tdm_json_object weight_map = {NULL, ""};
  name_list list = {0};
  tdm_status status = tdm_json_parse(index.bytes, index.n_bytes, &index_limits, &root);
  tdm_mapped_file_close(&index);
  if (status == TDM_OK) status = tdm_json_get_object((tdm_json_object){root, ""}, "weight_map", "", &weight_map);
  if (status == TDM_OK) status = list_index_files(checkpoint->runtime, weight_map, &list);
  if (status != TDM_OK) {
    status = tdm_fail_prefix(status, "%s", path);
  } else {
    status = open_files(checkpoint, directory, &list); /* says itself which file is at fault */
    if (status == TDM_OK && check_index(checkpoint, weight_map) != TDM_OK)
      status = tdm_fail_prefix(TDM_CORRUPT, "%s", path);
  }
  list_free(checkpoint->runtime, &list);
  json_decref(root);
  return status;
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static tdm_status list_directory(tdm_runtime* runtime, DIR* stream, name_list* list) {
  for (;;) {
    errno = 0;
    const struct dirent* entry = readdir(stream);
    if (!entry && errno) return TDM_FAIL_RAW(TDM_IO, errno, "readdir: %s", strerror(errno));
    if (!entry) break;
    if (!is_plain_name(entry->d_name) || strcmp(entry->d_name, IO_NAME) == 0) continue;
    char* name = tdm_host_strdup(runtime, entry->d_name);
    if (!name) return TDM_OUT_OF_MEMORY;
    tdm_status status = list_append(runtime, list, name);
    if (status != TDM_OK) {
      tdm_host_free(runtime, name, strlen(name) + 1);
      return status;
    }
  }
  list_sort(list);
  if (list->n_names == 0) return TDM_FAIL_RAW(TDM_IO, ENOENT, "holds neither " INDEX_NAME " nor a *" EXTENSION " file");
  return TDM_OK;
}

static tdm_status open_all(tdm_checkpoint* checkpoint, const char* directory) {
  DIR* stream = opendir(directory);
  if (!stream) return TDM_FAIL_RAW(TDM_IO, errno, "%s: opendir: %s", directory, strerror(errno));
  name_list list = {0};
  tdm_status status = list_directory(checkpoint->runtime, stream, &list);
  closedir(stream);
  if (status != TDM_OK)
    status = tdm_fail_prefix(status, "%s", directory);
  else
    status = open_files(checkpoint, directory, &list);
  for (int64_t i = 0; i < list.n_names; i++)
    tdm_host_free(checkpoint->runtime, (void*)(uintptr_t)list.names[i], strlen(list.names[i]) + 1);
  list_free(checkpoint->runtime, &list);
  return status;
}

/* Whether the name exists at all; a dangling link does. What is wrong with it shows when it is opened. */
static bool name_exists(const char* path) {
  struct stat info;
  return lstat(path, &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

static tdm_status open_directory(tdm_checkpoint* checkpoint, const char* directory) {
  tdm_status status = TDM_OK;
  char* path = tdm_path_join(checkpoint->runtime, directory, INDEX_NAME);
  if (!path) return TDM_OUT_OF_MEMORY;
  bool found = name_exists(path);
  if (found) status = open_index(checkpoint, directory, path);
  tdm_host_free(checkpoint->runtime, path, strlen(path) + 1);
  if (found) return status;

  path = tdm_path_join(checkpoint->runtime, directory, SINGLE_NAME);
  if (!path) return TDM_OUT_OF_MEMORY;
  found = name_exists(path);
  if (found) status = open_single(checkpoint, path);
  tdm_host_free(checkpoint->runtime, path, strlen(path) + 1);
  return found ? status : open_all(checkpoint, directory);
}

/* ---- the checkpoint --------------------------------------------------------------------------------------------- */

static tdm_status open_path(tdm_checkpoint* checkpoint, const char* path) {
  struct stat info;
  if (stat(path, &info) != 0) return TDM_FAIL_RAW(TDM_IO, errno, "%s: %s", path, strerror(errno));
  return S_ISDIR(info.st_mode) ? open_directory(checkpoint, path) : open_single(checkpoint, path);
}

tdm_status tdm_checkpoint_open(tdm_runtime* runtime, const char* path, tdm_checkpoint** out_checkpoint) {
  if (out_checkpoint) *out_checkpoint = NULL;
  if (!runtime || !path || !*path || !out_checkpoint)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_checkpoint_open: runtime, path and out_checkpoint must not be NULL, nor "
                                          "path empty");
  tdm_checkpoint* checkpoint = tdm_host_alloc(runtime, sizeof *checkpoint);
  if (!checkpoint) return TDM_OUT_OF_MEMORY;
  checkpoint->runtime = runtime;
  tdm_runtime_retain(runtime, TDM_OBJECT_CHECKPOINT);
  tdm_status status = open_path(checkpoint, path);
  if (status != TDM_OK) {
    tdm_checkpoint_close(checkpoint);
    return status;
  }
  *out_checkpoint = checkpoint;
  return TDM_OK;
}

void tdm_checkpoint_close(tdm_checkpoint* checkpoint) {
  if (!checkpoint) return;
  tdm_runtime* runtime = checkpoint->runtime;
  for (int64_t i = 0; i < checkpoint->n_files; i++) {
    checkpoint_file* file = &checkpoint->files[i];
    tdm_safetensors_clear(&file->content);
    tdm_mapped_file_close(&file->mapping);
    tdm_host_free(runtime, file->path, strlen(file->path) + 1);
  }
  tdm_host_free(runtime, checkpoint->tensors, (size_t)checkpoint->n_tensors * sizeof *checkpoint->tensors);
  tdm_host_free(runtime, checkpoint->files, (size_t)checkpoint->files_capacity * sizeof *checkpoint->files);
  tdm_host_free(runtime, checkpoint, sizeof *checkpoint);
  tdm_runtime_release(runtime, TDM_OBJECT_CHECKPOINT);
}

int64_t tdm_checkpoint_count(const tdm_checkpoint* checkpoint) {
  return checkpoint ? checkpoint->n_tensors : 0;
}

tdm_status tdm_checkpoint_get(const tdm_checkpoint* checkpoint, int64_t index, tdm_tensor_info* out_info) {
  if (!checkpoint || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_checkpoint_get: checkpoint and out_info must not be NULL");
  if (index < 0 || index >= checkpoint->n_tensors)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_checkpoint_get: index is %lld, the checkpoint has %lld tensors",
                    (long long)index, (long long)checkpoint->n_tensors);
  *out_info = *checkpoint->tensors[index];
  return TDM_OK;
}

bool tdm_checkpoint_find(const tdm_checkpoint* checkpoint, const char* name, tdm_tensor_info* out_info) {
  if (!checkpoint || !name || checkpoint->n_tensors == 0) return false;
  const tdm_tensor_info key = {.name = name};
  const tdm_tensor_info* key_pointer = &key;
  const tdm_tensor_info** found =
      bsearch(&key_pointer, checkpoint->tensors, (size_t)checkpoint->n_tensors, sizeof *checkpoint->tensors, by_name);
  if (found && out_info) *out_info = **found;
  return found != NULL;
}
