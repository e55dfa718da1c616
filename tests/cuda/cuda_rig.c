#include "tests/cuda/cuda_rig.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#include "runtime/program.h"

static void count_warnings(void* ctx, tdm_log_level level, const char* line) {
  cuda_rig* rig = ctx;
  (void)line;
  rig->warnings += level == TDM_LOG_WARNING;
}

tdm_runtime_config cuda_rig_config(cuda_rig* rig) {
  tdm_runtime_config config;
  cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
  config.device_kind = TDM_DEVICE_CUDA;
  config.host_allocator = test_heap_allocator(&rig->host);
  config.log = count_warnings;
  config.log_ctx = rig;
  return config;
}

void cuda_rig_open(cuda_rig* rig) {
  *rig = (cuda_rig){.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
  const tdm_runtime_config config = cuda_rig_config(rig);
  cr_assert_eq(tdm_runtime_create(&config, &rig->runtime), TDM_OK, "%s", tdm_last_error()->message);
}

void cuda_rig_expect_clean(const char* where) {
  const fake_live live = fake_cuda_live();
  cr_assert_eq(fake_cuda_left(), 0,
               "%s: left are %d references to the context, %d streams, %d events, %d pools, %d libraries, %d green "
               "contexts, %d graphs, %d executable graphs, %d blocks, %d pushed contexts",
               where, live.contexts, live.streams, live.events, live.pools, live.libraries, live.greens, live.graphs,
               live.execs, live.blocks, live.pushed);
  cr_assert_eq(fake_cuda_breaches(), 0, "%s: %d breaches: %s", where, fake_cuda_breaches(), fake_cuda_breach());
}

void cuda_rig_close(cuda_rig* rig) {
  cr_assert_eq(tdm_runtime_destroy(rig->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(rig->host.outstanding, 0, "%d blocks of host memory left", (int)rig->host.outstanding);
  cr_assert_eq(rig->host.bytes, 0);
  cr_assert_eq(rig->device.outstanding, 0, "%d blocks of the caller's device memory left",
               (int)rig->device.outstanding);
  cuda_rig_expect_clean("closing");
}

static tdm_lane* get_lane(cuda_rig* rig, const char* name, tdm_lane_kind kind, int32_t sms, int32_t partition) {
  tdm_lane_config config;
  tdm_lane* lane;
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = name;
  config.kind = kind;
  config.sms = sms;
  config.partition = partition;
  cr_assert_eq(tdm_lane_get(rig->runtime, &config, &lane), TDM_OK, "%s", tdm_last_error()->message);
  return lane;
}

tdm_lane* cuda_rig_lane(cuda_rig* rig, const char* name, tdm_lane_kind kind, int32_t sms) {
  return get_lane(rig, name, kind, sms, 0);
}

tdm_lane* cuda_rig_green(cuda_rig* rig, const char* name, int32_t partition, int32_t sms) {
  return get_lane(rig, name, TDM_LANE_GREEN, sms, partition);
}

CUstream cuda_rig_stream(const tdm_lane* lane) {
  return ((tdm_cuda_lane*)lane->state)->stream;
}

static tdm_status encode_probe(const void* args, const tdm_plan* plan, const tdm_encode_env* env,
                               tdm_encoded_step* out_step) {
  const probe_args* probe = args;
  (void)plan;
  (void)env;
  if (probe->fails != TDM_OK) return TDM_FAIL(probe->fails, "probe %d fails as asked", (int)probe->salt);
  const tdm_kernel_launch launch = {.kernel = "tdm_fill_sm90", .grid = (uint32_t)probe->salt + 1, .block = 32};
  return tdm_encoded_step_add(out_step, &launch, probe, sizeof *probe);
}

const tdm_op cuda_probe_op = {.name = "probe",
                              .args_bytes = sizeof(probe_args),
                              .operands = probe_operands,
                              .n_operands = PROBE_READS + PROBE_WRITES + 1,
                              .check = probe_check,
                              .plan = probe_plan,
                              .ref = probe_ref,
                              .encode = encode_probe};

/* ---- judging ---------------------------------------------------------------------------------------------------- */

static tdm_status no_tensor_map(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  (void)ctx;
  (void)tile;
  *out_map = (tdm_tensor_map){0};
  return TDM_OK;
}

tdm_encoded_step* cuda_rig_encode(const tdm_program* program) {
  tdm_encoded_step* steps = aligned_alloc(64, (uint32_t)program->n_steps * sizeof *steps);
  for (int64_t i = 0; i < program->n_steps; i++) {
    const tdm_step* step = &program->steps[i];
    const tdm_encode_env env = {.sms = tdm_lane_sms(program->lanes[step->lane]), .tensor_map = no_tensor_map};
    steps[i].n_launches = 0;
    cr_assert_eq(step->op->encode(step->args, &step->plan, &env, &steps[i]), TDM_OK, "%s", tdm_last_error()->message);
  }
  return steps;
}

typedef struct place {
  int first, last; /* launches of a step */
} place;

static void match_launches(const char* name, const tdm_program* program, const cuda_issue* issue, place* places) {
  tdm_encoded_step* steps = cuda_rig_encode(program);
  int at = issue->begin;
  for (int64_t i = 0; i < program->n_steps; i++) {
    const tdm_step* step = &program->steps[i];
    const CUstream stream = issue->serial ? issue->origin : cuda_rig_stream(program->lanes[step->lane]);
    for (int k = 0; k < steps[i].n_launches; k++, at++) {
      const tdm_encoded_launch* wanted = &steps[i].launches[k];
      while (at < issue->end && issue->ops[at].kind != FAKE_LAUNCH) at++;
      cr_assert_lt(at, issue->end, "%s: step %d '%s' is not launched", name, (int)i, step->label);
      const fake_op* got = &issue->ops[at];
      cr_assert_str_eq(got->kernel, wanted->launch.kernel, "%s: step %d '%s'", name, (int)i, step->label);
      cr_assert(got->stream == stream, "%s: step %d '%s' is on another stream", name, (int)i, step->label);
      cr_assert(got->grid == wanted->launch.grid && got->block == wanted->launch.block &&
                    got->shared == wanted->launch.shared_bytes,
                "%s: step %d '%s' has grid %u, block %u, %u bytes of shared memory", name, (int)i, step->label,
                got->grid, got->block, got->shared);
      if (step->op != &cuda_probe_op)
        cr_assert_eq(got->params_bytes, wanted->params_bytes + sizeof(tdm_step_sync),
                     "%s: %s takes %zu bytes of parameters, is given %zu", name, got->kernel, got->params_bytes,
                     wanted->params_bytes + sizeof(tdm_step_sync));
      if (k == 0) places[i].first = at;
      places[i].last = at;
    }
  }
  while (at < issue->end && issue->ops[at].kind != FAKE_LAUNCH) at++;
  cr_assert_eq(at, issue->end, "%s: there are more launches than steps have", name);
  free(steps);
}

static void judge_order(const char* name, const tdm_program* program, const cuda_issue* issue, const place* places) {
  const tdm_schedule* schedule = &program->schedule;
  for (int a = 0; a < program->n_steps; a++)
    for (int b = a + 1; b < program->n_steps; b++) {
      const bool wanted = issue->serial || tdm_schedule_ordered(schedule, program->lane_of, a, b);
      cr_assert_eq(fake_cuda_ordered(issue->ops, places[a].last, places[b].first), wanted,
                   "%s: steps %d and %d are %sordered", name, a, b, wanted ? "not " : "");
    }
}

/* What comes in front of an issue is done before every step, and every step before what comes after it. */
static void judge_ends(const char* name, const tdm_program* program, const cuda_issue* issue, const place* places) {
  int first = -1, last = -1;
  for (int i = issue->begin; i < issue->end; i++) {
    if (issue->ops[i].stream != issue->origin) continue;
    if (first < 0) first = i;
    last = i;
  }
  cr_assert_geq(first, 0, "%s: nothing is on the origin", name);
  for (int i = 0; i < program->n_steps; i++) {
    cr_assert(first == places[i].first || fake_cuda_ordered(issue->ops, first, places[i].first),
              "%s: step %d does not come after the fork", name, i);
    cr_assert(last == places[i].last || fake_cuda_ordered(issue->ops, places[i].last, last),
              "%s: step %d does not join", name, i);
  }
}

/* The step whose start this one waits for, or -1. */
static int starts_after(const tdm_program* program, const cuda_issue* issue, int step) {
  const int earlier = program->steps[step].starts_after;
  const tdm_lane *lane = program->lanes[program->lane_of[step]], *other = program->lanes[program->lane_of[earlier]];
  const bool shared = lane != other && lane->info.kind != TDM_LANE_GREEN && other->info.kind != TDM_LANE_GREEN;
  return shared && !issue->serial ? earlier : -1;
}

/* Right before a launch whose start is waited for comes its record, and the waiter comes after that. */
static int judge_starts(const char* name, const tdm_program* program, const cuda_issue* issue, const place* places) {
  int starts = 0;
  for (int i = 0; i < program->n_steps; i++) {
    const int earlier = starts_after(program, issue, i);
    if (earlier < 0) continue;
    const int record = places[earlier].first - 1;
    cr_assert(issue->ops[record].kind == FAKE_RECORD && issue->ops[record].stream == issue->ops[record + 1].stream,
              "%s: the start of step %d is not recorded", name, earlier);
    cr_assert(fake_cuda_ordered(issue->ops, record, places[i].first), "%s: step %d may start before step %d", name, i,
              earlier);
    starts++;
  }
  return starts;
}

/* `starts`: steps that wait for another's start, each for one of its own. */
static void judge_counts(const char* name, const tdm_program* program, const cuda_issue* issue, int starts) {
  const tdm_schedule* schedule = &program->schedule;
  int last[TDM_MAX_LANES] = {0}, forks = 0, joins = 0, signalers = 0, records = 0, waits = 0;
  bool* signals = calloc((uint32_t)program->n_steps, sizeof *signals);
  for (int i = 0; i < program->n_steps; i++) {
    last[program->lane_of[i]] = i;
    forks += schedule->position[i] == 0 && schedule->wait_begin[i] == schedule->wait_begin[i + 1];
  }
  for (int i = 0; i < schedule->n_waits; i++) signals[schedule->signalers[i]] = true;
  for (int i = 0; i < program->n_steps; i++) signalers += signals[i];
  for (int lane = 0; lane < program->n_lanes; lane++) {
    bool implied = false;
    for (int other = 0; other < program->n_lanes; other++)
      implied = implied || (other != lane && tdm_schedule_ordered(schedule, program->lane_of, last[lane], last[other]));
    joins += !implied;
  }
  for (int i = issue->begin; i < issue->end; i++) {
    records += issue->ops[i].kind == FAKE_RECORD;
    waits += issue->ops[i].kind == FAKE_WAIT;
  }
  free(signals);
  const int wanted_records = issue->callers + (issue->serial ? 0 : 1 + signalers + joins + starts);
  const int wanted_waits = issue->serial ? 0 : forks + schedule->n_waits + joins + starts;
  cr_assert(records == wanted_records && waits == wanted_waits, "%s: %d records and %d waits, %d and %d would do", name,
            records, waits, wanted_records, wanted_waits);
}

/* A launch may begin early exactly where the stream's last operation is a launch of the same issue. */
static void judge_overlaps(const char* name, const cuda_issue* issue) {
  for (int i = issue->begin; i < issue->end; i++) {
    if (issue->ops[i].kind != FAKE_LAUNCH) continue;
    bool follows = false;
    for (int k = issue->begin; k < i; k++)
      if (issue->ops[k].stream == issue->ops[i].stream && issue->ops[k].kind != FAKE_RECORD)
        follows = issue->ops[k].kind == FAKE_LAUNCH;
    cr_assert_eq(issue->ops[i].overlaps, follows, "%s: launch of %s, operation %d", name, issue->ops[i].kernel, i);
  }
}

void cuda_rig_judge(const char* name, const tdm_program* program, const cuda_issue* issue) {
  place* places = calloc((uint32_t)program->n_steps, sizeof *places);
  match_launches(name, program, issue, places);
  judge_order(name, program, issue, places);
  judge_ends(name, program, issue, places);
  judge_counts(name, program, issue, judge_starts(name, program, issue, places));
  judge_overlaps(name, issue);
  free(places);
}
