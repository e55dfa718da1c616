#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tandem/trace.h"
#include "tests/support/heap.h"
#include "tests/support/probe.h"
#include "tests/support/rig.h"

enum { STEPS = 6 };

typedef struct traced {
  test_heap heap;
  tdm_runtime* runtime;
  tdm_lane* lanes[2];
  tdm_program* program;
} traced;

static tdm_lane* get_lane(tdm_runtime* runtime, const char* name) {
  tdm_lane_config config;
  tdm_lane* lane;
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = name;
  cr_assert_eq(tdm_lane_get(runtime, &config, &lane), TDM_OK);
  return lane;
}

/* Steps on two lanes in turn, each reading what the one before wrote, 2 ms long. */
static void open_traced(traced* t, bool trace) {
  *t = (traced){.heap = TEST_HEAP_INIT};
  tdm_runtime_config config;
  tdm_seal_config seal;
  tdm_view temps[2];
  cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
  config.host_allocator = test_heap_allocator(&t->heap);
  cr_assert_eq(tdm_runtime_create(&config, &t->runtime), TDM_OK);
  t->lanes[0] = get_lane(t->runtime, "main");
  t->lanes[1] = get_lane(t->runtime, "a<b&c>d");
  cr_assert_eq(tdm_program_create(t->runtime, "traced", &t->program), TDM_OK);
  for (int i = 0; i < 2; i++)
    cr_assert_eq(tdm_program_temp(t->program, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]), TDM_OK);
  for (int i = 0; i < STEPS; i++) {
    const probe_args args = {.size = sizeof args, .read0 = temps[i % 2], .write0 = temps[1 - i % 2], .nap_us = 2000};
    cr_assert_eq(tdm_program_append(t->program, t->lanes[i % 2], &probe_op, i ? "s\"<&>" : "first", &args), TDM_OK);
  }
  cr_assert_eq(tdm_seal_config_init(&seal, sizeof seal), TDM_OK);
  seal.trace = trace;
  cr_assert_eq(tdm_program_seal(t->program, &seal), TDM_OK);
}

static void close_traced(traced* t) {
  tdm_program_destroy(t->program);
  cr_assert_eq(tdm_runtime_destroy(t->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(t->heap.outstanding, 0);
}

typedef struct text {
  char* data;
  size_t bytes;
} text;

static void collect(void* ctx, const char* piece, size_t bytes) {
  text* t = ctx;
  t->data = realloc(t->data, t->bytes + bytes + 1);
  memcpy(t->data + t->bytes, piece, bytes);
  t->bytes += bytes;
  t->data[t->bytes] = 0;
}

Test(trace, events_follow_the_schedule) {
  traced t;
  tdm_trace_event events[STEPS + 1];
  int64_t n;
  open_traced(&t, true);
  test_expect_failure("before a launch", tdm_program_get_trace(t.program, events, STEPS, &n), TDM_INVALID_STATE,
                      "'traced'|not run");
  for (int round = 0; round < 2; round++) {
    cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
    memset(events, 0xff, sizeof events);
    cr_assert_eq(tdm_program_get_trace(t.program, events, STEPS - 1, &n), TDM_OK);
    cr_assert_eq(n, STEPS);
    cr_assert_eq(events[STEPS - 1].step, -1, "more was copied than there is room for");
    cr_assert_eq(tdm_program_get_trace(t.program, events, STEPS + 1, &n), TDM_OK);
    cr_assert_eq(events[0].resident_ns, 0);
    for (int i = 0; i < STEPS; i++) {
      cr_assert(events[i].step == i && events[i].lane == i % 2 && events[i].sm == i % 2 && events[i].launch == 0);
      cr_assert_leq(events[i].resident_ns, events[i].begin_ns);
      cr_assert_geq(events[i].end_ns, events[i].begin_ns + 2000000, "step %d", i);
      if (i) cr_assert_geq(events[i].begin_ns, events[i - 1].end_ns, "step %d began before its signaler ended", i);
    }
  }
  close_traced(&t);
}

Test(trace, json_is_json) {
  traced t;
  text out = {0};
  open_traced(&t, true);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  cr_assert_eq(tdm_program_write_trace(t.program, TDM_TRACE_JSON, collect, &out), TDM_OK);
  json_error_t error;
  json_t* root = json_loads(out.data, JSON_REJECT_DUPLICATES, &error);
  cr_assert_not_null(root, "%s: %s", error.text, out.data);
  const json_t* list = json_object_get(root, "traceEvents");
  size_t index, spans = 0, names = 0;
  json_t* event;
  json_array_foreach((json_t*)(uintptr_t)list, index, event) {
    const char* kind = json_string_value(json_object_get(event, "ph"));
    names += strcmp(kind, "M") == 0;
    if (strcmp(kind, "X") != 0) continue;
    cr_assert_str_eq(json_string_value(json_object_get(event, "name")), spans ? "s\"<&>" : "first");
    cr_assert_geq(json_real_value(json_object_get(event, "dur")), 2000.0);
    spans++;
  }
  cr_assert(spans == STEPS && names == 2, "%d spans, %d names", (int)spans, (int)names);
  json_decref(root);
  free(out.data);
  close_traced(&t);
}

Test(trace, svg_has_a_bar_a_step) {
  traced t;
  text out = {0};
  open_traced(&t, true);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  cr_assert_eq(tdm_program_write_trace(t.program, TDM_TRACE_SVG, collect, &out), TDM_OK);
  cr_assert(strncmp(out.data, "<svg ", 5) == 0 && strcmp(out.data + out.bytes - 7, "</svg>\n") == 0);
  int bars = 0;
  for (const char* at = out.data; (at = strstr(at, "<rect ")); at++) bars++;
  cr_assert_eq(bars, 1 + STEPS + 2 + STEPS, "%d: a background, a bar a step, a frame a lane, a legend", bars);
  cr_assert_not_null(strstr(out.data, "a&lt;b&amp;c&gt;d"), "names are not escaped");
  cr_assert_null(strstr(out.data, "a<b"));
  free(out.data);
  close_traced(&t);
}

Test(trace, says_what_is_wrong) {
  traced t;
  text out = {0};
  tdm_trace_event event;
  int64_t n = 7;
  open_traced(&t, false);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  test_expect_failure("not traced", tdm_program_get_trace(t.program, &event, 1, &n), TDM_INVALID_STATE,
                      "'traced'|trace");
  cr_assert_eq(n, 0);
  test_expect_failure("not traced", tdm_program_write_trace(t.program, TDM_TRACE_SVG, collect, &out), TDM_INVALID_STATE,
                      "'traced'|trace");
  close_traced(&t);
  open_traced(&t, true);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  test_expect_failure("NULL", tdm_program_get_trace(NULL, &event, 1, &n), TDM_INVALID_ARGUMENT, "program");
  test_expect_failure("no count", tdm_program_get_trace(t.program, &event, 1, NULL), TDM_INVALID_ARGUMENT, "out_count");
  test_expect_failure("no events", tdm_program_get_trace(t.program, NULL, 1, &n), TDM_INVALID_ARGUMENT,
                      "capacity of 1");
  test_expect_failure("negative", tdm_program_get_trace(t.program, &event, -1, &n), TDM_INVALID_ARGUMENT, "-1");
  test_expect_failure("no write", tdm_program_write_trace(t.program, TDM_TRACE_SVG, NULL, NULL), TDM_INVALID_ARGUMENT,
                      "write");
  test_expect_failure("format", tdm_program_write_trace(t.program, (tdm_trace_format)3, collect, &out),
                      TDM_INVALID_ARGUMENT, "format 3");
  close_traced(&t);
}
