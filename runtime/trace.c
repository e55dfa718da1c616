#include "tandem/trace.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device.h"
#include "runtime/program.h"

static tdm_status check_traced(const char* function, const tdm_program* program) {
  if (!program) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: program must not be NULL", function);
  if (!program->sealed || !program->trace)
    return TDM_FAIL(TDM_INVALID_STATE, "%s: program '%s' is not sealed with a trace", function, program->name);
  return TDM_OK;
}

/* Times from the first event on. */
static void rebase(tdm_trace_event* events, int64_t n) {
  uint64_t first = UINT64_MAX;
  for (int64_t i = 0; i < n; i++) {
    /* Two threads of a CTA read the clock: the one that waits for nothing may be the earlier one. */
    if (events[i].resident_ns > events[i].begin_ns) events[i].resident_ns = events[i].begin_ns;
    if (events[i].resident_ns < first) first = events[i].resident_ns;
  }
  for (int64_t i = 0; i < n; i++) {
    events[i].resident_ns -= first;
    events[i].begin_ns -= first;
    events[i].end_ns -= first;
  }
}

/* All events, to be freed with tdm_host_free. */
static tdm_status take_events(tdm_program* program, tdm_trace_event** out_events, int64_t* out_n) {
  tdm_runtime* runtime = program->runtime;
  *out_events = NULL;
  pthread_mutex_lock(&runtime->launch_mutex);
  tdm_status status = runtime->device->trace(program, NULL, out_n);
  if (status == TDM_OK) {
    *out_events = tdm_host_alloc_array(runtime, *out_n, sizeof **out_events);
    status = *out_events ? runtime->device->trace(program, *out_events, out_n) : TDM_OUT_OF_MEMORY;
  }
  pthread_mutex_unlock(&runtime->launch_mutex);
  bool ran = status == TDM_OK;
  for (int64_t i = 0; ran && i < *out_n; i++) ran = (*out_events)[i].end_ns != 0;
  if (status == TDM_OK && !ran)
    status =
        TDM_FAIL(TDM_INVALID_STATE, "program '%s' has left no trace: it has not run to its end yet", program->name);
  if (status == TDM_OK) {
    rebase(*out_events, *out_n);
  } else {
    tdm_host_free(runtime, *out_events, (size_t)*out_n * sizeof **out_events);
    *out_events = NULL;
  }
  return status;
}

tdm_status tdm_program_get_trace(tdm_program* program, tdm_trace_event* events, int64_t capacity, int64_t* out_count) {
  if (out_count) *out_count = 0;
  TDM_TRY(check_traced("tdm_program_get_trace", program));
  if (!out_count || capacity < 0 || (capacity && !events))
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "tdm_program_get_trace: events for a capacity of %lld and out_count must be set",
                    (long long)capacity);
  tdm_trace_event* all;
  int64_t n;
  TDM_TRY(take_events(program, &all, &n));
  if (capacity) memcpy(events, all, (size_t)(n < capacity ? n : capacity) * sizeof *all);
  *out_count = n;
  tdm_host_free(program->runtime, all, (size_t)n * sizeof *all);
  return TDM_OK;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct writer {
  const tdm_program* program;
  const tdm_trace_event* events;
  int64_t n;
  tdm_write_fn write;
  void* ctx;
} writer;

static void print(const writer* out, const char* format, ...) __attribute__((format(printf, 2, 3)));
static void print(const writer* out, const char* format, ...) {
  char text[768];
  va_list args;
  va_start(args, format);
  const int length = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (length > 0) out->write(out->ctx, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

static const char* lane_name(const writer* out, int32_t lane) {
  return tdm_lane_name(out->program->lanes[lane]);
}

static int32_t sm_count(const writer* out) {
  int32_t n = 0;
  for (int64_t i = 0; i < out->n; i++)
    if (out->events[i].sm >= n) n = out->events[i].sm + 1;
  return n;
}

/* The lane whose steps ran on an SM: -1 none, -2 several. */
static void find_lanes(const writer* out, int32_t* lane_of_sm, int32_t n_sms) {
  for (int32_t sm = 0; sm < n_sms; sm++) lane_of_sm[sm] = -1;
  for (int64_t i = 0; i < out->n; i++) {
    int32_t* lane = &lane_of_sm[out->events[i].sm];
    *lane = *lane == -1 || *lane == out->events[i].lane ? out->events[i].lane : -2;
  }
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static int write_piece(const char* text, size_t bytes, void* ctx) {
  const writer* out = ctx;
  out->write(out->ctx, text, bytes);
  return 0;
}

/* Takes `object`; NULL is out of memory. */
static tdm_status put(const writer* out, bool first, json_t* object) {
  int failed = object ? 0 : -1;
  if (object) {
    print(out, first ? "\n" : ",\n");
    failed = json_dump_callback(object, write_piece, (void*)(uintptr_t)out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
  }
  return failed ? TDM_FAIL(TDM_OUT_OF_MEMORY, "no memory to write the trace of program '%s'", out->program->name)
                : TDM_OK;
}

static tdm_status write_json(const writer* out, const int32_t* lane_of_sm, int32_t n_sms) {
  bool first = true;
  print(out, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
  for (int32_t sm = 0; sm < n_sms; sm++) {
    if (lane_of_sm[sm] == -1) continue;
    char name[64];
    const char* lane = lane_of_sm[sm] == -2 ? "several lanes" : lane_name(out, lane_of_sm[sm]);
    snprintf(name, sizeof name, "SM %d, %s", (int)sm, lane);
    TDM_TRY(put(out, first,
                json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name", "thread_name", "ph", "M", "pid", 0, "tid", (int)sm,
                          "args", "name", name)));
    first = false;
  }
  for (int64_t i = 0; i < out->n; i++) {
    const tdm_trace_event* event = &out->events[i];
    const tdm_step* step = &out->program->steps[event->step];
    TDM_TRY(put(out, false,
                json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:{s:i, s:i, s:s, s:f}}", "name", step->label, "cat",
                          lane_name(out, event->lane), "ph", "X", "pid", 0, "tid", (int)event->sm, "ts",
                          (double)event->begin_ns / 1e3, "dur", (double)(event->end_ns - event->begin_ns) / 1e3, "args",
                          "step", (int)event->step, "launch", (int)event->launch, "op", step->op->name, "waited_us",
                          (double)(event->begin_ns - event->resident_ns) / 1e3)));
  }
  print(out, "\n]}\n");
  return TDM_OK;
}

/* ---- SVG -------------------------------------------------------------------------------------------------------- */

enum { LEFT = 96, TOP = 56, WIDTH = 1400, ROW = 5, LEGEND_ROW = 16, LEGEND_COLUMNS = 3 };

/* Hues a golden angle apart: neighbours in the program look unlike each other. */
static int hue(int32_t step) {
  return (int)((int64_t)step * 1375 / 10 % 360);
}

/* The step's colour as #rrggbb, which every viewer knows: 65 % saturated, 55 % light. */
static unsigned colour(int32_t step) {
  const double chroma = 0.585, dark = 0.2575, place = hue(step) / 60.0;
  unsigned rgb = 0;
  for (int i = 0; i < 3; i++) { /* red, green and blue peak at 0, 2 and 4 */
    double away = place > 2.0 * i ? place - 2.0 * i : 2.0 * i - place;
    if (away > 3) away = 6 - away;
    const double share = away <= 1 ? 1 : away >= 2 ? 0 : 2 - away;
    rgb = rgb << 8 | (unsigned)(255 * (dark + chroma * share) + 0.5);
  }
  return rgb;
}

/* CTAs of one launch on one SM: a bar. */
typedef struct bar {
  int32_t sm, step;
  uint64_t begin, end;
} bar;

static int compare_bars(const void* a_, const void* b_) {
  const bar *a = a_, *b = b_;
  if (a->step != b->step) return a->step < b->step ? -1 : 1;
  if (a->sm != b->sm) return a->sm < b->sm ? -1 : 1;
  return (a->begin > b->begin) - (a->begin < b->begin);
}

/* One bar a step and SM, but for gaps; answers how many. */
static int64_t merge_bars(bar* bars, int64_t n) {
  int64_t kept = 0;
  qsort(bars, (size_t)n, sizeof *bars, compare_bars);
  for (int64_t i = 0; i < n; i++) {
    bar* last = kept ? &bars[kept - 1] : NULL;
    if (last && last->step == bars[i].step && last->sm == bars[i].sm && bars[i].begin <= last->end + 100) {
      if (bars[i].end > last->end) last->end = bars[i].end;
    } else {
      bars[kept++] = bars[i];
    }
  }
  return kept;
}

/* Rows by lane, then by SM; SMs without work have none. Answers how many rows there are. */
static int32_t order_rows(const int32_t* lane_of_sm, int32_t n_sms, int32_t n_lanes, int32_t* row_of_sm) {
  int32_t rows = 0;
  for (int32_t lane = -2; lane < n_lanes; lane++)
    for (int32_t sm = 0; sm < n_sms; sm++)
      if (lane_of_sm[sm] == lane && lane != -1) row_of_sm[sm] = rows++;
  return rows;
}

static void print_text(const writer* out, const char* text) {
  for (; *text; text++) {
    switch (*text) {
    case '<':
      print(out, "&lt;");
      break;
    case '>':
      print(out, "&gt;");
      break;
    case '&':
      print(out, "&amp;");
      break;
    default:
      print(out, "%c", *text);
    }
  }
}

/* Where the hardware keeps lanes apart: a frame and a name. */
static void print_lanes(const writer* out, const int32_t* lane_of_sm, const int32_t* row_of_sm, int32_t n_sms) {
  for (int32_t lane = 0; lane < out->program->n_lanes; lane++) {
    int32_t first = INT32_MAX, last = -1;
    for (int32_t sm = 0; sm < n_sms; sm++) {
      if (lane_of_sm[sm] != lane) continue;
      if (row_of_sm[sm] < first) first = row_of_sm[sm];
      if (row_of_sm[sm] > last) last = row_of_sm[sm];
    }
    if (last < 0) continue;
    print(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#222\"/>\n", LEFT,
          TOP + first * ROW, WIDTH, (last - first + 1) * ROW);
    print(out, "<text x=\"4\" y=\"%d\">", TOP + (first + last + 1) * ROW / 2);
    print_text(out, lane_name(out, lane));
    print(out, "</text><text x=\"4\" y=\"%d\">%d SMs</text>\n", TOP + (first + last + 1) * ROW / 2 + 13,
          last - first + 1);
  }
}

static void print_axis(const writer* out, double us, int32_t rows) {
  static const double steps[] = {0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 1e5, 1e6};
  size_t i = 0;
  while (i + 1 < sizeof steps / sizeof *steps && us / steps[i] > 16) i++;
  for (double at = 0; at <= us; at += steps[i]) {
    const double x = LEFT + at / us * WIDTH;
    print(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#ddd\"/>", x, x, TOP - 4, TOP + rows * ROW);
    print(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g \xc2\xb5s</text>\n", x, TOP - 8, at);
  }
}

static void print_legend(const writer* out, int32_t rows) {
  const tdm_program* program = out->program;
  for (int32_t step = 0; step < program->n_steps; step++) {
    uint64_t begin = UINT64_MAX, end = 0;
    for (int64_t i = 0; i < out->n; i++) {
      if (out->events[i].step != step) continue;
      if (out->events[i].begin_ns < begin) begin = out->events[i].begin_ns;
      if (out->events[i].end_ns > end) end = out->events[i].end_ns;
    }
    const int x = LEFT + step % LEGEND_COLUMNS * (WIDTH / LEGEND_COLUMNS);
    const int y = TOP + rows * ROW + 24 + step / LEGEND_COLUMNS * LEGEND_ROW;
    print(out, "<rect x=\"%d\" y=\"%d\" width=\"12\" height=\"12\" fill=\"#%06x\"/><text x=\"%d\" y=\"%d\">", x, y - 10,
          colour(step), x + 18, y);
    print_text(out, program->steps[step].label);
    print(out, " (");
    print_text(out, lane_name(out, program->steps[step].lane));
    print(out, ") %.1f \xc2\xb5s</text>\n", end > begin ? (double)(end - begin) / 1e3 : 0.0);
  }
}

static tdm_status write_svg(const writer* out, const int32_t* lane_of_sm, int32_t n_sms, int32_t* row_of_sm) {
  tdm_runtime* runtime = out->program->runtime;
  bar* bars = tdm_host_alloc_array(runtime, out->n, sizeof *bars);
  if (!bars) return TDM_OUT_OF_MEMORY;
  uint64_t end = 1;
  for (int64_t i = 0; i < out->n; i++) {
    const tdm_trace_event* event = &out->events[i];
    bars[i] = (bar){event->sm, event->step, event->begin_ns, event->end_ns};
    if (event->end_ns > end) end = event->end_ns;
  }
  const int64_t n_bars = merge_bars(bars, out->n);
  const int32_t rows = order_rows(lane_of_sm, n_sms, out->program->n_lanes, row_of_sm);
  const double us = (double)end / 1e3;
  const int legend_rows = (int)((out->program->n_steps + LEGEND_COLUMNS - 1) / LEGEND_COLUMNS);
  print(out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
        "font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text x=\"%d\" y=\"18\" "
        "font-size=\"14\">",
        LEFT + WIDTH + 24, TOP + rows * ROW + 32 + legend_rows * LEGEND_ROW, LEFT);
  print_text(out, out->program->name);
  print(out, ": %d steps, %.1f \xc2\xb5s, a row an SM</text>\n", (int)out->program->n_steps, us);
  print_axis(out, us, rows);
  for (int64_t i = 0; i < n_bars; i++) {
    const double x = LEFT + (double)bars[i].begin / 1e3 / us * WIDTH;
    const double width = (double)(bars[i].end - bars[i].begin) / 1e3 / us * WIDTH;
    print(out, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"#%06x\"/>\n", x,
          TOP + row_of_sm[bars[i].sm] * ROW, width > 0.2 ? width : 0.2, ROW - 1, colour(bars[i].step));
  }
  print_lanes(out, lane_of_sm, row_of_sm, n_sms);
  print_legend(out, rows);
  print(out, "</svg>\n");
  tdm_host_free(runtime, bars, (size_t)out->n * sizeof *bars);
  return TDM_OK;
}

static tdm_status write_events(const writer* out, tdm_trace_format format) {
  tdm_runtime* runtime = out->program->runtime;
  const int32_t n_sms = sm_count(out);
  int32_t* sms = tdm_host_alloc_array(runtime, 2 * (int64_t)n_sms, sizeof *sms);
  if (!sms) return TDM_OUT_OF_MEMORY;
  find_lanes(out, sms, n_sms);
  const tdm_status status =
      format == TDM_TRACE_JSON ? write_json(out, sms, n_sms) : write_svg(out, sms, n_sms, sms + n_sms);
  tdm_host_free(runtime, sms, 2 * (size_t)n_sms * sizeof *sms);
  return status;
}

tdm_status tdm_program_write_trace(tdm_program* program, tdm_trace_format format, tdm_write_fn write, void* ctx) {
  TDM_TRY(check_traced("tdm_program_write_trace", program));
  if (!write) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_write_trace: write must not be NULL");
  if (format != TDM_TRACE_JSON && format != TDM_TRACE_SVG)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_write_trace: format %d is no tdm_trace_format", (int)format);
  tdm_trace_event* events;
  int64_t n;
  TDM_TRY(take_events(program, &events, &n));
  const writer out = {.program = program, .events = events, .n = n, .write = write, .ctx = ctx};
  const tdm_status status = write_events(&out, format);
  tdm_host_free(program->runtime, events, (size_t)n * sizeof *events);
  return status;
}
