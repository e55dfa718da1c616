#include "runtime/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/json.h"

#define LENGTH_BYTES 8
#define METADATA     "__metadata__"

/* A tensor takes three levels: the header, the tensor, its shape. 4 million values are 400,000 tensors; all of
 * DeepSeek-V3 has 92,000. */
static const tdm_json_limits header_limits = {
    .bytes = TDM_SAFETENSORS_MAX_HEADER, .depth = 3, .string_bytes = 1 << 20, .values = 1 << 22};

/* ---- dtypes ----------------------------------------------------------------------------------------------------- */

typedef struct dtype_row {
  const char* name;
  uint64_t bits;
  tdm_dtype dtype; /* 0: none of tandem's */
} dtype_row;

static const dtype_row dtypes[] = {
    {"F32", 32, TDM_F32},  {"BF16", 16, TDM_BF16}, {"F8_E4M3", 8, TDM_E4M3}, {"F8_E8M0", 8, TDM_UE8M0},
    {"I8", 8, TDM_I8},     {"I32", 32, TDM_I32},   {"I64", 64, TDM_I64},     {"U8", 8, TDM_U8},
    {"F16", 16, TDM_F16},  {"F64", 64, TDM_F64},   {"BOOL", 8, 0},           {"I16", 16, 0},
    {"U16", 16, 0},        {"U32", 32, 0},         {"U64", 64, 0},           {"F8_E5M2", 8, 0},
    {"F8_E4M3FNUZ", 8, 0}, {"F8_E5M2FNUZ", 8, 0},  {"F6_E2M3", 6, 0},        {"F6_E3M2", 6, 0},
    {"F4", 4, 0},          {"C64", 64, 0},
};

static const dtype_row* find_dtype(const char* name) {
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
    if (strcmp(dtypes[i].name, name) == 0) return &dtypes[i];
  return NULL;
}

/* ---- one tensor ------------------------------------------------------------------------------------------------- */

static tdm_status check_name(const char* name) {
  size_t length = strlen(name);
  if (length > TDM_SAFETENSORS_MAX_NAME)
    return TDM_FAIL(TDM_CORRUPT, "a name of %zu bytes, at most %d are legal", length, TDM_SAFETENSORS_MAX_NAME);
  for (size_t i = 0; i < length; i++)
    if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
      return TDM_FAIL(TDM_CORRUPT, "byte %zu of the name is the control character 0x%02x", i,
                      (unsigned)(unsigned char)name[i]);
  return TDM_OK;
}

static tdm_status read_shape(tdm_json_object tensor, tdm_tensor_info* info) {
  const json_t* shape = NULL;
  TDM_TRY(tdm_json_get_array(tensor, "shape", &shape));
  size_t rank = json_array_size(shape);
  if (rank > TDM_TENSOR_MAX_RANK)
    return TDM_FAIL(TDM_CORRUPT, "shape has %zu dimensions, at most %d are legal", rank, TDM_TENSOR_MAX_RANK);
  info->rank = (int32_t)rank;
  for (size_t i = 0; i < rank; i++) TDM_TRY(tdm_json_get_int_at(shape, "shape", i, 0, INT64_MAX, &info->shape[i]));
  return TDM_OK;
}

/* Bytes that dtype and shape ask for. The extents' product must fit int64 with zeros left out, so that no stride
 * computed from it later can overflow either. */
static tdm_status shape_bytes(const dtype_row* dtype, const tdm_tensor_info* info, uint64_t* out_bytes) {
  int64_t product = 1;
  bool empty = false;
  for (int32_t i = 0; i < info->rank; i++) {
    if (info->shape[i] == 0)
      empty = true;
    else if (__builtin_mul_overflow(product, info->shape[i], &product))
      return TDM_FAIL(TDM_CORRUPT, "the product of shape[0] to shape[%d] (%lld) overflows", i,
                      (long long)info->shape[i]);
  }
  uint64_t bits = 0;
  if (__builtin_mul_overflow((uint64_t)product, dtype->bits, &bits))
    return TDM_FAIL(TDM_CORRUPT, "the size of %lld elements of %s overflows", (long long)product, dtype->name);
  if (!empty && bits % 8 != 0)
    return TDM_FAIL(TDM_CORRUPT, "%lld elements of %s are no whole number of bytes", (long long)product, dtype->name);
  *out_bytes = empty ? 0 : bits / 8;
  return TDM_OK;
}

static tdm_status read_data(tdm_json_object tensor, const char* data, size_t data_bytes, tdm_tensor_info* info) {
  const json_t* offsets = NULL;
  TDM_TRY(tdm_json_get_array(tensor, "data_offsets", &offsets));
  if (json_array_size(offsets) != 2)
    return TDM_FAIL(TDM_CORRUPT, "data_offsets has %zu elements, expected 2", json_array_size(offsets));
  int64_t begin = 0, end = 0;
  TDM_TRY(tdm_json_get_int_at(offsets, "data_offsets", 0, 0, INT64_MAX, &begin));
  TDM_TRY(tdm_json_get_int_at(offsets, "data_offsets", 1, 0, INT64_MAX, &end));
  if (begin > end)
    return TDM_FAIL(TDM_CORRUPT, "data_offsets [%lld, %lld] end before they begin", (long long)begin, (long long)end);
  if ((uint64_t)end > data_bytes)
    return TDM_FAIL(TDM_CORRUPT, "data_offsets [%lld, %lld] leave the data section of %zu bytes", (long long)begin,
                    (long long)end, data_bytes);
  info->data = data + begin;
  info->bytes = (size_t)(end - begin);
  return TDM_OK;
}

static tdm_status read_tensor(const json_t* json, const char* data, size_t data_bytes, tdm_tensor_info* info) {
  if (!json_is_object(json)) return TDM_FAIL(TDM_CORRUPT, "%s, expected an object", tdm_json_describe(json).text);
  const tdm_json_object tensor = {json, ""};
  const char* dtype_name = NULL;
  TDM_TRY(tdm_json_get_string(tensor, "dtype", &dtype_name));
  const dtype_row* dtype = find_dtype(dtype_name);
  if (!dtype) return TDM_FAIL(TDM_CORRUPT, "dtype is %s, none of safetensors", tdm_quote(dtype_name).text);
  info->dtype = dtype->dtype;
  TDM_TRY(read_shape(tensor, info));
  TDM_TRY(read_data(tensor, data, data_bytes, info));
  if (json_object_size(json) != 3)
    return TDM_FAIL(TDM_CORRUPT, "%zu members, expected dtype, shape and data_offsets only", json_object_size(json));
  uint64_t wanted = 0;
  TDM_TRY(shape_bytes(dtype, info, &wanted));
  if (wanted != info->bytes)
    return TDM_FAIL(TDM_CORRUPT, "dtype %s and shape ask for %llu bytes, data_offsets hold %zu", dtype->name,
                    (unsigned long long)wanted, info->bytes);
  return TDM_OK;
}

/* ---- all tensors ------------------------------------------------------------------------------------------------ */

static tdm_status check_metadata(json_t* metadata) {
  if (!json_is_object(metadata))
    return TDM_FAIL(TDM_CORRUPT, METADATA " is %s, expected an object", tdm_json_describe(metadata).text);
  const char* key;
  json_t* value;
  json_object_foreach(metadata, key, value) {
    if (!json_is_string(value))
      return TDM_FAIL(TDM_CORRUPT, METADATA " %s is %s, expected a string", tdm_quote(key).text,
                      tdm_json_describe(value).text);
  }
  return TDM_OK;
}

static tdm_status read_tensors(json_t* header, const char* path, const char* data, size_t data_bytes,
                               tdm_safetensors* out) {
  const char* key;
  json_t* value;
  json_object_foreach(header, key, value) {
    if (strcmp(key, METADATA) == 0) {
      TDM_TRY(check_metadata(value));
      continue;
    }
    tdm_status status = check_name(key);
    if (status != TDM_OK) return tdm_fail_prefix(status, "tensor %s", tdm_quote(key).text);
    out->names_bytes += strlen(key) + 1;
    out->n_tensors++;
  }
  if (out->n_tensors == 0) return TDM_OK;
  out->tensors = tdm_host_alloc_array(out->runtime, out->n_tensors, sizeof *out->tensors);
  out->names = tdm_host_alloc(out->runtime, out->names_bytes);
  if (!out->tensors || !out->names) return TDM_OUT_OF_MEMORY;

  tdm_tensor_info* info = out->tensors;
  char* name = out->names;
  json_object_foreach(header, key, value) {
    if (strcmp(key, METADATA) == 0) continue;
    size_t bytes = strlen(key) + 1;
    info->name = memcpy(name, key, bytes);
    info->file = path;
    name += bytes;
    tdm_status status = read_tensor(value, data, data_bytes, info);
    if (status != TDM_OK) return tdm_fail_prefix(status, "tensor %s", tdm_quote(key).text);
    info++;
  }
  return TDM_OK;
}

static int by_data(const void* left, const void* right) {
  const tdm_tensor_info *a = left, *b = right;
  uintptr_t begin_a = (uintptr_t)a->data, begin_b = (uintptr_t)b->data;
  if (begin_a != begin_b) return begin_a < begin_b ? -1 : 1;
  return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty ones first, so that they do not look like an overlap */
}

/* Every byte of the data section belongs to exactly one tensor. Sorts the tensors by their data. */
static tdm_status check_coverage(tdm_safetensors* st, const char* data, size_t data_bytes) {
  if (st->n_tensors > 1) qsort(st->tensors, (size_t)st->n_tensors, sizeof *st->tensors, by_data);
  size_t covered = 0;
  const char* last = NULL;
  for (int64_t i = 0; i < st->n_tensors; i++) {
    tdm_tensor_info* info = &st->tensors[i];
    size_t begin = (size_t)((const char*)info->data - data);
    if (begin < covered)
      return TDM_FAIL(TDM_CORRUPT, "tensors %s and %s overlap: the one ends at %zu, the other begins at %zu",
                      tdm_quote(last).text, tdm_quote(info->name).text, covered, begin);
    if (begin > covered)
      return TDM_FAIL(TDM_CORRUPT, "data bytes [%zu, %zu) before tensor %s belong to no tensor", covered, begin,
                      tdm_quote(info->name).text);
    covered = begin + info->bytes;
    last = info->name;
    if (info->bytes == 0) info->data = NULL;
  }
  if (covered != data_bytes)
    return TDM_FAIL(TDM_CORRUPT, "data bytes [%zu, %zu) at the end belong to no tensor", covered, data_bytes);
  return TDM_OK;
}

static tdm_status parse(const char* path, const char* bytes, size_t n_bytes, tdm_safetensors* out) {
  if (n_bytes < LENGTH_BYTES)
    return TDM_FAIL(TDM_CORRUPT, "%zu bytes, too few for the header's length of %d bytes", n_bytes, LENGTH_BYTES);
  uint64_t length = 0;
  for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | (unsigned char)bytes[i];
  if (length > n_bytes - LENGTH_BYTES)
    return TDM_FAIL(TDM_CORRUPT, "the header's length is %llu, but only %zu bytes follow", (unsigned long long)length,
                    n_bytes - LENGTH_BYTES);
  const char* text = bytes + LENGTH_BYTES;
  if (length == 0 || text[0] != '{') return TDM_FAIL(TDM_CORRUPT, "the header does not begin with '{'");
  json_t* header;
  tdm_status status = tdm_json_parse(text, (size_t)length, &header_limits, &header);
  if (status != TDM_OK) return tdm_fail_prefix(status, "header");
  const char* data = text + length;
  size_t data_bytes = n_bytes - LENGTH_BYTES - (size_t)length;
  status = read_tensors(header, path, data, data_bytes, out);
  json_decref(header);
  if (status != TDM_OK) return status;
  return check_coverage(out, data, data_bytes);
}

tdm_status tdm_safetensors_parse(tdm_runtime* runtime, const char* path, const char* bytes, size_t n_bytes,
                                 tdm_safetensors* out) {
  *out = (tdm_safetensors){.runtime = runtime};
  tdm_status status = parse(path, bytes, n_bytes, out);
  if (status == TDM_OK) return TDM_OK;
  tdm_safetensors_clear(out);
  return tdm_fail_prefix(status, "%s", path);
}

void tdm_safetensors_clear(tdm_safetensors* safetensors) {
  tdm_host_free(safetensors->runtime, safetensors->tensors,
                (size_t)safetensors->n_tensors * sizeof *safetensors->tensors);
  tdm_host_free(safetensors->runtime, safetensors->names, safetensors->names_bytes);
  *safetensors = (tdm_safetensors){.runtime = safetensors->runtime};
}
