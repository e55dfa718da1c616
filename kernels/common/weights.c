#include "kernels/common/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "runtime/buffer.h"
#include "runtime/quote.h"

enum { BLOCK = 128, NAME_BYTES = 256 };

static int64_t blocks_of(int64_t n) {
  return (n + BLOCK - 1) / BLOCK;
}

void tdm_weight_release(tdm_weight* weight) {
  tdm_buffer_destroy(weight->data.buffer);
  tdm_buffer_destroy(weight->scale.buffer);
  *weight = (tdm_weight){0};
}

/* ---- findings --------------------------------------------------------------------------------------------------- */

static void drop_staging(tdm_loader* loader) {
  tdm_host_free(loader->runtime, loader->staging, loader->staging_bytes);
  loader->staging = NULL;
}

tdm_status tdm_loader_create(tdm_runtime* runtime, const tdm_checkpoint* checkpoint, const char* subject, uint64_t seed,
                             tdm_loader* out_loader) {
  *out_loader = (tdm_loader){.runtime = runtime, .checkpoint = checkpoint, .seed = seed};
  tdm_findings_init(&out_loader->findings, runtime, subject);
  if (!checkpoint) return TDM_OK;
  const int64_t count = tdm_checkpoint_count(checkpoint);
  out_loader->seen = tdm_host_alloc_array(runtime, count, sizeof *out_loader->seen);
  return out_loader->seen || count == 0 ? TDM_OK : TDM_OUT_OF_MEMORY;
}

void tdm_loader_destroy(tdm_loader* loader) {
  if (!loader->runtime) return;
  drop_staging(loader);
  if (loader->seen)
    tdm_host_free(loader->runtime, loader->seen,
                  (size_t)tdm_checkpoint_count(loader->checkpoint) * sizeof *loader->seen);
  *loader = (tdm_loader){0};
}

tdm_status tdm_loader_report(tdm_loader* loader, bool (*ignore)(void* ctx, const char* name), void* ctx) {
  if (!loader->checkpoint) return TDM_OK;
  for (int64_t i = 0; i < tdm_checkpoint_count(loader->checkpoint); i++) {
    tdm_tensor_info info;
    if (loader->seen[i]) continue;
    TDM_TRY(tdm_checkpoint_get(loader->checkpoint, i, &info));
    if (!ignore(ctx, info.name))
      tdm_findings_add(&loader->findings, TDM_CORRUPT, "%s is not part of this model", tdm_printable(info.name).text);
  }
  return tdm_findings_result(&loader->findings);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Index of a tensor, -1 when there is none. The checkpoint's tensors are in ascending order of names. */
static int64_t tensor_index(const tdm_loader* loader, const char* name, tdm_tensor_info* out_info) {
  int64_t low = 0, high = tdm_checkpoint_count(loader->checkpoint);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (tdm_checkpoint_get(loader->checkpoint, middle, out_info) != TDM_OK) return -1;
    const int order = strcmp(out_info->name, name);
    if (order == 0) return middle;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

static void format_shape(char* text, size_t bytes, int32_t rank, const int64_t* shape) {
  size_t used = (size_t)snprintf(text, bytes, "[");
  for (int32_t dim = 0; dim < rank && used < bytes; dim++)
    used += (size_t)snprintf(text + used, bytes - used, "%s%" PRId64, dim ? ", " : "", shape[dim]);
  if (used < bytes) snprintf(text + used, bytes - used, "]");
}

/* Gets a tensor of one of the dtypes and of shape [n] (k == 0) or [n, k]. False, with a finding, when it is not there
 * as wanted. */
static bool get_tensor(tdm_loader* loader, const char* name, unsigned dtypes, int64_t n, int64_t k,
                       tdm_tensor_info* out_info) {
  const int64_t index = tensor_index(loader, name, out_info);
  const int64_t shape[] = {n, k};
  const int32_t rank = k ? 2 : 1;
  char wanted[96], found[256];
  format_shape(wanted, sizeof wanted, rank, shape);
  if (index < 0) {
    tdm_findings_add(&loader->findings, TDM_CORRUPT, "%s %s is missing", name, wanted);
    return false;
  }
  loader->seen[index] = true;
  if (!(dtypes & (1u << out_info->dtype))) {
    tdm_findings_add(&loader->findings, TDM_CORRUPT, "%s has dtype %s, which cannot be used here", name,
                     tdm_dtype_name(out_info->dtype));
    return false;
  }
  if (out_info->rank != rank || memcmp(out_info->shape, shape, (size_t)rank * sizeof *shape) != 0) {
    format_shape(found, sizeof found, out_info->rank, out_info->shape);
    tdm_findings_add(&loader->findings, TDM_CORRUPT, "%s has shape %s, must be %s", name, found, wanted);
    return false;
  }
  return true;
}

enum {
  PLAIN_DTYPES = 1u << TDM_BF16 | 1u << TDM_F32,
  LINEAR_DTYPES = 1u << TDM_BF16 | 1u << TDM_F32 | 1u << TDM_E4M3,
};

/* Element `index` of a tensor that is aligned to the byte only. */
static float element_f32(const tdm_tensor_info* info, int64_t index) {
  const uint8_t* at = (const uint8_t*)info->data + (size_t)index * tdm_dtype_bytes(info->dtype);
  uint8_t aligned[8];
  memcpy(aligned, at, tdm_dtype_bytes(info->dtype));
  if (info->dtype == TDM_E4M3) return tdm_e4m3_to_f32(aligned[0]);
  if (info->dtype == TDM_BF16) {
    uint16_t bits;
    memcpy(&bits, aligned, sizeof bits);
    return tdm_bf16_to_f32(bits);
  }
  float value;
  memcpy(&value, aligned, sizeof value);
  return value;
}

/* Whether the 16 or 32 bits of an element say NaN or infinity: an exponent of all ones. A separate loop for each dtype,
 * since every byte of a checkpoint passes here. */
static bool all_finite(const tdm_tensor_info* info, int64_t begin, int64_t count) {
  const size_t element = tdm_dtype_bytes(info->dtype);
  const uint8_t* bytes = (const uint8_t*)info->data + (size_t)begin * element;
  unsigned bad = 0;
  if (info->dtype == TDM_E4M3) {
    for (int64_t i = 0; i < count; i++) bad |= (bytes[i] & 0x7f) == 0x7f;
  } else if (info->dtype == TDM_BF16) {
    for (int64_t i = 0; i < count; i++) bad |= (bytes[2 * i + 1] & 0x7f) == 0x7f && (bytes[2 * i] & 0x80);
  } else {
    for (int64_t i = 0; i < count; i++) bad |= (bytes[4 * i + 3] & 0x7f) == 0x7f && (bytes[4 * i + 2] & 0x80);
  }
  return !bad;
}

/* NaN and infinity would reach tokens that never chose this weight (0 * NaN), so they are refused here. */
static tdm_status check_finite(const tdm_tensor_info* info, int64_t begin, int64_t count) {
  if (all_finite(info, begin, count)) return TDM_OK;
  int64_t i = begin;
  while (isfinite(element_f32(info, i))) i++;
  return TDM_FAIL(TDM_CORRUPT, "%s: element %" PRId64 " is %s", info->name, i,
                  isnan(element_f32(info, i)) ? "NaN" : "infinite");
}

static tdm_status new_view(tdm_loader* loader, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                           tdm_view* out_view) {
  size_t bytes = tdm_dtype_bytes(dtype);
  for (int32_t dim = 0; dim < rank; dim++)
    if (__builtin_mul_overflow(bytes, (size_t)shape[dim], &bytes))
      return TDM_FAIL(TDM_OUT_OF_MEMORY, "a weight of %" PRId64 " rows overflows the address space", shape[0]);
  tdm_buffer* buffer;
  TDM_TRY(tdm_buffer_create(loader->runtime, bytes, &buffer));
  loader->loaded_bytes += bytes;
  *out_view = tdm_view_make(buffer, dtype, rank, shape);
  return TDM_OK;
}

/* ---- random weights --------------------------------------------------------------------------------------------- */

static tdm_status run_fill(tdm_program* program, const tdm_fill_args* args) {
  tdm_runtime* runtime = args->out.buffer->runtime;
  tdm_lane_config config;
  tdm_lane* lane;
  TDM_TRY(tdm_lane_config_init(&config, sizeof config));
  config.name = "main";
  TDM_TRY(tdm_lane_get(runtime, &config, &lane));
  TDM_TRY(tdm_append_fill(program, lane, "fill", args));
  TDM_TRY(tdm_program_seal(program, NULL));
  TDM_TRY(tdm_program_launch(program, NULL));
  return tdm_runtime_synchronize(runtime);
}

tdm_status tdm_fill_random(tdm_runtime* runtime, const tdm_view* view, uint64_t seed, float amplitude, float offset) {
  const tdm_fill_args args = {
      .size = sizeof args, .out = *view, .seed = seed << 32, .amplitude = amplitude, .offset = offset};
  tdm_program* program;
  TDM_TRY(tdm_program_create(runtime, "random values", &program));
  const tdm_status status = run_fill(program, &args);
  tdm_program_destroy(program);
  return status;
}

/* A new view of values around `offset`; in the checking pass nothing. */
static tdm_status make_random(tdm_loader* loader, tdm_dtype dtype, int32_t rank, const int64_t* shape, float amplitude,
                              float offset, tdm_view* out_view) {
  if (!loader->loading) return TDM_OK;
  TDM_TRY(new_view(loader, dtype, rank, shape, out_view));
  return tdm_fill_random(loader->runtime, out_view, loader->seed++, amplitude, offset);
}

/* Uniform values of variance 1/k, so that products keep their size. */
static float random_amplitude(int64_t k) {
  return sqrtf(3.0f / (float)k);
}

/* FP8 values over nearly the whole range, scales a tenth up and down. */
static tdm_status make_random_linear(tdm_loader* loader, int64_t n, int64_t k, tdm_weight* weight) {
  const int64_t shape[] = {n, k}, scale_shape[] = {blocks_of(n), blocks_of(k)};
  const float range = 256, scale = random_amplitude(k) / range;
  TDM_TRY(make_random(loader, TDM_E4M3, 2, shape, range, 0, &weight->data));
  return make_random(loader, TDM_F32, 2, scale_shape, 0.1f * scale, scale, &weight->scale);
}

/* ---- whole tensors ---------------------------------------------------------------------------------------------- */

tdm_status tdm_loader_plain(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_view* out_view) {
  *out_view = (tdm_view){0};
  const int64_t shape[] = {n, k};
  if (!loader->checkpoint)
    return make_random(loader, TDM_BF16, k ? 2 : 1, shape, k ? random_amplitude(k) : 0.1f, k ? 0 : 1, out_view);
  char full[NAME_BYTES];
  snprintf(full, sizeof full, "%s.weight", name);
  tdm_tensor_info info;
  if (!get_tensor(loader, full, PLAIN_DTYPES, n, k, &info) || !loader->loading) return TDM_OK;
  const int64_t count = n * (k ? k : 1);
  TDM_TRY(check_finite(&info, 0, count));
  TDM_TRY(new_view(loader, info.dtype, k ? 2 : 1, shape, out_view));
  return tdm_buffer_write(out_view->buffer, 0, info.data, info.bytes);
}

/* Writes a tensor's elements, dequantised, to a new view. */
static tdm_status copy_converted(tdm_loader* loader, const tdm_tensor_info* info, const tdm_tensor_info* scale,
                                 tdm_dtype dtype, tdm_view* out_view) {
  const int64_t n = info->shape[0], k = info->rank == 2 ? info->shape[1] : 1;
  TDM_TRY(check_finite(info, 0, n * k));
  TDM_TRY(new_view(loader, dtype, info->rank, info->shape, out_view));
  const size_t bytes = tdm_buffer_bytes(out_view->buffer);
  uint8_t* data = tdm_host_alloc(loader->runtime, bytes);
  if (!data) return TDM_OUT_OF_MEMORY;
  for (int64_t row = 0; row < n; row++)
    for (int64_t col = 0; col < k; col++) {
      float value = element_f32(info, row * k + col);
      if (scale) value *= element_f32(scale, row / BLOCK * blocks_of(k) + col / BLOCK);
      tdm_store_f32(data, dtype, row * k + col, value);
    }
  const tdm_status status = tdm_buffer_write(out_view->buffer, 0, data, bytes);
  tdm_host_free(loader->runtime, data, bytes);
  return status;
}

tdm_status tdm_loader_f32(tdm_loader* loader, const char* name, int64_t n, float amplitude, tdm_view* out_view) {
  *out_view = (tdm_view){0};
  if (!loader->checkpoint) return make_random(loader, TDM_F32, 1, &n, amplitude, 0, out_view);
  tdm_tensor_info info;
  if (!get_tensor(loader, name, PLAIN_DTYPES, n, 0, &info) || !loader->loading) return TDM_OK;
  return copy_converted(loader, &info, NULL, TDM_F32, out_view);
}

/* A linear's tensor and, for e4m3, its scales. False, with findings, when something is wrong. */
static bool get_linear(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_tensor_info* out_info,
                       tdm_tensor_info* out_scale) {
  char full[NAME_BYTES], scale[NAME_BYTES];
  snprintf(full, sizeof full, "%s.weight", name);
  snprintf(scale, sizeof scale, "%s.weight_scale_inv", name);
  if (!get_tensor(loader, full, LINEAR_DTYPES, n, k, out_info)) {
    const int64_t index = tensor_index(loader, scale, out_scale);
    if (index >= 0) loader->seen[index] = true; /* one finding for a linear is enough */
    return false;
  }
  if (out_info->dtype != TDM_E4M3) return true;
  return get_tensor(loader, scale, 1u << TDM_F32, blocks_of(n), blocks_of(k), out_scale);
}

tdm_status tdm_loader_dequantised(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_dtype dtype,
                                  tdm_view* out_view) {
  *out_view = (tdm_view){0};
  if (!loader->checkpoint) return make_random(loader, dtype, 2, (int64_t[]){n, k}, random_amplitude(k), 0, out_view);
  tdm_tensor_info info, scale;
  if (!get_linear(loader, name, n, k, &info, &scale) || !loader->loading) return TDM_OK;
  const bool quantised = info.dtype == TDM_E4M3;
  if (quantised) TDM_TRY(check_finite(&scale, 0, blocks_of(n) * blocks_of(k)));
  return copy_converted(loader, &info, quantised ? &scale : NULL, dtype, out_view);
}

/* ---- weights put together from pieces --------------------------------------------------------------------------- */

static tdm_status begin_weight(tdm_loader* loader, tdm_weight* weight, tdm_dtype dtype, int64_t n, int64_t k) {
  const int64_t shape[] = {n, k}, scale_shape[] = {blocks_of(n), blocks_of(k)};
  if (!loader->loading) {
    weight->data.dtype = dtype; /* to compare the next pieces with */
    return TDM_OK;
  }
  TDM_TRY(new_view(loader, dtype, 2, shape, &weight->data));
  if (dtype == TDM_E4M3) TDM_TRY(new_view(loader, TDM_F32, 2, scale_shape, &weight->scale));
  loader->scale_offset = tdm_buffer_bytes(weight->data.buffer);
  loader->staging_bytes = loader->scale_offset + tdm_buffer_bytes(weight->scale.buffer);
  loader->staging = tdm_host_alloc(loader->runtime, loader->staging_bytes);
  return loader->staging ? TDM_OK : TDM_OUT_OF_MEMORY;
}

/* Copies rows of a rectangle between row-major matrices of one element size. */
static void copy_rectangle(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows,
                           int64_t cols, size_t element) {
  for (int64_t row = 0; row < rows; row++)
    memcpy(to + (size_t)(row * to_stride) * element, from + (size_t)(row * from_stride) * element,
           (size_t)cols * element);
}

static tdm_status copy_piece(const tdm_loader* loader, const tdm_weight* weight, const tdm_weight_piece* piece,
                             const tdm_tensor_info* info, const tdm_tensor_info* scale) {
  const size_t element = tdm_dtype_bytes(info->dtype);
  const uint8_t* from = info->data;
  for (int64_t row = piece->from_row; row < piece->from_row + piece->n_rows; row++)
    TDM_TRY(check_finite(info, row * piece->k + piece->from_col, piece->n_cols));
  uint8_t* to = loader->staging;
  const int64_t to_stride = weight->data.stride[0];
  copy_rectangle(to + (size_t)(piece->to_row * to_stride + piece->to_col) * element, to_stride,
                 from + (size_t)(piece->from_row * piece->k + piece->from_col) * element, piece->k, piece->n_rows,
                 piece->n_cols, element);
  if (!scale) return TDM_OK;
  const int64_t scale_k = blocks_of(piece->k), rows = blocks_of(piece->n_rows), cols = blocks_of(piece->n_cols);
  const int64_t first = piece->from_row / BLOCK * scale_k + piece->from_col / BLOCK;
  for (int64_t row = 0; row < rows; row++) TDM_TRY(check_finite(scale, first + row * scale_k, cols));
  const int64_t to_first = piece->to_row / BLOCK * weight->scale.stride[0] + piece->to_col / BLOCK;
  copy_rectangle(loader->staging + loader->scale_offset + (size_t)to_first * sizeof(float), weight->scale.stride[0],
                 (const uint8_t*)scale->data + (size_t)first * sizeof(float), scale_k, rows, cols, sizeof(float));
  return TDM_OK;
}

tdm_status tdm_loader_piece(tdm_loader* loader, tdm_weight* weight, int64_t n, int64_t k,
                            const tdm_weight_piece* piece) {
  if (!loader->checkpoint) return weight->data.buffer ? TDM_OK : make_random_linear(loader, n, k, weight);
  tdm_tensor_info info, scale;
  if (!get_linear(loader, piece->name, piece->n, piece->k, &info, &scale)) return TDM_OK;
  if (!weight->data.dtype) TDM_TRY(begin_weight(loader, weight, info.dtype, n, k));
  if (weight->data.dtype != info.dtype) {
    tdm_findings_add(&loader->findings, TDM_CORRUPT,
                     "%s.weight has dtype %s, but tensors that are joined with it have %s", piece->name,
                     tdm_dtype_name(info.dtype), tdm_dtype_name(weight->data.dtype));
    return TDM_OK;
  }
  if (!loader->loading) return TDM_OK;
  return copy_piece(loader, weight, piece, &info, info.dtype == TDM_E4M3 ? &scale : NULL);
}

tdm_status tdm_loader_end(tdm_loader* loader, tdm_weight* weight) {
  if (!loader->staging) return TDM_OK; /* only checking */
  tdm_status status = tdm_buffer_write(weight->data.buffer, 0, loader->staging, tdm_buffer_bytes(weight->data.buffer));
  if (status == TDM_OK && weight->scale.buffer)
    status = tdm_buffer_write(weight->scale.buffer, 0, loader->staging + loader->scale_offset,
                              tdm_buffer_bytes(weight->scale.buffer));
  drop_staging(loader);
  return status;
}

tdm_status tdm_loader_linear(tdm_loader* loader, const char* name, int64_t n, int64_t k, tdm_weight* out_weight) {
  *out_weight = (tdm_weight){0};
  const tdm_weight_piece piece = {.name = name, .n = n, .k = k, .n_rows = n, .n_cols = k};
  TDM_TRY(tdm_loader_piece(loader, out_weight, n, k, &piece));
  return tdm_loader_end(loader, out_weight);
}
