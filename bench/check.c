/* A result on the device against the op's own reference. Whole cases are far too large for that, so the call is cut
 * along its axes into pieces that are calls of the same op: some rows, some columns, one expert, one head. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "kernels/common/convert.h"

enum { PIECES = 3 };

typedef struct piece {
  const bench_check* check;
  alignas(16) uint8_t args[BENCH_ARGS_BYTES]; /* views over host memory */
  tdm_buffer* buffers[BENCH_BUFFERS];
  uint8_t* want[BENCH_BUFFERS]; /* operands as the reference reads and writes them */
  uint8_t* got[BENCH_BUFFERS];  /* outputs as the device left them; NULL for inputs */
} piece;

static tdm_view* operand(const piece* p, int32_t i) {
  return (tdm_view*)(void*)((uint8_t*)(uintptr_t)p->args + p->check->op->operands[i].offset);
}

/* Piece number `index` of PIECES: first units of all axes, last units, some in between. */
static int64_t unit_of(int64_t units, int32_t index) {
  if (units <= 1 || index == 0) return 0;
  return index == 1 ? units - 1 : units * 5 / 8;
}

static void cut(piece* p, int32_t index) {
  const bench_check* check = p->check;
  memcpy(p->args, check->args, sizeof p->args);
  for (int32_t i = 0; i < check->n_cuts; i++) {
    const bench_cut* one = &check->cuts[i];
    tdm_view* view = (tdm_view*)(void*)(p->args + one->view);
    const int64_t unit = unit_of(check->units[one->axis], index);
    *view = tdm_view_slice(*view, one->dim, one->at + unit * one->step, one->count);
  }
}

static uint8_t* host_memory(size_t bytes) {
  uint8_t* memory = aligned_alloc(256, (bytes + 64 + 255) / 256 * 256); /* pads of scales lie behind the last */
  if (!memory) bench_die("no memory for %zu bytes of a check", bytes);
  memset(memory, 0xff, (bytes + 64 + 255) / 256 * 256);
  return memory;
}

static void download(bench_rig* rig, piece* p) {
  const tdm_op* op = p->check->op;
  if (op->n_operands > BENCH_BUFFERS) bench_die("%s has more than %d operands", op->name, BENCH_BUFFERS);
  for (int32_t i = 0; i < op->n_operands; i++) {
    tdm_view* view = operand(p, i);
    if (!tdm_view_present(view)) continue;
    const size_t bytes = tdm_view_span_bytes(view);
    uint8_t* memory = host_memory(bytes);
    bench_must(tdm_buffer_read(view->buffer, (size_t)view->offset_bytes, memory, bytes), "reading an operand");
    p->want[i] = memory;
    if (op->operands[i].access & TDM_WRITE) {
      p->got[i] = memory;
      p->want[i] = host_memory(bytes);
    }
    bench_must(tdm_buffer_wrap(rig->host, p->want[i], bytes + 64, &p->buffers[i]), "wrapping an operand");
    view->buffer = p->buffers[i];
    view->offset_bytes = 0;
  }
}

static void release(piece* p) {
  for (int32_t i = 0; i < BENCH_BUFFERS; i++) {
    tdm_buffer_destroy(p->buffers[i]);
    free(p->want[i]);
    free(p->got[i]);
  }
}

static tdm_status run_reference(piece* p) {
  const tdm_op* op = p->check->op;
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_status status = op->check(p->args);
  if (status != TDM_OK) return status;
  op->plan(p->args, 0, &plan);
  void* scratch = malloc(plan.scratch_bytes + 1);
  if (!scratch) bench_die("no memory for %zu bytes of a reference's scratch", plan.scratch_bytes);
  status = op->ref(p->args, &plan, scratch);
  free(scratch);
  return status;
}

static int64_t count_of(const tdm_view* view) {
  int64_t count = 1;
  for (int32_t i = 0; i < view->rank; i++) count *= view->shape[i];
  return count;
}

static int64_t place_of(const tdm_view* view, int64_t index) {
  int64_t place = 0;
  for (int32_t i = view->rank - 1; i >= 0; i--) {
    place += index % view->shape[i] * view->stride[i];
    index /= view->shape[i];
  }
  return place;
}

static double value_at(const uint8_t* data, tdm_dtype dtype, int64_t place) {
  if (dtype == TDM_I32) return (double)((const int32_t*)(const void*)data)[place];
  return (double)tdm_load_f32(data, dtype, place);
}

/* 1 - 2 sum(xy) / sum(x^2 + y^2); infinity where NaN or infinity differ. */
static double difference(const piece* p, int32_t i) {
  const tdm_view* view = operand(p, i);
  const int64_t count = count_of(view);
  double apart = 0, together = 0;
  for (int64_t j = 0; j < count; j++) {
    const int64_t place = place_of(view, j);
    const double got = value_at(p->got[i], view->dtype, place), want = value_at(p->want[i], view->dtype, place);
    if (isfinite(got) && isfinite(want)) {
      apart += (got - want) * (got - want);
      together += got * got + want * want;
    } else if (!(isnan(got) && isnan(want)) && got != want) {
      return INFINITY;
    }
  }
  return together > 0 ? apart / together : 0;
}

/* Bounds are ten times the tests' of whole tensors, since a piece has few elements. Scales and integers do not turn
 * with a rounding of e4m3. */
static double bound_of(const bench_check* check, tdm_dtype dtype) {
  if (dtype == TDM_I32) return 0;
  return dtype == TDM_F32 ? 1e-6 : check->bound;
}

static bool compare_piece(bench_rig* rig, const bench_check* check, int32_t index, double* worst, char* why,
                          size_t why_bytes) {
  piece p = {.check = check};
  cut(&p, index);
  download(rig, &p);
  bool fine = run_reference(&p) == TDM_OK;
  if (!fine) (void)snprintf(why, why_bytes, "the reference: %s", tdm_last_error()->message);
  for (int32_t i = 0; fine && i < check->op->n_operands; i++) {
    if (!p.got[i]) continue;
    const double d = difference(&p, i), bound = bound_of(check, operand(&p, i)->dtype);
    if (!(d <= *worst)) *worst = d;
    if (d <= bound) continue;
    (void)snprintf(why, why_bytes, "%s of piece %d differs from the reference by %.1e (bound %.0e)",
                   check->op->operands[i].name, index, d, bound);
    fine = false;
  }
  release(&p);
  return fine;
}

bool bench_compare_result(bench_rig* rig, const bench_check* check, double* out_difference, char* out_why,
                          size_t why_bytes) {
  bool cut_at_all = false;
  for (int32_t i = 0; i < BENCH_AXES; i++) cut_at_all |= check->units[i] > 1;
  *out_difference = 0;
  for (int32_t i = 0; i < (cut_at_all ? PIECES : 1); i++)
    if (!compare_piece(rig, check, i, out_difference, out_why, why_bytes)) return false;
  return true;
}
