#include "variant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TENSORS = 256, MAX_FOLDERS = 32, MAX_FILES = 8 };

static char folders[MAX_FOLDERS][64];
static int n_folders;

/* Ends the program: without its model a test says nothing. Plain C, so that programs without Criterion can use it. */
static void require(bool fine, const char* what) {
  if (fine) return;
  (void)fprintf(stderr, "variant: %s\n", what);
  abort();
}

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
    require(false, "no such dtype in the golden files");
    return "";
  }
}

static int read_golden(variant_tensor tensors[MAX_TENSORS]) {
  tdm_runtime* runtime;
  tdm_checkpoint* checkpoint;
  require(tdm_runtime_create(NULL, &runtime) == TDM_OK, "no runtime");
  require(tdm_checkpoint_open(runtime, GOLDEN_V3, &checkpoint) == TDM_OK, tdm_last_error()->message);
  const int n = (int)tdm_checkpoint_count(checkpoint);
  require(n <= MAX_TENSORS, "too many tensors");
  for (int i = 0; i < n; i++) {
    tdm_tensor_info info;
    require(tdm_checkpoint_get(checkpoint, i, &info) == TDM_OK, "a tensor is missing");
    variant_tensor* tensor = &tensors[i];
    *tensor = (variant_tensor){.rank = info.rank, .bytes = info.bytes, .data = malloc(info.bytes)};
    snprintf(tensor->name, sizeof tensor->name, "%s", info.name);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype_text(info.dtype));
    memcpy(tensor->shape, info.shape, (size_t)info.rank * sizeof *info.shape);
    memcpy(tensor->data, info.data, info.bytes);
  }
  tdm_checkpoint_close(checkpoint);
  require(tdm_runtime_destroy(runtime) == TDM_OK, "the runtime is in use");
  return n;
}

static FILE* open_file(const char* folder, const char* name, const char* mode) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, mode);
  require(file != NULL, path);
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
  require(in != NULL, GOLDEN_V3 "/config.json");
  text[fread(text, 1, sizeof text - 1, in)] = '\0';
  fclose(in);
  FILE* out = open_file(folder, "config.json", "w");
  const char* at = find ? strstr(text, find) : NULL;
  require(!find || at, find);
  if (at)
    fprintf(out, "%.*s%s%s", (int)(at - text), text, put, at + strlen(find));
  else
    fputs(text, out);
  fclose(out);
}

const char* variant_make(const variant_config* config) {
  require(n_folders < MAX_FOLDERS, "too many folders");
  char* folder = folders[n_folders++];
  snprintf(folder, sizeof folders[0], "/tmp/tandem_variant_XXXXXX");
  require(mkdtemp(folder) != NULL, folder);
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

/* The scale of a weight is not at hand when the weight is edited, so unquantised variants take scale 1/64. */
bool variant_to_bf16(variant_tensor* tensor) {
  if (strstr(tensor->name, "_scale_inv")) return false;
  if (strcmp(tensor->dtype, "F8_E4M3") != 0) return true;
  uint16_t* wide = malloc(2 * tensor->bytes);
  for (size_t i = 0; i < tensor->bytes; i++) {
    static const float values[] = {0.03125f, -0.0625f, 0.015625f, -0.0078125f, 0.0f};
    const float value = values[((const uint8_t*)tensor->data)[i] % 5];
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    wide[i] = (uint16_t)(bits >> 16);
  }
  free(tensor->data);
  tensor->data = wide;
  tensor->bytes *= 2;
  strcpy(tensor->dtype, "BF16");
  return true;
}
