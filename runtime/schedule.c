#include "runtime/schedule.h"

#include <string.h>

/* Uses that a later step may conflict with, newest last, by address space. A write replaces what it covers: whoever
 * meets the replaced use also meets the write, and the write waits for the replaced use. */
typedef struct live_uses {
  tdm_runtime* runtime;
  int32_t* next;  /* [n_uses] the next older live use of the same space, -1 at the end */
  int32_t* heads; /* [n_spaces] newest live use, -1 when none; space s is at s + 1 */
  int32_t n_spaces;
  int64_t n_uses;
} live_uses;

static bool columns_meet(const tdm_use* band, uint64_t begin, uint64_t end) {
  return begin < band->column + band->width && band->column < end;
}

/* A band and plain bytes [begin, end) within its ends. */
static bool band_meets(const tdm_use* band, uint64_t begin, uint64_t end) {
  if (end - begin >= band->pitch) return true;
  const uint64_t column = begin % band->pitch, past = column + (end - begin);
  if (past <= band->pitch) return columns_meet(band, column, past);
  return columns_meet(band, column, band->pitch) || columns_meet(band, 0, past - band->pitch);
}

/* Exact but for two bands of different pitch and for uses that are not solid: these count as meeting. */
static bool overlap(const tdm_use* a, const tdm_use* b) {
  const uint64_t begin = a->begin > b->begin ? a->begin : b->begin, end = a->end < b->end ? a->end : b->end;
  if (begin >= end) return false;
  if (a->pitch && b->pitch) return a->pitch != b->pitch || columns_meet(a, b->column, b->column + b->width);
  if (a->pitch || b->pitch) return band_meets(a->pitch ? a : b, begin, end);
  return true;
}

static bool covers(const tdm_use* outer, const tdm_use* inner) {
  if (!outer->solid || outer->begin > inner->begin || inner->end > outer->end) return false;
  if (!outer->pitch) return true;
  return outer->pitch == inner->pitch && outer->column <= inner->column &&
         inner->column + inner->width <= outer->column + outer->width;
}

/* A dimension that moves the address: extent > 1. */
typedef struct moving_dim {
  uint64_t stride, extent;
} moving_dim;

/* The view's moving dimensions, ascending by stride. */
static int32_t sorted_dims(const tdm_view* view, moving_dim dims[TDM_MAX_RANK]) {
  const uint64_t element = tdm_dtype_bytes(view->dtype);
  int32_t n = 0;
  for (int32_t dim = 0; dim < view->rank; dim++) {
    if (view->shape[dim] == 1) continue;
    const moving_dim one = {.stride = (uint64_t)view->stride[dim] * element, .extent = (uint64_t)view->shape[dim]};
    int32_t at = n++;
    for (; at > 0 && dims[at - 1].stride > one.stride; at--) dims[at] = dims[at - 1];
    dims[at] = one;
  }
  return n;
}

void tdm_use_describe(const tdm_view* view, uint64_t buffer_address, tdm_use* out_use) {
  moving_dim dims[TDM_MAX_RANK];
  const int32_t n = sorted_dims(view, dims);
  out_use->begin = buffer_address + (uint64_t)view->offset_bytes;
  out_use->end = out_use->begin + tdm_view_span_bytes(view);
  out_use->pitch = out_use->column = out_use->width = 0;
  out_use->solid = true;
  /* The run of touching bytes at the inside, then the dimensions that repeat it. */
  uint64_t run = tdm_dtype_bytes(view->dtype);
  int32_t outer = 0;
  for (; outer < n && dims[outer].stride <= run; outer++) run += (dims[outer].extent - 1) * dims[outer].stride;
  if (outer == n) return;
  const uint64_t pitch = dims[outer].stride;
  uint64_t next = pitch;
  for (int32_t i = outer; i < n; i++) {
    if (dims[i].stride % pitch != 0) { /* no band: all that is known are the ends */
      out_use->solid = false;
      return;
    }
    out_use->solid = out_use->solid && dims[i].stride == next;
    next = dims[i].stride * dims[i].extent;
  }
  out_use->column = out_use->begin % pitch;
  if (out_use->column + run > pitch) { /* the run wraps around the pitch */
    out_use->column = 0;
    out_use->solid = false;
    return;
  }
  out_use->pitch = pitch;
  out_use->width = run;
}

/* needs[lane] = place + 1 of the last step of that lane that `use` conflicts with. */
static void collect_needs(const live_uses* live, const tdm_use* uses, const tdm_use* use, const int32_t* lane_of,
                          const int32_t* position, int32_t* needs) {
  for (int32_t i = live->heads[use->space + 1]; i >= 0; i = live->next[i]) {
    const tdm_use* other = &uses[i];
    if (other->step == use->step || !overlap(use, other) || (use->access == TDM_READ && other->access == TDM_READ))
      continue;
    const int32_t lane = lane_of[other->step];
    if (needs[lane] < position[other->step] + 1) needs[lane] = position[other->step] + 1;
  }
}

static void add_use(live_uses* live, const tdm_use* uses, int32_t index) {
  const tdm_use* use = &uses[index];
  int32_t* link = &live->heads[use->space + 1];
  if (use->access != TDM_READ) {
    while (*link >= 0) {
      const tdm_use* other = &uses[*link];
      if (other->step != use->step && covers(use, other))
        *link = live->next[*link];
      else
        link = &live->next[*link];
    }
    link = &live->heads[use->space + 1];
  }
  live->next[index] = *link;
  *link = index;
}

/* Fills in the waits of `step`, given what it needs of each lane, and its clock. */
static void place_waits(tdm_schedule* schedule, int32_t step, int32_t lane, int32_t previous, const int32_t* needs,
                        int32_t* const* steps_of) {
  const int32_t n_lanes = schedule->n_lanes;
  int32_t* clock = schedule->clock + (int64_t)step * n_lanes;
  if (previous >= 0) memcpy(clock, schedule->clock + (int64_t)previous * n_lanes, (size_t)n_lanes * sizeof *clock);
  int32_t wanted[TDM_MAX_LANES]; /* lanes with something to wait for that the step before does not imply */
  int32_t n_wanted = 0;
  for (int32_t other = 0; other < n_lanes; other++)
    if (other != lane && needs[other] > clock[other]) wanted[n_wanted++] = other;
  for (int32_t i = 0; i < n_wanted; i++) {
    bool implied = false; /* by another wait of this step; two waits never imply each other, since steps are ordered */
    for (int32_t k = 0; k < n_wanted && !implied; k++) {
      const int32_t signaler = steps_of[wanted[k]][needs[wanted[k]] - 1];
      implied = k != i && schedule->clock[(int64_t)signaler * n_lanes + wanted[i]] >= needs[wanted[i]];
    }
    if (!implied) schedule->signalers[schedule->n_waits++] = steps_of[wanted[i]][needs[wanted[i]] - 1];
  }
  for (int32_t i = schedule->wait_begin[step]; i < schedule->n_waits; i++) {
    const int32_t* theirs = schedule->clock + (int64_t)schedule->signalers[i] * n_lanes;
    for (int32_t other = 0; other < n_lanes; other++)
      if (clock[other] < theirs[other]) clock[other] = theirs[other];
  }
  clock[lane] = schedule->position[step] + 1;
  schedule->wait_begin[step + 1] = schedule->n_waits;
}

static int64_t max_waits(int32_t n_steps, int32_t n_lanes) {
  return (int64_t)n_steps * (n_lanes > 1 ? n_lanes - 1 : 1);
}

static void live_free(live_uses* live) {
  tdm_host_free(live->runtime, live->next, (size_t)live->n_uses * sizeof *live->next);
  tdm_host_free(live->runtime, live->heads, (size_t)live->n_spaces * sizeof *live->heads);
}

static tdm_status live_make(tdm_runtime* runtime, const tdm_use* uses, int64_t n_uses, live_uses* out_live) {
  *out_live = (live_uses){.runtime = runtime, .n_spaces = 1, .n_uses = n_uses};
  for (int64_t i = 0; i < n_uses; i++)
    if (uses[i].space + 2 > out_live->n_spaces) out_live->n_spaces = uses[i].space + 2;
  out_live->next = tdm_host_alloc_array(runtime, n_uses, sizeof *out_live->next);
  out_live->heads = tdm_host_alloc_array(runtime, out_live->n_spaces, sizeof *out_live->heads);
  if ((n_uses && !out_live->next) || !out_live->heads) {
    live_free(out_live);
    return TDM_OUT_OF_MEMORY;
  }
  for (int32_t i = 0; i < out_live->n_spaces; i++) out_live->heads[i] = -1;
  return TDM_OK;
}

static tdm_status derive(tdm_runtime* runtime, const int32_t* lane_of, const tdm_use* uses, int64_t n_uses,
                         int32_t* by_lane, tdm_schedule* schedule) {
  const int32_t n_steps = schedule->n_steps, n_lanes = schedule->n_lanes;
  live_uses live;
  TDM_TRY(live_make(runtime, uses, n_uses, &live));
  /* by_lane: the steps of lane 0, then those of lane 1, ... */
  int32_t length[TDM_MAX_LANES] = {0};
  int32_t* steps_of[TDM_MAX_LANES];
  for (int32_t step = 0; step < n_steps; step++) length[lane_of[step]]++;
  for (int32_t lane = 0, begin = 0; lane < n_lanes; begin += length[lane++]) {
    steps_of[lane] = by_lane + begin;
  }
  memset(length, 0, sizeof length);
  int64_t use = 0;
  for (int32_t step = 0; step < n_steps; step++) {
    const int32_t lane = lane_of[step];
    const int32_t previous = length[lane] ? steps_of[lane][length[lane] - 1] : -1;
    schedule->position[step] = length[lane];
    steps_of[lane][length[lane]++] = step;
    int32_t needs[TDM_MAX_LANES] = {0};
    const int64_t first = use;
    for (; use < n_uses && uses[use].step == step; use++)
      collect_needs(&live, uses, &uses[use], lane_of, schedule->position, needs);
    for (int64_t i = first; i < use; i++) add_use(&live, uses, (int32_t)i);
    place_waits(schedule, step, lane, previous, needs, steps_of);
  }
  live_free(&live);
  return TDM_OK;
}

tdm_status tdm_schedule_make(tdm_runtime* runtime, int32_t n_steps, const int32_t* lane_of, int32_t n_lanes,
                             const tdm_use* uses, int64_t n_uses, tdm_schedule* out_schedule) {
  tdm_schedule schedule = {.n_steps = n_steps, .n_lanes = n_lanes};
  schedule.position = tdm_host_alloc_array(runtime, n_steps, sizeof(int32_t));
  schedule.clock = tdm_host_alloc_array(runtime, (int64_t)n_steps * n_lanes, sizeof(int32_t));
  schedule.wait_begin = tdm_host_alloc_array(runtime, (int64_t)n_steps + 1, sizeof(int32_t));
  schedule.signalers = tdm_host_alloc_array(runtime, max_waits(n_steps, n_lanes), sizeof(int32_t));
  int32_t* by_lane = tdm_host_alloc_array(runtime, n_steps, sizeof(int32_t));
  tdm_status status = TDM_OUT_OF_MEMORY;
  if (schedule.position && schedule.clock && schedule.wait_begin && schedule.signalers && by_lane)
    status = derive(runtime, lane_of, uses, n_uses, by_lane, &schedule);
  tdm_host_free(runtime, by_lane, (size_t)n_steps * sizeof(int32_t));
  if (status != TDM_OK) {
    tdm_schedule_free(runtime, &schedule);
    return status;
  }
  *out_schedule = schedule;
  return TDM_OK;
}

void tdm_schedule_free(tdm_runtime* runtime, tdm_schedule* schedule) {
  const size_t n_steps = (size_t)schedule->n_steps, word = sizeof(int32_t);
  tdm_host_free(runtime, schedule->position, n_steps * word);
  tdm_host_free(runtime, schedule->clock, n_steps * (size_t)schedule->n_lanes * word);
  tdm_host_free(runtime, schedule->wait_begin, (n_steps + 1) * word);
  tdm_host_free(runtime, schedule->signalers, (size_t)max_waits(schedule->n_steps, schedule->n_lanes) * word);
  *schedule = (tdm_schedule){0};
}

bool tdm_schedule_ordered(const tdm_schedule* schedule, const int32_t* lane_of, int32_t a, int32_t b) {
  if (a == b) return false;
  return schedule->clock[(int64_t)b * schedule->n_lanes + lane_of[a]] > schedule->position[a];
}
