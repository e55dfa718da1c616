#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "tandem/tandem.h"
#include "tests/support/heap.h"
#include "tests/support/probe.h"
#include "tests/support/rig.h"

typedef struct bench {
  test_heap host, device;
  tdm_runtime *runtime, *other;
  tdm_lane *main_lane, *side_lane, *other_lane;
  tdm_program* program;
  tdm_view a, b; /* temporaries of 64 bytes */
} bench;

static tdm_lane* lane_of(tdm_runtime* runtime, const char* name) {
  tdm_lane_config config;
  tdm_lane* lane;
  tdm_lane_config_init(&config, sizeof config);
  config.name = name;
  cr_assert_eq(tdm_lane_get(runtime, &config, &lane), TDM_OK);
  return lane;
}

static void bench_open(bench* t) {
  *t = (bench){.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
  tdm_runtime_config config;
  tdm_runtime_config_init(&config, sizeof config);
  config.host_allocator = test_heap_allocator(&t->host);
  config.device_allocator = test_heap_allocator(&t->device);
  cr_assert_eq(tdm_runtime_create(&config, &t->runtime), TDM_OK);
  cr_assert_eq(tdm_runtime_create(NULL, &t->other), TDM_OK);
  t->main_lane = lane_of(t->runtime, "main");
  t->side_lane = lane_of(t->runtime, "side");
  t->other_lane = lane_of(t->other, "main");
  cr_assert_eq(tdm_program_create(t->runtime, "test", &t->program), TDM_OK);
  cr_assert_eq(tdm_program_temp(t->program, "a", TDM_U8, 1, (int64_t[]){64}, &t->a), TDM_OK);
  cr_assert_eq(tdm_program_temp(t->program, "b", TDM_U8, 1, (int64_t[]){64}, &t->b), TDM_OK);
}

static void bench_close(bench* t) {
  tdm_program_destroy(t->program);
  cr_assert_eq(tdm_runtime_destroy(t->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_runtime_destroy(t->other), TDM_OK);
  cr_assert_eq(t->host.outstanding, 0, "%d blocks of host memory leaked", (int)t->host.outstanding);
  cr_assert_eq(t->host.bytes, 0);
  cr_assert_eq(t->device.outstanding, 0);
}

static tdm_status append(bench* t, const char* label, const probe_args* args) {
  return tdm_program_append(t->program, t->main_lane, &probe_op, label, args);
}

Test(program, refuses_bad_views) {
  bench t;
  bench_open(&t);
  tdm_buffer *buffer, *foreign;
  tdm_program* second;
  tdm_view other_temp;
  cr_assert_eq(tdm_buffer_create(t.runtime, 64, &buffer), TDM_OK);
  cr_assert_eq(tdm_buffer_create(t.other, 64, &foreign), TDM_OK);
  cr_assert_eq(tdm_program_create(t.runtime, "second", &second), TDM_OK);
  cr_assert_eq(tdm_program_temp(second, "c", TDM_U8, 1, (int64_t[]){64}, &other_temp), TDM_OK);
  const tdm_view good = tdm_view_make(buffer, TDM_U8, 1, (int64_t[]){64});
  tdm_view bad[12];
  for (size_t i = 0; i < 12; i++) bad[i] = good;
  bad[0].dtype = (tdm_dtype)77;
  bad[1].rank = 0;
  bad[2].rank = 5;
  bad[3].shape[0] = 0;
  bad[4].shape[0] = -5;
  bad[5].stride[0] = -1;
  bad[6].shape[0] = 65;
  bad[7].offset_bytes = 1;
  bad[8].offset_bytes = -16;
  bad[9].stride[0] = INT64_MAX;
  bad[10].buffer = foreign;
  bad[11] = other_temp;
  static const char* const words[12] = {
      "dtype 77", "rank 0",    "rank 5",      "extent 0",        "extent -5",      "stride -1", "65 of a buffer of 64",
      "byte 65",  "-16 bytes", "overflow 64", "another runtime", "another program"};
  for (size_t i = 0; i < 12; i++) {
    const probe_args args = {.size = sizeof args, .read0 = bad[i]};
    test_expect_failure(words[i], append(&t, "step", &args), TDM_INVALID_ARGUMENT, words[i]);
    test_expect_failure(words[i], append(&t, "step", &args), TDM_INVALID_ARGUMENT, "step 'step'|probe: read0");
  }
  tdm_view half = good;
  half.dtype = TDM_F32;
  half.shape[0] = 4;
  half.offset_bytes = 2;
  const probe_args misaligned = {.size = sizeof misaligned, .read0 = half};
  test_expect_failure("misaligned", append(&t, "step", &misaligned), TDM_INVALID_ARGUMENT, "offset of 2 bytes|4-byte");
  tdm_program_info info = {.size = sizeof info};
  cr_assert_eq(tdm_program_get_info(t.program, &info), TDM_OK);
  cr_assert_eq(info.steps, 0, "a failed append leaves no step");
  cr_assert_eq(info.lanes, 0, "a failed append leaves no lane");
  tdm_program_destroy(second);
  tdm_buffer_destroy(buffer);
  tdm_buffer_destroy(foreign);
  bench_close(&t);
}

Test(program, refuses_bad_calls) {
  bench t;
  bench_open(&t);
  const probe_args good = {.size = sizeof good, .write0 = t.a};
  probe_args bad_size = good;
  bad_size.size = sizeof bad_size + 1;
  tdm_view view;
  tdm_program* program;
  static const char long_text[] = "0123456789012345678901234567890123456789012345678901234567890123456789";
  test_expect_failure("NULL program", tdm_program_append(NULL, t.main_lane, &probe_op, "s", &good),
                      TDM_INVALID_ARGUMENT, "program");
  test_expect_failure("NULL lane", tdm_program_append(t.program, NULL, &probe_op, "s", &good), TDM_INVALID_ARGUMENT,
                      "lane");
  test_expect_failure("NULL args", append(&t, "s", NULL), TDM_INVALID_ARGUMENT, "args");
  test_expect_failure("foreign lane", tdm_program_append(t.program, t.other_lane, &probe_op, "s", &good),
                      TDM_INVALID_ARGUMENT, "lane 'main'|another runtime");
  test_expect_failure("args.size", append(&t, "s", &bad_size), TDM_INVALID_ARGUMENT, "args.size");
  test_expect_failure("empty label", append(&t, "", &good), TDM_INVALID_ARGUMENT, "label");
  test_expect_failure("long label", append(&t, long_text, &good), TDM_INVALID_ARGUMENT, "63 characters");
  test_expect_failure("long name", tdm_program_create(t.runtime, long_text, &program), TDM_INVALID_ARGUMENT,
                      "63 characters");
  cr_assert_null(program);
  test_expect_failure("rank 0", tdm_program_temp(t.program, "x", TDM_U8, 0, (int64_t[]){1}, &view),
                      TDM_INVALID_ARGUMENT, "rank 0");
  test_expect_failure("dtype", tdm_program_temp(t.program, "x", (tdm_dtype)0, 1, (int64_t[]){1}, &view),
                      TDM_INVALID_ARGUMENT, "dtype 0");
  test_expect_failure("no tokens", tdm_program_temp(t.program, "x", TDM_U8, 1, (int64_t[]){0}, &view),
                      TDM_INVALID_ARGUMENT, "extent 0");
  test_expect_failure("huge", tdm_program_temp(t.program, "x", TDM_F32, 2, (int64_t[]){1ll << 40, 1ll << 40}, &view),
                      TDM_INVALID_ARGUMENT, "too large");
  test_expect_failure("scales", tdm_program_temp_scales(t.program, "x", 3, 130, &view), TDM_INVALID_ARGUMENT,
                      "130 columns");
  test_expect_failure("scales", tdm_program_temp_scales(t.program, "x", 0, 128, &view), TDM_INVALID_ARGUMENT, "0 rows");
  test_expect_failure("find", tdm_program_find(t.program, "nothing", &view), TDM_INVALID_ARGUMENT, "'nothing'");
  cr_assert_null(view.buffer);
  view = t.a;
  view.buffer = NULL;
  test_expect_failure("keep", tdm_program_keep(t.program, &view), TDM_INVALID_ARGUMENT, "no temporary");
  bench_close(&t);
}

Test(program, refuses_the_wrong_order_of_calls) {
  bench t;
  bench_open(&t);
  const probe_args good = {.size = sizeof good, .write0 = t.a};
  tdm_view view;
  uint8_t byte;
  int32_t count;
  test_expect_failure("seal without steps", tdm_program_seal(t.program, NULL), TDM_INVALID_STATE, "no steps");
  cr_assert_eq(append(&t, "s", &good), TDM_OK);
  test_expect_failure("launch before seal", tdm_program_launch(t.program, NULL), TDM_INVALID_STATE, "sealed before");
  test_expect_failure("waits before seal", tdm_program_get_waits(t.program, NULL, 0, &count), TDM_INVALID_STATE,
                      "before");
  test_expect_failure("read before seal", tdm_buffer_read(t.a.buffer, 0, &byte, 1), TDM_INVALID_STATE,
                      "before its program");
  cr_assert_null(tdm_program_workspace(t.program));
  cr_assert_eq(tdm_program_seal(t.program, NULL), TDM_OK);
  test_expect_failure("seal twice", tdm_program_seal(t.program, NULL), TDM_INVALID_STATE, "sealed already");
  test_expect_failure("append after seal", append(&t, "s", &good), TDM_INVALID_STATE, "sealed already");
  test_expect_failure("temp after seal", tdm_program_temp(t.program, "x", TDM_U8, 1, (int64_t[]){1}, &view),
                      TDM_INVALID_STATE, "sealed");
  test_expect_failure("keep after seal", tdm_program_keep(t.program, &t.a), TDM_INVALID_STATE, "sealed");
  tdm_launch_config config;
  tdm_launch_config_init(&config, sizeof config);
  config.order = (tdm_order)4;
  test_expect_failure("order", tdm_program_launch(t.program, &config), TDM_INVALID_ARGUMENT, "order 4");
  config.order = TDM_ORDER_LANES;
  config.stream = &t;
  test_expect_failure("stream", tdm_program_launch(t.program, &config), TDM_INVALID_ARGUMENT, "stream");
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  bench_close(&t);
}

Test(program, lays_out_in_a_given_workspace) {
  bench t;
  bench_open(&t);
  const probe_args first = {.size = sizeof first, .write0 = t.a},
                   second = {.size = sizeof second, .read0 = t.a, .write0 = t.b};
  cr_assert_eq(append(&t, "first", &first), TDM_OK);
  cr_assert_eq(append(&t, "second", &second), TDM_OK);
  tdm_buffer *small, *enough;
  cr_assert_eq(tdm_buffer_create(t.runtime, 511, &small), TDM_OK);
  cr_assert_eq(tdm_buffer_create(t.runtime, 512, &enough), TDM_OK);
  tdm_seal_config config;
  tdm_seal_config_init(&config, sizeof config);
  config.workspace = small;
  test_expect_failure("too small", tdm_program_seal(t.program, &config), TDM_INVALID_ARGUMENT, "512 bytes|511");
  config.workspace = enough;
  cr_assert_eq(tdm_program_seal(t.program, &config), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_program_workspace(t.program), enough);
  tdm_buffer_destroy(enough); /* the program keeps it */
  tdm_buffer_destroy(small);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  bench_close(&t);
}

/* Two steps on two lanes fail; the first in program order is reported, whichever ran first, and what depends on it is
 * not run. */
Test(program, reports_the_first_failure) {
  static const tdm_order orders[] = {TDM_ORDER_LANES, TDM_ORDER_SERIAL, TDM_ORDER_SHUFFLED};
  for (int run = 0; run < 60; run++) {
    bench t;
    bench_open(&t);
    tdm_buffer* witness;
    cr_assert_eq(tdm_buffer_create(t.runtime, 64, &witness), TDM_OK);
    const tdm_view seen = tdm_view_make(witness, TDM_U8, 1, (int64_t[]){64});
    const probe_args ok = {.size = sizeof ok, .salt = 1, .write0 = t.a};
    const probe_args fails = {.size = sizeof fails, .salt = 2, .read0 = t.a, .write0 = t.b, .fails = TDM_TIMEOUT};
    const probe_args later = {.size = sizeof later, .salt = 3, .fails = TDM_INTERNAL};
    const probe_args depends = {.size = sizeof depends, .salt = 4, .read0 = t.b, .write0 = seen};
    cr_assert_eq(tdm_program_append(t.program, t.main_lane, &probe_op, "ok", &ok), TDM_OK);
    cr_assert_eq(tdm_program_append(t.program, t.main_lane, &probe_op, "fails", &fails), TDM_OK);
    cr_assert_eq(tdm_program_append(t.program, t.side_lane, &probe_op, "later", &later), TDM_OK);
    cr_assert_eq(tdm_program_append(t.program, t.side_lane, &probe_op, "depends", &depends), TDM_OK);
    cr_assert_eq(tdm_program_seal(t.program, NULL), TDM_OK);
    tdm_launch_config config;
    tdm_launch_config_init(&config, sizeof config);
    config.order = orders[run % 3];
    config.seed = (uint64_t)run;
    const tdm_status status = tdm_program_launch(t.program, &config);
    if (config.order != TDM_ORDER_SHUFFLED) /* one step at a time: whichever comes first ends the run */
      test_expect_failure("first", status, TDM_TIMEOUT, "program 'test'|step 1 'fails'|probe 2 fails");
    else
      cr_assert_neq(status, TDM_OK);
    uint8_t bytes[64], zeros[64] = {0};
    cr_assert_eq(tdm_buffer_read(witness, 0, bytes, 64), TDM_OK);
    cr_assert_arr_eq(bytes, zeros, 64, "a step that depends on the failed one was run");
    tdm_buffer_destroy(witness);
    bench_close(&t);
  }
}

/* Buffers and the program's maker may go first. */
Test(program, keeps_what_it_uses) {
  bench t;
  bench_open(&t);
  tdm_buffer* buffer;
  cr_assert_eq(tdm_buffer_create(t.runtime, 64, &buffer), TDM_OK);
  const probe_args args = {.size = sizeof args, .update = tdm_view_make(buffer, TDM_U8, 1, (int64_t[]){64})};
  cr_assert_eq(append(&t, "s", &args), TDM_OK);
  tdm_buffer_destroy(buffer);
  cr_assert_eq(tdm_program_seal(t.program, NULL), TDM_OK);
  tdm_graph* graph;
  cr_assert_eq(tdm_graph_capture(t.program, &graph), TDM_OK);
  tdm_program_destroy(t.program);
  t.program = NULL;
  cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  tdm_graph_destroy(graph);
  bench_close(&t);
}

typedef struct text {
  char bytes[16384];
  size_t length;
} text;

static void append_text(void* ctx, const char* bytes, size_t count) {
  text* all = ctx;
  cr_assert_lt(all->length + count, sizeof all->bytes);
  memcpy(all->bytes + all->length, bytes, count);
  all->length += count;
}

Test(program, prints_itself) {
  bench t;
  bench_open(&t);
  const probe_args first = {.size = sizeof first, .write0 = t.a, .scratch_bytes = 1000};
  const probe_args second = {.size = sizeof second, .read0 = t.a, .write0 = t.b};
  const probe_args third = {.size = sizeof third, .read0 = t.b, .update = t.a};
  cr_assert_eq(tdm_program_append(t.program, t.main_lane, &probe_op, "first", &first), TDM_OK);
  cr_assert_eq(tdm_program_append(t.program, t.side_lane, &probe_op, "second \"q\"", &second), TDM_OK);
  cr_assert_eq(tdm_program_append(t.program, t.main_lane, &probe_op, "third", &third), TDM_OK);
  static text before, after, dot;
  cr_assert_eq(tdm_program_print(t.program, TDM_PRINT_TEXT, append_text, &before), TDM_OK);
  cr_assert(strstr(before.bytes, "not sealed"));
  cr_assert_eq(tdm_program_seal(t.program, NULL), TDM_OK);
  cr_assert_eq(tdm_program_print(t.program, TDM_PRINT_TEXT, append_text, &after), TDM_OK);
  static const char* const words[] = {"3 steps on 2 lanes, 2 waits",
                                      "lane 'side'",
                                      "first",
                                      "third",
                                      "waits for 0",
                                      "waits for 1",
                                      "reads  read0",
                                      "writes write0",
                                      "both   update",
                                      "u8 [64] in 'a'",
                                      "scratch 1000 B",
                                      "steps 0 .. 2"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    cr_assert(strstr(after.bytes, words[i]), "'%s' is missing in\n%s", words[i], after.bytes);
  cr_assert_eq(tdm_program_print(t.program, TDM_PRINT_DOT, append_text, &dot), TDM_OK);
  static const char* const dot_words[] = {"digraph \"test\"",      "subgraph cluster_1",   "second \\\"q\\\"",
                                          "s0 -> s2 [style=bold]", "s0 -> s1 [color=red]", "s1 -> s2 [color=red]"};
  for (size_t i = 0; i < sizeof dot_words / sizeof *dot_words; i++)
    cr_assert(strstr(dot.bytes, dot_words[i]), "'%s' is missing in\n%s", dot_words[i], dot.bytes);
  test_expect_failure("format", tdm_program_print(t.program, (tdm_print_format)3, append_text, &dot),
                      TDM_INVALID_ARGUMENT, "format 3");
  test_expect_failure("write", tdm_program_print(t.program, TDM_PRINT_TEXT, NULL, &dot), TDM_INVALID_ARGUMENT, "write");
  bench_close(&t);
}

/* Everything from runtime to replay with the n-th allocation failing, for every n: a status, no leak, and what was made
 * before the failure still works. */
static tdm_status make_all(test_heap* host, test_heap* device) {
  tdm_runtime_config config;
  tdm_runtime* runtime;
  TDM_TRY(tdm_runtime_config_init(&config, sizeof config));
  config.host_allocator = test_heap_allocator(host);
  config.device_allocator = test_heap_allocator(device);
  TDM_TRY(tdm_runtime_create(&config, &runtime));
  tdm_program* program = NULL;
  tdm_graph* graph = NULL;
  tdm_buffer* buffer = NULL;
  tdm_lane* lanes[2];
  tdm_view temps[3];
  tdm_status status = TDM_OK;
  tdm_lane_config lane;
  tdm_lane_config_init(&lane, sizeof lane);
  for (int i = 0; i < 2 && status == TDM_OK; i++) {
    lane.name = i ? "side" : "main";
    status = tdm_lane_get(runtime, &lane, &lanes[i]);
  }
  if (status == TDM_OK) status = tdm_buffer_create(runtime, 64, &buffer);
  if (status == TDM_OK) status = tdm_program_create(runtime, "all", &program);
  for (int i = 0; i < 3 && status == TDM_OK; i++)
    status = tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]);
  for (int i = 0; i < 20 && status == TDM_OK; i++) {
    const probe_args args = {.size = sizeof args,
                             .read0 = tdm_view_make(buffer, TDM_U8, 1, (int64_t[]){64}),
                             .read1 = temps[i % 3],
                             .update = temps[(i + 1) % 3],
                             .scratch_bytes = 100};
    status = tdm_program_append(program, lanes[i % 2], &probe_op, "step", &args);
  }
  if (status == TDM_OK) status = tdm_program_seal(program, NULL);
  if (status == TDM_OK) status = tdm_graph_capture(program, &graph);
  if (status == TDM_OK) status = tdm_graph_replay(graph, NULL);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  tdm_buffer_destroy(buffer);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK, "%s", tdm_last_error()->message);
  return status;
}

Test(program, survives_every_allocation_failure) {
  for (int which = 0; which < 2; which++)
    for (int64_t n = 1;; n++) {
      test_heap heaps[2] = {TEST_HEAP_INIT, TEST_HEAP_INIT};
      test_heap_fail_at(&heaps[which], n);
      const tdm_status status = make_all(&heaps[0], &heaps[1]);
      for (int i = 0; i < 2; i++) {
        cr_assert_eq(heaps[i].outstanding, 0, "failure %d of heap %d leaks %d blocks", (int)n, which,
                     (int)heaps[i].outstanding);
        cr_assert_eq(heaps[i].bytes, 0);
      }
      if (status == TDM_OK) {
        cr_assert_gt(n, which ? 2 : 50, "heap %d: the failures were not met", which);
        break;
      }
      cr_assert_eq(status, TDM_OUT_OF_MEMORY, "failure %d: %s", (int)n, tdm_status_name(status));
    }
}

/* A seal that fails leaves the program as it was, ready to be sealed again. */
Test(program, a_failed_seal_changes_nothing) {
  bench t;
  bench_open(&t);
  const probe_args first = {.size = sizeof first, .write0 = t.a, .scratch_bytes = 10};
  cr_assert_eq(append(&t, "first", &first), TDM_OK);
  for (int64_t n = 1;; n++) {
    test_heap_fail_at(&t.host, n);
    if (tdm_program_seal(t.program, NULL) == TDM_OK) break;
    cr_assert_eq(tdm_last_error()->status, TDM_OUT_OF_MEMORY);
  }
  test_heap_fail_at(&t.host, 0);
  cr_assert_eq(tdm_program_launch(t.program, NULL), TDM_OK);
  bench_close(&t);
}
