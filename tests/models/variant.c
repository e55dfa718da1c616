#include "variant.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TENSORS = 256, MAX_FOLDERS = 32, MAX_FILES = 8 };

static char folders[MAX_FOLDERS][64];
static int n_folders;

static const char* dtype_text(tdm_dtype dtype) {
  switch (dtype) {
  case TDM_F32:
    return "F32";
  case TDM_BF16:
    return "BF16";
  case TDM_E4M3:
    return "F8_E4M3";
  case TDM_I32:
    return "I32";
  default:
    cr_assert(false, "no such dtype in the golden files");
    return "";
  }
}

static int read_golden(variant_tensor tensors[MAX_TENSORS]) {
  tdm_runtime* runtime;
  tdm_checkpoint* checkpoint;
  cr_assert_eq(tdm_runtime_create(NULL, &runtime), TDM_OK);
  cr_assert_eq(tdm_checkpoint_open(runtime, GOLDEN_V3, &checkpoint), TDM_OK, "%s", tdm_last_error()->message);
  const int n = (int)tdm_checkpoint_count(checkpoint);
  cr_assert_leq(n, MAX_TENSORS);
  for (int i = 0; i < n; i++) {
    tdm_tensor_info info;
    cr_assert_eq(tdm_checkpoint_get(checkpoint, i, &info), TDM_OK);
    variant_tensor* tensor = &tensors[i];
    *tensor = (variant_tensor){.rank = info.rank, .bytes = info.bytes, .data = malloc(info.bytes)};
    snprintf(tensor->name, sizeof tensor->name, "%s", info.name);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype_text(info.dtype));
    memcpy(tensor->shape, info.shape, (size_t)info.rank * sizeof *info.shape);
    memcpy(tensor->data, info.data, info.bytes);
  }
  tdm_checkpoint_close(checkpoint);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
  return n;
}

static FILE* open_file(const char* folder, const char* name, const char* mode) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, mode);
  cr_assert_not_null(file, "%s", path);
  return file;
}

/* Every `step`-th tensor from `first` on. */
static void write_safetensors(FILE* file, const variant_tensor* tensors, int n, int first, int step) {
  char* header = NULL;
  size_t length = 0, offset = 0;
  FILE* text = open_memstream(&header, &length);
  fputc('{', text);
  for (int i = first; i < n; i += step) {
    fprintf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i == first ? "" : ",", tensors[i].name, tensors[i].dtype);
    for (int k = 0; k < tensors[i].rank; k++) fprintf(text, "%s%lld", k ? "," : "", (long long)tensors[i].shape[k]);
    fprintf(text, "],\"data_offsets\":[%zu,%zu]}", offset, offset + tensors[i].bytes);
    offset += tensors[i].bytes;
  }
  fputc('}', text);
  fclose(text);
  const uint64_t bytes = length;
  fwrite(&bytes, sizeof bytes, 1, file); /* little endian, as the machines that these tests run on */
  fwrite(header, 1, length, file);
  for (int i = first; i < n; i += step) fwrite(tensors[i].data, 1, tensors[i].bytes, file);
  free(header);
}

static void write_shards(const char* folder, const variant_tensor* tensors, int n, int shards) {
  FILE* index = open_file(folder, "model.safetensors.index.json", "w");
  fprintf(index, "{\"metadata\": {\"total_size\": 0}, \"weight_map\": {");
  for (int i = 0; i < n; i++)
    fprintf(index, "%s\"%s\": \"model-%d.safetensors\"", i ? ", " : "", tensors[i].name, i % shards);
  fprintf(index, "}}");
  fclose(index);
  for (int shard = 0; shard < shards; shard++) {
    char name[64];
    snprintf(name, sizeof name, "model-%d.safetensors", shard);
    FILE* file = open_file(folder, name, "wb");
    write_safetensors(file, tensors, n, shard, shards);
    fclose(file);
  }
}

static void write_config(const char* folder, const char* find, const char* put) {
  static char text[65536];
  FILE* in = fopen(GOLDEN_V3 "/config.json", "r");
  cr_assert_not_null(in);
  text[fread(text, 1, sizeof text - 1, in)] = '\0';
  fclose(in);
  FILE* out = open_file(folder, "config.json", "w");
  const char* at = find ? strstr(text, find) : NULL;
  cr_assert(!find || at, "config.json has no '%s'", find);
  if (at)
    fprintf(out, "%.*s%s%s", (int)(at - text), text, put, at + strlen(find));
  else
    fputs(text, out);
  fclose(out);
}

const char* variant_make(const variant_config* config) {
  cr_assert_lt(n_folders, MAX_FOLDERS);
  char* folder = folders[n_folders++];
  snprintf(folder, sizeof folders[0], "/tmp/tandem_variant_XXXXXX");
  cr_assert_not_null(mkdtemp(folder));
  static variant_tensor tensors[MAX_TENSORS];
  const int n_golden = read_golden(tensors);
  int n = 0;
  for (int i = 0; i < n_golden; i++) {
    variant_tensor tensor = tensors[i];
    if (!config->edit || config->edit(&tensor))
      tensors[n++] = tensor;
    else
      free(tensor.data);
  }
  const int n_own = n;
  for (int i = 0; i < config->n_more; i++) tensors[n++] = config->more[i];
  if (config->shards > 1) {
    write_shards(folder, tensors, n, config->shards);
  } else {
    FILE* file = open_file(folder, "model.safetensors", "wb");
    write_safetensors(file, tensors, n, 0, 1);
    fclose(file);
  }
  write_config(folder, config->config_find, config->config_put);
  for (int i = 0; i < n_own; i++) free(tensors[i].data);
  return folder;
}

void variant_remove(void) {
  static const char* const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json"};
  char path[256];
  while (n_folders > 0) {
    const char* folder = folders[--n_folders];
    for (int i = 0; i < 3 + MAX_FILES; i++) {
      if (i < 3)
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
      else
        snprintf(path, sizeof path, "%s/model-%d.safetensors", folder, i - 3);
      remove(path);
    }
    rmdir(folder);
  }
}
