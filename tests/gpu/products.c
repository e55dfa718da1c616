/* Products of activations and weights, of which a row must have the same bits whatever its batch: see gpu_product. */

#include <stdlib.h>
#include <string.h>

#include "tests/gpu/gpu.h"

enum { ROWED = sizeof((gpu_product*)0)->rows / sizeof *((gpu_product*)0)->rows, SAMPLES = 16 };

static tdm_view* view_at(void* args, size_t offset) {
  return (tdm_view*)(void*)((char*)args + offset);
}

static gpu_tensor* tensor_of(gpu_rig* rig, const tdm_view* view) {
  for (int32_t i = 0; i < rig->n_tensors; i++) {
    gpu_tensor* t = &rig->tensors[i];
    if (view->buffer && (view->buffer == t->host_buffer || view->buffer == t->device_buffer)) return t;
  }
  return NULL;
}

static int64_t all_rows(const gpu_product* p) {
  return view_at(p->args, p->rows[0].offset)->shape[p->rows[0].dim];
}

/* ---- sampled rows ----------------------------------------------------------------------------------------------- */

static void choose_rows(gpu_rig* rig, int64_t n_rows, int64_t* rows) {
  static const int64_t edges[] = {0, 1, 2, 63, 64, 127, 128, 255, 256};
  int n = 0;
  for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
    if (edges[i] < n_rows) rows[n++] = edges[i];
  rows[n++] = n_rows - 1;
  while (n < SAMPLES) rows[n++] = (int64_t)(gpu_random(rig) % (uint64_t)n_rows);
}

/* Copies the rows between a tensor's bytes and a sample's, of dimension `dim`. */
static void gather(const tdm_view* from, const uint8_t* from_bytes, const tdm_view* to, uint8_t* to_bytes, int32_t dim,
                   const int64_t* rows) {
  size_t element = tdm_dtype_bytes(from->dtype);
  int64_t index[TDM_MAX_RANK] = {0};
  for (;;) {
    int64_t source = 0, target = 0;
    for (int32_t i = 0; i < from->rank; i++) {
      source += (i == dim ? rows[index[i]] : index[i]) * from->stride[i];
      target += index[i] * to->stride[i];
    }
    memcpy(to_bytes + GPU_GUARD_BYTES + (size_t)target * element,
           from_bytes + GPU_GUARD_BYTES + (size_t)source * element, element);
    int32_t i = from->rank - 1;
    while (i >= 0 && ++index[i] == to->shape[i]) index[i--] = 0;
    if (i < 0) return;
  }
}

static gpu_tensor* make_sample(gpu_rig* rig, const gpu_tensor* of, int32_t dim, const int64_t* rows) {
  int64_t shape[TDM_MAX_RANK];
  memcpy(shape, of->view.shape, sizeof shape);
  shape[dim] = SAMPLES;
  gpu_tensor* sample = gpu_make(rig, of->name, of->view.dtype, of->view.rank, shape);
  gather(&of->view, of->host, &sample->view, sample->host, dim, rows);
  return sample;
}

static void compare_sample(gpu_rig* rig, const gpu_product* p) {
  int64_t rows[SAMPLES];
  gpu_tensor* samples[ROWED] = {0};
  int32_t n_tensors = rig->n_tensors;
  void* args = malloc(p->op->args_bytes);
  if (!args) abort();
  memcpy(args, p->args, p->op->args_bytes);
  choose_rows(rig, all_rows(p), rows);
  for (int i = 0; i < ROWED; i++) {
    tdm_view* view = view_at(args, p->rows[i].offset);
    const gpu_tensor* of = tensor_of(rig, view);
    if ((i && !p->rows[i].offset) || !of) continue;
    samples[i] = make_sample(rig, of, p->rows[i].dim, rows);
    if (p->rows[i].tolerance > 0) gpu_poison(samples[i]);
    *view = samples[i]->view;
  }
  if (gpu_reference_sliced(rig, p->op, args, p->slice, p->slices, p->granule)) {
    for (int i = 0; i < ROWED; i++) {
      if (!samples[i] || !(p->rows[i].tolerance > 0)) continue;
      const gpu_tensor* of = tensor_of(rig, view_at(p->args, p->rows[i].offset));
      memset(samples[i]->got, 0xff, samples[i]->bytes);
      gather(&of->view, of->got, &samples[i]->view, samples[i]->got, p->rows[i].dim, rows);
      gpu_expect_close(rig, samples[i], p->rows[i].tolerance);
    }
  }
  while (rig->n_tensors > n_tensors) gpu_free_one(&rig->tensors[--rig->n_tensors]);
  free(args);
}

/* ---- bits ------------------------------------------------------------------------------------------------------- */

/* Rows below `live` have the bits of the first run; of scales the pads to the next multiple of 4 are zero. */
static void expect_live_rows(gpu_rig* rig, const gpu_tensor* tensor, const uint8_t* bits, int32_t dim, int64_t live) {
  const bool scales = dim == 1 && tensor->view.rank == 2;
  if (!scales) {
    gpu_expect_rows(rig, tensor, bits, dim, live);
    return;
  }
  int64_t padded = (live + 3) / 4 * 4, stride = tensor->view.stride[0];
  uint8_t* want = malloc(tensor->bytes);
  if (!want) abort();
  memcpy(want, bits, tensor->bytes);
  for (int64_t block = 0; block < tensor->view.shape[0]; block++)
    for (int64_t i = live; i < padded; i++) memset(want + GPU_GUARD_BYTES + (block * stride + i) * 4, 0, 4);
  gpu_tensor with_pads = *tensor;
  with_pads.view.shape[1] = stride;
  gpu_expect_rows(rig, &with_pads, want, 1, padded);
  free(want);
}

/* One launch of `rows` rows, `live` of them live (-1: no count), against the bits. */
static void run_rows(gpu_rig* rig, const gpu_product* p, uint8_t* const* bits, int64_t rows, int64_t live,
                     int32_t sms) {
  void* args = malloc(p->op->args_bytes);
  if (!args) abort();
  memcpy(args, p->args, p->op->args_bytes);
  for (int i = 0; i < ROWED; i++) {
    tdm_view* view = view_at(args, p->rows[i].offset);
    if ((i && !p->rows[i].offset) || !view->buffer) continue;
    view->shape[p->rows[i].dim] = rows;
    if (p->rows[i].tolerance > 0) gpu_poison_device(tensor_of(rig, view));
  }
  gpu_tensor* count = live >= 0 ? gpu_make_count(rig, "n_tokens", (int32_t)live) : NULL;
  if (count) {
    gpu_upload_one(rig, count);
    *view_at(args, p->n_tokens) = count->view;
  }
  gpu_to_device(rig, p->op, args);
  if (gpu_run(rig, p->op, args, sms)) {
    for (int i = 0; i < ROWED; i++) {
      if (!bits[i]) continue;
      gpu_tensor* out = tensor_of(rig, view_at(p->args, p->rows[i].offset));
      gpu_download_one(out);
      expect_live_rows(rig, out, bits[i], p->rows[i].dim, live >= 0 ? live : rows);
    }
  }
  if (count) gpu_free_one(&rig->tensors[--rig->n_tensors]);
  free(args);
}

/* All rows at once; keeps what came in bits. */
static bool run_first(gpu_rig* rig, const gpu_product* p, uint8_t** bits) {
  void* args = malloc(p->op->args_bytes);
  if (!args || p->op->check(p->args) != TDM_OK) {
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
    return false;
  }
  memcpy(args, p->args, p->op->args_bytes);
  gpu_to_device(rig, p->op, args);
  const bool ran = gpu_run(rig, p->op, args, rig->sms);
  free(args);
  for (int i = 0; ran && i < ROWED; i++) {
    gpu_tensor* out = tensor_of(rig, view_at(p->args, p->rows[i].offset));
    if ((i && !p->rows[i].offset) || !out || !(p->rows[i].tolerance > 0)) continue;
    gpu_download_one(out);
    bits[i] = malloc(out->bytes);
    if (!bits[i]) abort();
    memcpy(bits[i], out->got, out->bytes);
  }
  return ran;
}

/* What the listed experts give is what they give among all. */
static void compare_unlisted(gpu_rig* rig, const gpu_product* p, uint8_t* const* bits) {
  void* args = malloc(p->op->args_bytes);
  if (!args) abort();
  memcpy(args, p->args, p->op->args_bytes);
  *view_at(args, p->hits) = (tdm_view){0};
  gpu_to_device(rig, p->op, args);
  if (gpu_run(rig, p->op, args, rig->sms)) {
    for (int i = 0; i < ROWED; i++) {
      if (!bits[i]) continue;
      gpu_tensor* out = tensor_of(rig, view_at(p->args, p->rows[i].offset));
      gpu_download_one(out);
      for (size_t k = 0; k < out->bytes; k++) {
        if (bits[i][k] == 0xff || bits[i][k] == out->got[k]) continue; /* 0xff: not written, as a rule */
        gpu_fail(rig, "%s: byte %lld is 0x%02x without the list, 0x%02x with it", out->name,
                 (long long)k - GPU_GUARD_BYTES, out->got[k], bits[i][k]);
        break;
      }
    }
  }
  free(args);
}

static void compare_all(gpu_rig* rig, const gpu_product* p, uint8_t* const* bits) {
  if (!gpu_reference_sliced(rig, p->op, p->args, p->slice, p->slices, p->granule)) return;
  for (int i = 0; i < ROWED; i++)
    if (bits[i]) gpu_expect_close(rig, tensor_of(rig, view_at(p->args, p->rows[i].offset)), p->rows[i].tolerance);
}

void gpu_test_product(gpu_rig* rig, const gpu_product* p) {
  uint8_t* bits[ROWED] = {0};
  char name[sizeof rig->label];
  memcpy(name, rig->label, sizeof name); /* the first case's, begun by the caller */
  const int64_t most = all_rows(p);
  const bool ran = run_first(rig, p, bits);
  if (ran && p->sampled) compare_sample(rig, p);
  if (ran && !p->sampled) compare_all(rig, p, bits);
  if (ran && p->hits) compare_unlisted(rig, p, bits);
  gpu_end(rig);
  for (int i = 0; ran && i < GPU_ROW_COUNTS; i++) {
    const int64_t rows = gpu_row_counts[i];
    if (rows > most || (p->quick && rows > 37 && rows != 65)) continue;
    for (int few = 0; few < 2; few++) {
      if (p->sampled && few != i % 2) continue;
      gpu_begin(rig, "%.110s, %d rows%s", name, (int)rows, few ? " on 5 SMs" : "");
      run_rows(rig, p, bits, rows, -1, few ? 5 : rig->sms);
      gpu_end(rig);
    }
  }
  static const int64_t lives[] = {0, 1, 5, 37, 130};
  for (size_t i = 0; ran && i < sizeof lives / sizeof *lives; i++) {
    if (lives[i] > most) continue;
    gpu_begin(rig, "%.110s, %d live", name, (int)lives[i]);
    run_rows(rig, p, bits, most, lives[i], rig->sms);
    gpu_end(rig);
  }
  for (int i = 0; i < ROWED; i++) free(bits[i]);
  gpu_free(rig);
}
