#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "runtime/program.h"
#include "runtime/step_sync.h"
#include "tests/cuda/cuda_rig.h"
#include "tests/support/rig.h"

/* How programs become launches, events and graphs. */

enum { LANES = 4, TEMPS = 6 };

typedef struct shape {
  const char* name;
  int lanes, steps;
  uint64_t seed;
  bool signals; /* waits by signal, on green lanes */
} shape;

static uint64_t draw(uint64_t* seed) {
  return *seed = probe_mix(*seed, 7);
}

/* Steps on lanes drawn at random, each with up to two reads and one write of temporaries drawn at random. */
static tdm_program* make_program(cuda_rig* rig, const shape* s) {
  const bool green = s->signals;
  tdm_lane* lanes[LANES] = {
      green ? cuda_rig_lane(rig, "g3", TDM_LANE_GREEN, 32) : cuda_rig_lane(rig, "main", TDM_LANE_WHOLE, 0),
      cuda_rig_lane(rig, "g1", TDM_LANE_GREEN, 16), cuda_rig_lane(rig, "g2", TDM_LANE_GREEN, 24),
      green ? cuda_rig_lane(rig, "g4", TDM_LANE_GREEN, 8) : cuda_rig_lane(rig, "soft", TDM_LANE_SOFT, 8)};
  tdm_program* program;
  tdm_view temps[TEMPS];
  uint64_t seed = s->seed;
  cr_assert_eq(tdm_program_create(rig->runtime, s->name, &program), TDM_OK);
  for (int i = 0; i < TEMPS; i++)
    cr_assert_eq(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]), TDM_OK);
  for (int i = 0; i < s->steps; i++) {
    char label[32];
    probe_args args = {.size = sizeof args, .salt = (uint64_t)i, .write0 = temps[draw(&seed) % TEMPS]};
    if (draw(&seed) % 4) args.read0 = temps[draw(&seed) % TEMPS];
    if (draw(&seed) % 4 == 0) args.read1 = temps[draw(&seed) % TEMPS];
    snprintf(label, sizeof label, "s%d", i);
    const int lane = (int)(draw(&seed) % (uint64_t)s->lanes);
    cr_assert_eq(tdm_program_append(program, lanes[lane], &cuda_probe_op, label, &args), TDM_OK, "%s",
                 tdm_last_error()->message);
  }
  tdm_seal_config seal;
  cr_assert_eq(tdm_seal_config_init(&seal, sizeof seal), TDM_OK);
  if (s->signals) seal.wait_form = TDM_WAIT_SIGNAL;
  seal.signal_limit_ms = 250;
  cr_assert_eq(tdm_program_seal(program, &seal), TDM_OK, "%s", tdm_last_error()->message);
  return program;
}

static tdm_status launch(tdm_program* program, tdm_order order, CUstream stream) {
  tdm_launch_config config;
  cr_assert_eq(tdm_launch_config_init(&config, sizeof config), TDM_OK);
  config.order = order;
  config.stream = stream;
  return tdm_program_launch(program, &config);
}

static const shape shapes[] = {{"one step", 1, 1, 1, false},    {"one lane", 1, 9, 2, false},
                               {"two lanes", 2, 12, 3, false},  {"three lanes", 3, 15, 4, false},
                               {"four lanes", 4, 20, 5, false}, {"few steps", 4, 4, 6, false},
                               {"many steps", 4, 60, 7, false}, {"other draws", 4, 20, 8, false},
                               {"and others", 3, 20, 9, false}, {"and yet others", 2, 30, 10, false}};

static void judge_eager(const shape* s) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, s);
  const CUstream own = tdm_cuda_of(rig.runtime)->stream;
  for (int round = 0; round < 2; round++) { /* the second time all events have been recorded before */
    for (int serial = 0; serial < 2; serial++) {
      fake_cuda_forget();
      cr_assert_eq(launch(program, serial ? TDM_ORDER_SERIAL : TDM_ORDER_LANES, NULL), TDM_OK, "%s",
                   tdm_last_error()->message);
      cuda_issue issue = {.origin = own, .serial = serial};
      issue.ops = fake_cuda_ops(&issue.end);
      cuda_rig_judge(s->name, program, &issue);
    }
  }
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

Test(issue, eager_launches_follow_the_schedule) {
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) judge_eager(&shapes[i]);
}

static void judge_captured(const shape* s) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, s);
  tdm_graph* graph;
  fake_cuda_forget();
  cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK, "%s", tdm_last_error()->message);
  int n;
  (void)fake_cuda_ops(&n);
  cr_assert_eq(n, 0, "%s: capturing ran %d things", s->name, n);
  cuda_issue issue = {.origin = tdm_cuda_of(rig.runtime)->capture};
  issue.ops = fake_cuda_captured(&issue.end);
  cuda_rig_judge(s->name, program, &issue);
  cr_assert_eq(fake_cuda_live().graphs, 0, "%s: the captured graph is kept beside the executable one", s->name);
  tdm_program_destroy(program); /* the graph keeps it */
  for (int round = 0; round < 2; round++) cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  const fake_op* ops = fake_cuda_ops(&n);
  cr_assert_eq(n, 2, "%s: two replays are %d driver calls", s->name, n);
  for (int i = 0; i < n; i++) cr_assert(ops[i].kind == FAKE_GRAPH && ops[i].stream == tdm_cuda_of(rig.runtime)->stream);
  tdm_graph_destroy(graph);
  cuda_rig_close(&rig);
}

Test(issue, captures_follow_the_schedule) {
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) judge_captured(&shapes[i]);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */

static const shape signal_shapes[] = {{"one step", 1, 1, 1, true},    {"one lane", 1, 9, 2, true},
                                      {"two lanes", 2, 12, 3, true},  {"three lanes", 3, 15, 4, true},
                                      {"four lanes", 4, 20, 5, true}, {"many steps", 4, 60, 7, true}};

/* The epoch first, on the origin; then the steps in program order, each told what the schedule says: to wait for the
 * signals of exactly its signalers, and to give one of its own exactly if somebody waits for it. All lanes fork and
 * join, and nothing else is recorded or waited for. */
static void judge_signals(const char* name, const tdm_program* program, const fake_op* ops, int n, CUstream origin,
                          bool serial) {
  const tdm_schedule* schedule = &program->schedule;
  int32_t signal_of[64], step = 0, records = 0, waits = 0, last_signal = -1;
  const bool signals = schedule->n_waits > 0;
  cr_assert_eq(ops[0].kind == FAKE_LAUNCH && ops[0].grid == 1 && strcmp(ops[0].kernel, "tdm_epoch_sm90") == 0, signals,
               "%s: does not begin as it should", name);
  if (signals) cr_assert(ops[0].stream == origin && !ops[0].overlaps, "%s: the epoch begins elsewhere", name);
  for (int i = signals; i < n; i++) {
    records += ops[i].kind == FAKE_RECORD;
    waits += ops[i].kind == FAKE_WAIT;
    if (ops[i].kind != FAKE_LAUNCH) continue;
    const tdm_step_sync* sync = &ops[i].sync;
    bool wanted = false;
    cr_assert_eq(sync->board != NULL, signals, "%s: step %d", name, step);
    for (int32_t k = 0; k < schedule->n_waits; k++) wanted = wanted || schedule->signalers[k] == step;
    signal_of[step] = signals ? sync->publishes : -1;
    cr_assert_eq(signal_of[step] >= 0, wanted, "%s: step %d gives signal %d", name, step, signal_of[step]);
    if (wanted) {
      cr_assert_gt(signal_of[step], last_signal, "%s: step %d gives another's signal", name, step);
      last_signal = signal_of[step];
    }
    const int32_t begin = schedule->wait_begin[step];
    cr_assert_eq(sync->n_waits, schedule->wait_begin[step + 1] - begin, "%s: step %d", name, step);
    for (int32_t k = 0; k < sync->n_waits; k++)
      cr_assert_eq(sync->waits[k], signal_of[schedule->signalers[begin + k]], "%s: step %d, wait %d", name, step, k);
    const bool first = schedule->position[step] == 0;
    cr_assert_eq(ops[i].overlaps, serial ? step > 0 : !first, "%s: step %d", name, step);
    step++;
  }
  cr_assert_eq(step, program->n_steps, "%s", name);
  if (signals) {
    const int lanes = program->n_lanes;
    cr_assert(records == (serial ? 0 : 1 + lanes) && waits == (serial ? 0 : 2 * lanes),
              "%s: %d records and %d waits for %d lanes", name, records, waits, lanes);
  }
}

Test(issue, signals_follow_the_schedule) {
  for (size_t i = 0; i < sizeof signal_shapes / sizeof *signal_shapes; i++) {
    const shape* s = &signal_shapes[i];
    cuda_rig rig;
    cuda_rig_open(&rig);
    tdm_program* program = make_program(&rig, s);
    tdm_graph* graph;
    int n;
    const CUstream own = tdm_cuda_of(rig.runtime)->stream;
    for (int serial = 0; serial < 2; serial++) {
      fake_cuda_forget();
      cr_assert_eq(launch(program, serial ? TDM_ORDER_SERIAL : TDM_ORDER_LANES, NULL), TDM_OK, "%s",
                   tdm_last_error()->message);
      const fake_op* ops = fake_cuda_ops(&n);
      judge_signals(s->name, program, ops, n, own, serial);
    }
    cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK, "%s", tdm_last_error()->message);
    const fake_op* ops = fake_cuda_captured(&n);
    judge_signals(s->name, program, ops, n, tdm_cuda_of(rig.runtime)->capture, false);
    tdm_graph_destroy(graph);
    tdm_program_destroy(program);
    cuda_rig_close(&rig);
  }
}

/* Probes of a kernel that admits the next one late, and of one that reads read0 ahead. */
static tdm_status encode_late(const void* args, const tdm_plan* plan, const tdm_encode_env* env,
                              tdm_encoded_step* out_step) {
  const tdm_status status = cuda_probe_op.encode(args, plan, env, out_step);
  out_step->launches[out_step->n_launches - 1].launch.admits_late = true;
  return status;
}

/* The same twice, of which the first writes. */
static tdm_status encode_settled(const void* args, const tdm_plan* plan, const tdm_encode_env* env,
                                 tdm_encoded_step* out_step) {
  TDM_TRY(cuda_probe_op.encode(args, plan, env, out_step));
  return encode_late(args, plan, env, out_step);
}

/* Steps, on one of two lanes, read one temporary and write another. */
typedef struct ahead_step {
  int lane, reads, writes; /* -1: nothing */
  bool late, ahead, settled;
} ahead_step;

typedef struct ahead_case {
  const char* name;
  ahead_step steps[4];
  int n_steps;
  bool last_reads_ahead;
} ahead_case;

static const ahead_case ahead_cases[] = {
    {"written before the late step", {{0, -1, 0, 0, 0, 0}, {0, 0, 1, 1, 0, 0}, {0, 0, 2, 0, 1, 0}}, 3, true},
    {"written by nobody", {{0, -1, 1, 1, 0, 0}, {0, 3, 2, 0, 1, 0}}, 2, true},
    {"written by the late step", {{0, -1, 0, 1, 0, 0}, {0, 0, 2, 0, 1, 0}}, 2, false},
    {"written by the late step before its last launch", {{0, -1, 0, 1, 0, 1}, {0, 0, 2, 0, 1, 0}}, 2, true},
    {"written before its last launch by a step that is not the last",
     {{0, -1, 0, 1, 0, 1}, {0, -1, 1, 1, 0, 0}, {0, 0, 2, 0, 1, 0}},
     3,
     true},
    {"the step before is not late", {{0, -1, 0, 0, 0, 0}, {0, 0, 1, 0, 0, 0}, {0, 0, 2, 0, 1, 0}}, 3, false},
    {"the late step is on another lane", {{0, -1, 0, 0, 0, 0}, {1, 0, 1, 1, 0, 0}, {0, 0, 2, 0, 1, 0}}, 3, false},
    {"another lane's step is between",
     {{0, -1, 0, 0, 0, 0}, {0, 0, 1, 1, 0, 0}, {1, -1, 3, 0, 0, 0}, {0, 0, 2, 0, 1, 0}},
     4,
     false},
    {"the late step has not waited for the writer",
     {{1, -1, 0, 0, 0, 0}, {0, -1, 1, 1, 0, 0}, {0, 0, 2, 0, 1, 0}},
     3,
     false},
    {"the late step has waited for the other lane's writer",
     {{1, -1, 0, 0, 0, 0}, {0, 0, 1, 1, 0, 0}, {0, 0, 2, 0, 1, 0}},
     3,
     true},
    {"nothing is before", {{0, 0, 2, 0, 1, 0}}, 1, false},
    {"nothing is meant to be read ahead", {{0, -1, 0, 0, 0, 0}, {0, -1, 1, 1, 0, 0}, {0, 0, 2, 0, 0, 0}}, 3, true},
};

static void judge_ahead(const ahead_case* c) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_operand operands[PROBE_READS + PROBE_WRITES + 1], written[PROBE_READS + PROBE_WRITES + 1];
  memcpy(operands, probe_operands, sizeof operands);
  memcpy(written, probe_operands, sizeof written);
  operands[0].ahead = true;
  written[PROBE_READS].ahead = true;
  tdm_op late = cuda_probe_op, ahead = cuda_probe_op, settled = cuda_probe_op;
  late.encode = encode_late;
  ahead.operands = operands;
  settled.encode = encode_settled;
  settled.operands = written;
  tdm_lane* const lanes[2] = {cuda_rig_lane(&rig, "main", TDM_LANE_WHOLE, 0),
                              cuda_rig_lane(&rig, "soft", TDM_LANE_SOFT, 8)};
  tdm_program* program;
  tdm_view temps[4];
  cr_assert_eq(tdm_program_create(rig.runtime, c->name, &program), TDM_OK);
  for (int i = 0; i < 4; i++)
    cr_assert_eq(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temps[i]), TDM_OK);
  for (int i = 0; i < c->n_steps; i++) {
    const ahead_step* step = &c->steps[i];
    probe_args args = {.size = sizeof args, .salt = (uint64_t)i, .write0 = temps[step->writes]};
    if (step->reads >= 0) args.read0 = temps[step->reads];
    const tdm_op* op = step->settled ? &settled : step->late ? &late : step->ahead ? &ahead : &cuda_probe_op;
    cr_assert_eq(tdm_program_append(program, lanes[step->lane], op, "s", &args), TDM_OK);
  }
  tdm_seal_config seal;
  cr_assert_eq(tdm_seal_config_init(&seal, sizeof seal), TDM_OK);
  cr_assert_eq(tdm_program_seal(program, &seal), TDM_OK, "%s", tdm_last_error()->message);
  for (int serial = 0; serial < 2; serial++) {
    fake_cuda_forget();
    cr_assert_eq(launch(program, serial ? TDM_ORDER_SERIAL : TDM_ORDER_LANES, NULL), TDM_OK);
    int n_ops = 0, last = -1;
    const fake_op* ops = fake_cuda_ops(&n_ops);
    for (int i = 0; i < n_ops; i++)
      if (ops[i].kind == FAKE_LAUNCH) last = i;
    cr_assert_geq(last, 0);
    cr_expect_eq(ops[last].sync.reads_ahead != 0, c->last_reads_ahead, "%s", c->name);
  }
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

/* A step whose kernel begins while the one before still runs may read what that one has waited for. */
Test(issue, reads_ahead_what_the_step_before_has_waited_for) {
  for (size_t i = 0; i < sizeof ahead_cases / sizeof *ahead_cases; i++) judge_ahead(&ahead_cases[i]);
}

Test(issue, signals_need_green_lanes) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program;
  tdm_view temp;
  tdm_seal_config seal;
  tdm_program_info info = {.size = sizeof info};
  tdm_lane* lanes[2] = {cuda_rig_lane(&rig, "g1", TDM_LANE_GREEN, 16), cuda_rig_lane(&rig, "soft8", TDM_LANE_SOFT, 8)};
  cr_assert_eq(tdm_seal_config_init(&seal, sizeof seal), TDM_OK);
  cr_assert_eq(tdm_program_create(rig.runtime, "p", &program), TDM_OK);
  cr_assert_eq(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temp), TDM_OK);
  const probe_args args = {.size = sizeof args, .write0 = temp};
  for (int i = 0; i < 2; i++) cr_assert_eq(tdm_program_append(program, lanes[i], &cuda_probe_op, "s", &args), TDM_OK);
  seal.wait_form = TDM_WAIT_SIGNAL;
  test_expect_failure("soft", tdm_program_seal(program, &seal), TDM_UNSUPPORTED, "'p'|'soft8'|not green|EDGE");
  seal.wait_form = (tdm_wait_form)3;
  test_expect_failure("form", tdm_program_seal(program, &seal), TDM_INVALID_ARGUMENT, "'p'|3");
  seal.wait_form = TDM_WAIT_SIGNAL;
  seal.signal_limit_ms = 0;
  test_expect_failure("limit", tdm_program_seal(program, &seal), TDM_INVALID_ARGUMENT, "'p'|0 ms|600000");
  seal.signal_limit_ms = 600001;
  test_expect_failure("limit", tdm_program_seal(program, &seal), TDM_INVALID_ARGUMENT, "'p'|600001 ms");
  cr_assert_eq(tdm_program_seal(program, NULL), TDM_OK);
  cr_assert_eq(tdm_program_get_info(program, &info), TDM_OK);
  cr_assert_eq(info.wait_form, TDM_WAIT_EDGE);
  tdm_program_destroy(program);
  lanes[1] = cuda_rig_green(&rig, "far", 1, 8);
  cr_assert_eq(tdm_program_create(rig.runtime, "q", &program), TDM_OK);
  cr_assert_eq(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temp), TDM_OK);
  const probe_args again = {.size = sizeof again, .write0 = temp};
  for (int i = 0; i < 2; i++) cr_assert_eq(tdm_program_append(program, lanes[i], &cuda_probe_op, "s", &again), TDM_OK);
  seal.signal_limit_ms = 250;
  test_expect_failure("partitions", tdm_program_seal(program, &seal), TDM_UNSUPPORTED, "'q'|'g1' and 'far'|0 and 1");
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

/* What the device leaves in host memory when a wait gives up is told once, by whichever call comes first. */
Test(issue, a_signal_that_did_not_come_is_told_once) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, &signal_shapes[2]);
  tdm_program* other = make_program(&rig, &signal_shapes[0]);
  tdm_graph* graph;
  tdm_buffer* buffer;
  uint8_t bytes[4];
  cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK);
  cr_assert_eq(tdm_buffer_create(rig.runtime, 4, &buffer), TDM_OK);
  tdm_signal_fault* fault = fake_cuda_pinned();
  const tdm_schedule* schedule = &program->schedule;
  int32_t waiter = 0;
  while (schedule->wait_begin[waiter + 1] == 0) waiter++;
  char words[96];
  snprintf(words, sizeof words, "'two lanes'|launch 7|'s%d'|250 ms|'s%d'|launch 6", waiter, schedule->signalers[0]);
  int32_t signal = 0;
  for (int32_t step = 0; step < schedule->signalers[0]; step++) {
    bool gives = false;
    for (int32_t k = 0; k < schedule->n_waits; k++) gives = gives || schedule->signalers[k] == step;
    signal += gives;
  }
  for (uint32_t way = 0; way < 4; way++) {
    *fault = (tdm_signal_fault){
        .step = (uint32_t)waiter, .signaler = (uint32_t)signal, .epoch = 7, .seen = 6, .count = way + 1};
    cr_assert_eq(launch(other, TDM_ORDER_LANES, NULL), TDM_OK, "another program was told");
    const tdm_status status = way == 0   ? launch(program, TDM_ORDER_LANES, NULL)
                              : way == 1 ? tdm_graph_replay(graph, NULL)
                              : way == 2 ? tdm_runtime_synchronize(rig.runtime)
                                         : tdm_buffer_read(buffer, 0, bytes, sizeof bytes);
    test_expect_failure("told", status, TDM_TIMEOUT, words);
    cr_assert_eq(tdm_runtime_synchronize(rig.runtime), TDM_OK);
    cr_assert_eq(launch(program, TDM_ORDER_LANES, NULL), TDM_OK);
    cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  }
  *fault = (tdm_signal_fault){.step = 1000, .count = 5};
  test_expect_failure("nonsense", tdm_runtime_synchronize(rig.runtime), TDM_INTERNAL, "1000");
  tdm_buffer_destroy(buffer);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  tdm_program_destroy(other);
  cuda_rig_close(&rig);
}

/* ---- streams of the caller's ------------------------------------------------------------------------------------ */

/* What the caller put on its stream before comes before all steps, and all steps before what it puts there next. */
Test(issue, runs_on_the_callers_stream) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, &shapes[4]);
  tdm_graph* graph;
  CUstream stream;
  CUevent event;
  const tdm_cuda* cuda = tdm_cuda_of(rig.runtime);
  cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK);
  cr_assert_eq(tdm_cuda_enter(cuda), TDM_OK);
  cr_assert_eq(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  cr_assert_eq(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
  fake_cuda_forget();
  cr_assert_eq(cuEventRecord(event, stream), CUDA_SUCCESS);
  cr_assert_eq(launch(program, TDM_ORDER_LANES, stream), TDM_OK);
  cuda_issue issue = {.origin = stream, .begin = 1, .callers = true};
  issue.ops = fake_cuda_ops(&issue.end);
  cuda_rig_judge("eager", program, &issue);
  cr_assert_eq(cuEventRecord(event, stream), CUDA_SUCCESS);
  int n;
  const fake_op* ops = fake_cuda_ops(&n);
  for (int i = 1; i + 1 < n; i++)
    if (ops[i].kind == FAKE_LAUNCH)
      cr_assert(fake_cuda_ordered(ops, 0, i) && fake_cuda_ordered(ops, i, n - 1), "launch %d", i);
  tdm_launch_config config;
  cr_assert_eq(tdm_launch_config_init(&config, sizeof config), TDM_OK);
  config.stream = stream;
  cr_assert_eq(tdm_graph_replay(graph, &config), TDM_OK);
  ops = fake_cuda_ops(&n);
  cr_assert(ops[n - 2].kind == FAKE_GRAPH && ops[n - 2].stream == stream);
  cr_assert(ops[n - 1].kind == FAKE_RECORD && ops[n - 1].stream == stream,
            "the program must not go before the replay is done");
  cr_assert_eq(cuEventDestroy(event), CUDA_SUCCESS);
  cr_assert_eq(cuStreamDestroy(stream), CUDA_SUCCESS);
  tdm_cuda_leave(cuda);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

Test(issue, refuses_what_it_cannot_do) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, &shapes[2]);
  tdm_graph* graph;
  tdm_launch_config config;
  cr_assert_eq(tdm_launch_config_init(&config, sizeof config), TDM_OK);
  test_expect_failure("shuffled", launch(program, TDM_ORDER_SHUFFLED, NULL), TDM_UNSUPPORTED, "two lanes|host device");
  cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK);
  config.order = TDM_ORDER_SERIAL;
  test_expect_failure("serial replay", tdm_graph_replay(graph, &config), TDM_UNSUPPORTED, "two lanes|eager");
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

/* A step that cannot be encoded, or whose kernel is in no cubin: seal fails, names it, and can be tried again. */
static tdm_status encode_unknown(const void* args, const tdm_plan* plan, const tdm_encode_env* env,
                                 tdm_encoded_step* out_step) {
  (void)plan;
  (void)env;
  const tdm_kernel_launch launch_of = {.kernel = "no_such_kernel", .grid = 1, .block = 32};
  return tdm_encoded_step_add(out_step, &launch_of, args, sizeof(probe_args));
}

Test(issue, seal_names_the_step_without_a_kernel) {
  tdm_op unknown = cuda_probe_op;
  unknown.encode = encode_unknown;
  const struct {
    const char* name;
    const tdm_op* op;
    tdm_status fails, status;
    const char* words;
  } cases[] = {{"no encode", &probe_op, TDM_OK, TDM_UNSUPPORTED, "step 1 'second'|probe has no kernel"},
               {"no kernel", &unknown, TDM_OK, TDM_UNSUPPORTED, "step 1 'second'|no_such_kernel"},
               {"fails", &cuda_probe_op, TDM_INTERNAL, TDM_INTERNAL, "step 1 'second'|as asked"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cuda_rig rig;
    cuda_rig_open(&rig);
    tdm_program* program;
    tdm_view temp;
    tdm_lane* lane = cuda_rig_lane(&rig, "main", TDM_LANE_WHOLE, 0);
    cr_assert_eq(tdm_program_create(rig.runtime, "p", &program), TDM_OK);
    cr_assert_eq(tdm_program_temp(program, "t", TDM_U8, 1, (int64_t[]){64}, &temp), TDM_OK);
    probe_args args = {.size = sizeof args, .write0 = temp};
    cr_assert_eq(tdm_program_append(program, lane, &cuda_probe_op, "first", &args), TDM_OK);
    args.fails = cases[i].fails;
    cr_assert_eq(tdm_program_append(program, lane, cases[i].op, "second", &args), TDM_OK);
    for (int round = 0; round < 2; round++)
      test_expect_failure(cases[i].name, tdm_program_seal(program, NULL), cases[i].status, cases[i].words);
    tdm_program_destroy(program);
    cuda_rig_close(&rig);
  }
}

/* A launch that fails halfway leaves nothing running that has not joined. */
Test(issue, waits_for_the_lanes_after_a_failure) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_program* program = make_program(&rig, &shapes[4]);
  for (int nth = 2; nth <= shapes[4].steps; nth++) {
    fake_cuda_forget();
    fake_cuda_fail(&(fake_fault){.name = "cuLaunchKernelEx", .nth = nth, .result = CUDA_ERROR_UNKNOWN});
    test_expect_failure("launch", launch(program, TDM_ORDER_LANES, NULL), TDM_CUDA,
                        "program 'four lanes'|step|tdm_fill_sm90|grid|999");
    int n;
    const fake_op* ops = fake_cuda_ops(&n);
    for (int i = 0; i < n; i++) {
      if (ops[i].kind != FAKE_LAUNCH) continue;
      bool waited = false;
      for (int k = i + 1; k < n; k++) waited = waited || (ops[k].kind == FAKE_SYNC && ops[k].stream == ops[i].stream);
      cr_assert(waited, "launch %d fails, and %s of %u blocks goes on", nth, ops[i].kernel, ops[i].grid);
    }
    cr_assert_eq(launch(program, TDM_ORDER_LANES, NULL), TDM_OK);
  }
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}

/* ---- graph caches ----------------------------------------------------------------------------------------------- */

/* Bucket 2 needs more memory than the largest one, whose workspace the others share. */
static tdm_status build_bucket(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal) {
  (void)seal;
  tdm_view temp;
  const int64_t bytes = n_tokens == 2 ? 100000 : 64 * n_tokens;
  TDM_TRY(tdm_program_temp(program, "t", TDM_U8, 1, &bytes, &temp));
  const probe_args args = {.size = sizeof args, .write0 = temp};
  return tdm_program_append(program, ctx, &cuda_probe_op, "step", &args);
}

Test(issue, a_full_device_leaves_other_buckets_usable) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  static const int64_t buckets[] = {1, 2, 4, 8};
  tdm_graph_cache_config config;
  tdm_graph_cache* cache;
  tdm_graph* graph;
  cr_assert_eq(tdm_graph_cache_config_init(&config, sizeof config), TDM_OK);
  config.buckets = buckets;
  config.n_buckets = 4;
  config.build = build_bucket;
  config.ctx = cuda_rig_lane(&rig, "main", TDM_LANE_WHOLE, 0);
  cr_assert_eq(tdm_graph_cache_create(rig.runtime, &config, &cache), TDM_OK, "%s", tdm_last_error()->message);
  fake_cuda_limit_memory(50000);
  test_expect_failure("warm-up", tdm_graph_cache_warm_up(cache), TDM_OUT_OF_MEMORY, "bytes of device memory");
  for (int64_t n = 1; n <= 8; n++) {
    const tdm_status status = tdm_graph_cache_get(cache, n, &graph);
    cr_assert_eq(status, n == 2 ? TDM_OUT_OF_MEMORY : TDM_OK, "%d tokens", (int)n);
    if (status == TDM_OK) cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  }
  fake_cuda_limit_memory(0);
  cr_assert_eq(tdm_graph_cache_warm_up(cache), TDM_OK);
  cr_assert_eq(fake_cuda_live().execs, 4);
  cr_assert_eq(tdm_graph_cache_evict(cache, 2), TDM_OK);
  cr_assert_eq(fake_cuda_live().execs, 3);
  cr_assert_lt(fake_cuda_live().bytes, 100000);
  tdm_graph_cache_destroy(cache);
  cuda_rig_close(&rig);
}

/* ---- several threads -------------------------------------------------------------------------------------------- */

typedef struct worker {
  cuda_rig* rig;
  tdm_program* program;
  int rounds;
  tdm_status status;
  char message[512];
} worker;

static void note(worker* w, tdm_status status) {
  if (status == TDM_OK || w->status != TDM_OK) return;
  w->status = status;
  snprintf(w->message, sizeof w->message, "%s", tdm_last_error()->message);
}

static void* capture_often(void* arg) {
  worker* w = arg;
  for (int i = 0; i < w->rounds; i++) {
    tdm_graph* graph = NULL;
    note(w, tdm_graph_capture(w->program, &graph));
    if (graph) note(w, tdm_graph_replay(graph, NULL));
    tdm_graph_destroy(graph);
    note(w, launch(w->program, TDM_ORDER_LANES, NULL));
  }
  return NULL;
}

static void* allocate_often(void* arg) {
  worker* w = arg;
  for (int i = 0; i < w->rounds; i++) {
    tdm_buffer* buffer = NULL;
    uint8_t bytes[64] = {0};
    note(w, tdm_buffer_create(w->rig->runtime, 64, &buffer));
    if (buffer) {
      note(w, tdm_buffer_write(buffer, 0, bytes, sizeof bytes));
      note(w, tdm_buffer_read(buffer, 0, bytes, sizeof bytes));
    }
    tdm_buffer_destroy(buffer);
    note(w, tdm_runtime_synchronize(w->rig->runtime));
  }
  return NULL;
}

/* A capture must not be disturbed by what other threads do on the runtime meanwhile. */
Test(issue, captures_while_others_allocate) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  worker workers[4];
  pthread_t threads[4];
  tdm_program* program = make_program(&rig, &shapes[6]);
  for (int i = 0; i < 4; i++) {
    workers[i] = (worker){.rig = &rig, .program = program, .rounds = 150};
    cr_assert_eq(pthread_create(&threads[i], NULL, i % 2 ? allocate_often : capture_often, &workers[i]), 0);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    cr_assert_eq(workers[i].status, TDM_OK, "thread %d: %s", i, workers[i].message);
  }
  tdm_program_destroy(program);
  cuda_rig_close(&rig);
}
