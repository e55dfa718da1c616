#include "kernels/common/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Text of a dtype set or a shape; long enough for every dtype and for TDM_MAX_RANK extents of 20 digits. */
typedef struct text {
  char chars[128];
} text;

static void put(text* t, size_t* length, const char* piece) {
  int written = snprintf(t->chars + *length, sizeof t->chars - *length, "%s", piece);
  if (written > 0) *length += (size_t)written;
  if (*length >= sizeof t->chars) *length = sizeof t->chars - 1;
}

static text dtypes_text(unsigned dtypes) {
  text t = {{0}};
  size_t length = 0;
  for (unsigned dtype = 1; dtype <= TDM_F64; dtype++) {
    if (!(dtypes & TDM_DTYPES(dtype))) continue;
    if (length > 0) put(&t, &length, " or ");
    put(&t, &length, tdm_dtype_name((tdm_dtype)dtype));
  }
  return t;
}

/* "[3, 7168]"; TDM_ANY is "*". */
static text shape_text(int32_t rank, const int64_t* shape) {
  text t = {{0}};
  size_t length = 0;
  put(&t, &length, "[");
  for (int32_t i = 0; i < rank; i++) {
    char extent[32] = "*";
    if (shape[i] != TDM_ANY) snprintf(extent, sizeof extent, "%lld", (long long)shape[i]);
    if (i > 0) put(&t, &length, ", ");
    put(&t, &length, extent);
  }
  put(&t, &length, "]");
  return t;
}

tdm_status tdm_check_strided(const char* op, const char* name, const tdm_view* view, unsigned dtypes, int32_t rank,
                             const int64_t* shape) {
  unsigned dtype = (unsigned)view->dtype;
  if (dtype < 1 || dtype > TDM_F64) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has dtype %u, which is none", op, name, dtype);
  }
  if (!(dtypes & TDM_DTYPES(dtype))) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is %s, not %s", op, name, tdm_dtype_name(view->dtype),
                    dtypes_text(dtypes).chars);
  }
  if (view->rank != rank) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has rank %d, not %d", op, name, view->rank, rank);
  }
  for (int32_t i = 0; i < rank; i++) {
    bool fits = shape[i] == TDM_ANY ? view->shape[i] >= 1 : view->shape[i] == shape[i];
    if (!fits) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is %s, not %s%s", op, name, shape_text(rank, view->shape).chars,
                      shape_text(rank, shape).chars, shape[i] == TDM_ANY ? " with * >= 1" : "");
    }
    if (view->shape[i] > 1 && view->stride[i] < 1) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has stride %lld in dimension %d", op, name,
                      (long long)view->stride[i], i);
    }
  }
  if (view->offset_bytes % 16 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s starts at byte %lld of its buffer, not at a multiple of 16", op, name,
                    (long long)view->offset_bytes);
  }
  return TDM_OK;
}

tdm_status tdm_check_tensor(const char* op, const char* name, const tdm_view* view, unsigned dtypes, int32_t rank,
                            const int64_t* shape) {
  TDM_TRY(tdm_check_strided(op, name, view, dtypes, rank, shape));
  int64_t row = 1; /* elements that one step of the dimension must pass */
  for (int32_t i = rank - 1; i >= 0; i--) {
    if (view->shape[i] == 1) continue;
    if (i == rank - 1 && view->stride[i] != 1) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has last stride %lld, not 1", op, name, (long long)view->stride[i]);
    }
    if (view->stride[i] < row) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "%s: %s has stride %lld in dimension %d, less than the %lld elements below it", op, name,
                      (long long)view->stride[i], i, (long long)row);
    }
    row = view->stride[i] * view->shape[i];
  }
  return TDM_OK;
}

tdm_status tdm_check_distinct(const char* op, const char* name, const tdm_view* view) {
  int64_t reach = 0; /* furthest offset so far */
  bool done[TDM_MAX_RANK] = {false};
  for (int32_t n = 0; n < view->rank; n++) {
    int32_t next = -1;
    for (int32_t i = 0; i < view->rank; i++) {
      if (!done[i] && (next < 0 || view->stride[i] < view->stride[next])) next = i;
    }
    done[next] = true;
    if (view->shape[next] == 1) continue;
    int64_t stride = view->stride[next];
    if (stride <= reach) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has stride %lld in dimension %d, so its elements overlap", op, name,
                      (long long)stride, next);
    }
    reach += stride * (view->shape[next] - 1);
  }
  return TDM_OK;
}

tdm_status tdm_check_count(const char* op, const char* name, const tdm_view* view) {
  if (!tdm_view_present(view)) return TDM_OK;
  if (view->dtype != TDM_I32 || view->rank != 1 || view->shape[0] != 1) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is %s %s, not i32 [1]", op, name, tdm_dtype_name(view->dtype),
                    shape_text(view->rank, view->shape).chars);
  }
  if (view->offset_bytes % 4 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s starts at byte %lld of its buffer, not at a multiple of 4", op, name,
                    (long long)view->offset_bytes);
  }
  return TDM_OK;
}

tdm_status tdm_check_hits(const char* op, const tdm_view* view, int64_t n_experts) {
  if (!tdm_view_present(view)) return TDM_OK;
  if (view->dtype != TDM_I32 || view->rank != 1 || view->shape[0] != 1 + n_experts || view->stride[0] != 1) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits is %s %s, not a contiguous i32 [%lld], 1 + the experts", op,
                    tdm_dtype_name(view->dtype), shape_text(view->rank, view->shape).chars, (long long)(1 + n_experts));
  }
  if (view->offset_bytes % 4 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits starts at byte %lld of its buffer, not at a multiple of 4", op,
                    (long long)view->offset_bytes);
  }
  if (n_experts > TDM_MAX_HITS) {
    return TDM_FAIL(TDM_UNSUPPORTED, "%s: hits of %lld experts, the limit is %d", op, (long long)n_experts,
                    TDM_MAX_HITS);
  }
  return TDM_OK;
}

tdm_status tdm_check_chosen(const char* op, const tdm_view* view, int64_t rows, int64_t n_experts) {
  if (!tdm_view_present(view)) return TDM_OK;
  TDM_TRY(tdm_check_tensor(op, "chosen", view, TDM_DTYPES(TDM_I32), 2, (int64_t[]){rows, tdm_chosen_words(n_experts)}));
  if (n_experts > TDM_MAX_HITS) {
    return TDM_FAIL(TDM_UNSUPPORTED, "%s: chosen of %lld experts, the limit is %d", op, (long long)n_experts,
                    TDM_MAX_HITS);
  }
  return TDM_OK;
}

tdm_status tdm_check_selection(const char* op, const tdm_view* hits, const tdm_view* chosen, int64_t rows,
                               int64_t n_experts) {
  if (tdm_view_present(hits) && tdm_view_present(chosen)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits and chosen are both given", op);
  }
  TDM_TRY(tdm_check_hits(op, hits, n_experts));
  return tdm_check_chosen(op, chosen, rows, n_experts);
}

tdm_status tdm_refuse_chosen(const char* op, const tdm_view* view) {
  if (!tdm_view_present(view)) return TDM_OK;
  return TDM_FAIL(TDM_UNSUPPORTED, "%s: chosen with bf16 weights needs the host device in this version", op);
}

/* A scale is there exactly when its data is e4m3. */
static tdm_status check_scale_present(const char* op, const char* name, const tdm_view* scale, const char* data_name,
                                      const tdm_view* data) {
  if (data->dtype == TDM_E4M3 && !tdm_view_present(scale)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is e4m3 but %s is absent", op, data_name, name);
  }
  if (data->dtype != TDM_E4M3 && tdm_view_present(scale)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is given but %s is %s, not e4m3", op, name, data_name,
                    tdm_dtype_name(data->dtype));
  }
  return TDM_OK;
}

tdm_status tdm_check_act_scale(const char* op, const char* name, const tdm_view* scale, const char* data_name,
                               const tdm_view* data) {
  TDM_TRY(check_scale_present(op, name, scale, data_name, data));
  if (!tdm_view_present(scale)) return TDM_OK;
  int32_t r = data->rank - 2; /* the dimension of the rows; a leading one counts groups */
  int64_t groups = r > 0 ? data->shape[0] : 1, rows = data->shape[r], cols = data->shape[r + 1];
  if (cols % 128 != 0) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has %lld columns, not a multiple of 128", op, data_name,
                    (long long)cols);
  }
  int64_t blocks = cols / 128, padded = tdm_scale_stride(rows);
  const int64_t shape[] = {groups, blocks, rows};
  TDM_TRY(tdm_check_tensor(op, name, scale, TDM_DTYPES(TDM_F32), data->rank, r > 0 ? shape : shape + 1));
  if (blocks > 1 && (scale->stride[r] < padded || scale->stride[r] % 4 != 0)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has row stride %lld for %lld rows, not a multiple of 4 from %lld up",
                    op, name, (long long)scale->stride[r], (long long)rows, (long long)padded);
  }
  int64_t group = (blocks - 1) * (blocks > 1 ? scale->stride[r] : 0) + padded; /* elements of one, pads included */
  if (groups > 1 && (scale->stride[0] < group || scale->stride[0] % 4 != 0)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s has group stride %lld, not a multiple of 4 from %lld up", op, name,
                    (long long)scale->stride[0], (long long)group);
  }
  int64_t end =
      scale->offset_bytes + ((groups > 1 ? (groups - 1) * scale->stride[0] : 0) + group) * (int64_t)sizeof(float);
  if ((uint64_t)end > tdm_buffer_bytes(scale->buffer)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "%s: %s needs %lld bytes up to the end of its pad columns, its buffer has %zu", op, name,
                    (long long)end, tdm_buffer_bytes(scale->buffer));
  }
  return TDM_OK;
}

tdm_status tdm_check_weight_scale(const char* op, const char* name, const tdm_view* scale, const char* w_name,
                                  const tdm_view* w) {
  TDM_TRY(check_scale_present(op, name, scale, w_name, w));
  if (!tdm_view_present(scale)) return TDM_OK;
  int64_t shape[TDM_MAX_RANK];
  for (int32_t i = 0; i < w->rank; i++) shape[i] = i < w->rank - 2 ? w->shape[i] : (w->shape[i] + 127) / 128;
  return tdm_check_tensor(op, name, scale, TDM_DTYPES(TDM_F32), w->rank, shape);
}

tdm_status tdm_check_eps(const char* op, const char* name, float* value, float fallback) {
  if (*value == 0.0f) *value = fallback;
  if (!isfinite(*value) || *value < TDM_MIN_EPS) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s is %g, neither 0 nor finite and at least %g", op, name,
                    (double)*value, (double)TDM_MIN_EPS);
  }
  return TDM_OK;
}

static int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* A view as rows of `row_bytes` whose starts are `offset` plus multiples of `step` bytes (0: a single row). */
typedef struct rows_of_bytes {
  int64_t offset, row_bytes, step;
} rows_of_bytes;

static rows_of_bytes bytes_of(const tdm_view* view) {
  int64_t element = (int64_t)tdm_dtype_bytes(view->dtype);
  rows_of_bytes rows = {view->offset_bytes, element, 0};
  for (int32_t i = view->rank - 1; i >= 0; i--) {
    if (view->shape[i] == 1) continue;
    int64_t stride = view->stride[i] * element;
    if (stride == rows.row_bytes && rows.step == 0) {
      rows.row_bytes *= view->shape[i];
    } else {
      rows.step = greatest_common_divisor(stride, rows.step);
    }
  }
  return rows;
}

bool tdm_views_overlap(const tdm_view* a, const tdm_view* b) {
  if (!tdm_view_present(a) || !tdm_view_present(b) || a->buffer != b->buffer) return false;
  if (a->offset_bytes + (int64_t)tdm_view_span_bytes(a) <= b->offset_bytes) return false;
  if (b->offset_bytes + (int64_t)tdm_view_span_bytes(b) <= a->offset_bytes) return false;
  /* The spans meet. With a common step all rows of a view start at the same place modulo it; if the rows' intervals on
   * that circle are apart, the views interleave. */
  rows_of_bytes x = bytes_of(a);
  rows_of_bytes y = bytes_of(b);
  int64_t step = greatest_common_divisor(x.step, y.step);
  if (step == 0 || x.row_bytes + y.row_bytes > step) return true;
  int64_t ahead = ((y.offset - x.offset) % step + step) % step; /* from x's start to y's */
  return ahead < x.row_bytes || ahead + y.row_bytes > step;
}

static const tdm_view* operand_view(const tdm_operand* operand, const void* args) {
  return (const tdm_view*)(const void*)((const char*)args + operand->offset);
}

static bool same_view(const tdm_view* a, const tdm_view* b) {
  if (a->buffer != b->buffer || a->offset_bytes != b->offset_bytes || a->dtype != b->dtype || a->rank != b->rank) {
    return false;
  }
  for (int32_t i = 0; i < a->rank; i++) {
    if (a->shape[i] != b->shape[i] || (a->shape[i] > 1 && a->stride[i] != b->stride[i])) return false;
  }
  return true;
}

tdm_status tdm_check_prefetch(const char* op, const char* name, const tdm_view* view) {
  const unsigned any_dtype = ~0u;
  if (!tdm_view_present(view)) return TDM_OK;
  TDM_TRY(tdm_check_tensor(op, name, view, any_dtype, 2, (int64_t[]){TDM_ANY, TDM_ANY}));
  const int64_t element = (int64_t)tdm_dtype_bytes(view->dtype), row = view->shape[1] * element;
  const int64_t stride = view->stride[0] * element;
  if (row % 16 != 0 || (view->shape[0] > 1 && stride % 16 != 0)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "%s: %s has rows of %lld bytes that lie %lld apart: multiples of 16 are wanted", op, name,
                    (long long)row, (long long)stride);
  }
  return TDM_OK;
}

static bool is_named(const tdm_operand* operand, const char* name) {
  return name != NULL && strcmp(operand->name, name) == 0;
}

tdm_status tdm_check_overlap(const tdm_op* op, const void* args, const char* output, const char* input) {
  for (int32_t i = 0; i < op->n_operands; i++) {
    const tdm_operand* written = &op->operands[i];
    if (!(written->access & TDM_WRITE)) continue;
    for (int32_t j = 0; j < op->n_operands; j++) {
      const tdm_operand* other = &op->operands[j];
      if (i == j || ((other->access & TDM_WRITE) && j < i)) continue;
      const tdm_view* a = operand_view(written, args);
      const tdm_view* b = operand_view(other, args);
      if (!tdm_views_overlap(a, b)) continue;
      if (is_named(written, output) && is_named(other, input) && same_view(a, b)) continue;
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: %s (from byte %lld of the buffer) overlaps %s (from byte %lld)",
                      op->name, written->name, (long long)a->offset_bytes, other->name, (long long)b->offset_bytes);
    }
  }
  return TDM_OK;
}

tdm_status tdm_live_rows(const char* op, const tdm_view* count, int64_t rows, int64_t* out_rows) {
  *out_rows = rows;
  if (!tdm_view_present(count)) return TDM_OK;
  int32_t live = *(const int32_t*)tdm_view_data(count);
  if (live < 0 || live > rows) {
    *out_rows = 0;
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: the live count is %d, outside 0..%lld", op, live, (long long)rows);
  }
  *out_rows = live;
  return TDM_OK;
}

tdm_status tdm_read_hits(const char* op, const tdm_view* view, int64_t n_experts, tdm_hits* out_hits) {
  *out_hits = (tdm_hits){.n = n_experts};
  if (!tdm_view_present(view)) return TDM_OK;
  const int32_t* hits = tdm_view_data(view);
  if (hits[0] < 0 || hits[0] > n_experts) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits counts %d of %lld experts", op, hits[0], (long long)n_experts);
  }
  for (int32_t i = 1; i <= hits[0]; i++) {
    if (hits[i] < 0 || hits[i] >= n_experts || (i > 1 && hits[i] <= hits[i - 1])) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: hits[%d] is %d, after %d; %lld experts should ascend", op, i, hits[i],
                      i > 1 ? hits[i - 1] : -1, (long long)n_experts);
    }
  }
  *out_hits = (tdm_hits){.list = hits + 1, .n = hits[0]};
  return TDM_OK;
}

tdm_status tdm_read_chosen(const char* op, const tdm_view* view, int64_t rows, int64_t n_experts,
                           tdm_chosen* out_chosen) {
  *out_chosen = (tdm_chosen){0};
  if (!tdm_view_present(view)) return TDM_OK;
  const tdm_chosen chosen = {.words = tdm_view_data(view), .stride = view->stride[0]};
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t e = n_experts; e < 32 * tdm_chosen_words(n_experts); e++) {
      if (!tdm_chose(&chosen, m, e)) continue;
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: chosen of row %lld has expert %lld of %lld", op, (long long)m,
                      (long long)e, (long long)n_experts);
    }
  }
  *out_chosen = chosen;
  return TDM_OK;
}

bool tdm_any_chose(const tdm_chosen* chosen, int64_t rows, int64_t expert) {
  for (int64_t m = 0; m < rows; m++) {
    if (tdm_chose(chosen, m, expert)) return true;
  }
  return false;
}

double tdm_traffic(const tdm_view* view) {
  if (!tdm_view_present(view)) return 0.0;
  double bytes = (double)tdm_dtype_bytes(view->dtype);
  for (int32_t i = 0; i < view->rank; i++) bytes *= (double)view->shape[i];
  return bytes;
}

double tdm_traffic_all(const tdm_op* op, const void* args) {
  double bytes = 0.0;
  for (int32_t i = 0; i < op->n_operands; i++) {
    double once = tdm_traffic(operand_view(&op->operands[i], args));
    bytes += op->operands[i].access == TDM_READ_WRITE ? 2.0 * once : once;
  }
  return bytes;
}
