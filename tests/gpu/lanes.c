/* Green lanes on the hardware: in replays of a captured graph every lane's CTAs stay on SMs of their own, whether lanes
 * wait by edges or by signals; and a signal that does not come. */

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/cuda/cuda.h"
#include "runtime/kernel.h"
#include "runtime/status.h"
#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"
#include "tests/gpu/smid_params.h"

enum { CTAS = 528, SMS = 256, REPLAYS = 50 };

typedef struct smid_args {
  size_t size;
  tdm_view out;   /* [2 CTAS] i32: SMs, and what `after` held */
  tdm_view after; /* optional, another step's out */
  const int32_t* gate;
} smid_args;

static const tdm_operand operands[] = {TDM_OPERAND(smid_args, out, TDM_WRITE),
                                       TDM_OPTIONAL_OPERAND(smid_args, after, TDM_READ)};

static tdm_status check(void* args) {
  (void)args;
  return TDM_OK;
}

static void plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  (void)args;
  (void)sms;
  (void)out_plan;
}

static tdm_status ref(const void* args, const tdm_plan* step_plan, void* scratch) {
  (void)args;
  (void)step_plan;
  (void)scratch;
  return TDM_FAIL(TDM_UNSUPPORTED, "smid: the host device has no SMs");
}

static tdm_status encode(const void* args_, const tdm_plan* step_plan, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const smid_args* args = args_;
  (void)step_plan;
  (void)env;
  const bool reads = tdm_view_present(&args->after);
  const tdm_test_smid_params params = {.out = tdm_view_data(&args->out),
                                       .cycles = 20000,
                                       .gate = args->gate,
                                       .after = reads ? tdm_view_data(&args->after) : NULL};
  const tdm_kernel_launch launch = {.kernel = "tdm_test_smid", .grid = CTAS, .block = 128};
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

static const tdm_op smid_op = {.name = "smid",
                               .args_bytes = sizeof(smid_args),
                               .operands = operands,
                               .n_operands = 2,
                               .check = check,
                               .plan = plan,
                               .ref = ref,
                               .encode = encode};

/* A lane, and the SMs seen on it. */
typedef struct watched_lane {
  tdm_lane* lane;
  tdm_buffer* buffer;
  bool seen[SMS];
} watched_lane;

static bool ok(gpu_rig* rig, tdm_status status, const char* what) {
  if (status != TDM_OK) gpu_fail(rig, "%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
  return status == TDM_OK;
}

static bool open_lane(gpu_rig* rig, tdm_runtime* runtime, const char* name, int32_t sms, watched_lane* lane) {
  tdm_lane_config config;
  tdm_lane_config_init(&config, sizeof config);
  config.name = name;
  config.kind = TDM_LANE_GREEN;
  config.sms = sms;
  return ok(rig, tdm_lane_get(runtime, &config, &lane->lane), name) &&
         ok(rig, tdm_buffer_create(runtime, 2 * CTAS * sizeof(int32_t), &lane->buffer), "buffer");
}

static bool look(gpu_rig* rig, watched_lane* lane) {
  int32_t sms[CTAS];
  if (!ok(rig, tdm_buffer_read(lane->buffer, 0, sms, sizeof sms), "reading SM numbers")) return false;
  for (int i = 0; i < CTAS; i++) {
    if (sms[i] < 0 || sms[i] >= SMS) {
      gpu_fail(rig, "CTA %d reports SM %d", i, sms[i]);
      return false;
    }
    lane->seen[sms[i]] = true;
  }
  memset(sms, 0xff, sizeof sms); /* the next replay must write them anew */
  return ok(rig, tdm_buffer_write(lane->buffer, 0, sms, sizeof sms), "clearing SM numbers");
}

static int32_t count(const watched_lane* lane) {
  int32_t n = 0;
  for (int i = 0; i < SMS; i++) n += lane->seen[i];
  return n;
}

static tdm_view whole_of(tdm_buffer* buffer) {
  return tdm_view_make(buffer, TDM_I32, 1, (int64_t[]){2 * CTAS});
}

/* Both lanes' kernels side by side, three rounds in a graph, replayed. By signal, a round waits for the other lane's
 * round before. */
static void watch(gpu_rig* rig, tdm_runtime* runtime, watched_lane lanes[2], tdm_wait_form form) {
  tdm_program* program;
  tdm_graph* graph = NULL;
  tdm_seal_config seal;
  tdm_seal_config_init(&seal, sizeof seal);
  seal.wait_form = form;
  if (!ok(rig, tdm_program_create(runtime, "lanes", &program), "program")) return;
  bool fine = true;
  for (int i = 0; fine && i < 6; i++) {
    watched_lane* lane = &lanes[i % 2];
    smid_args args = {.size = sizeof args, .out = whole_of(lane->buffer)};
    if (form == TDM_WAIT_SIGNAL && i > 1) args.after = whole_of(lanes[1 - i % 2].buffer);
    fine = ok(rig, tdm_program_append(program, lane->lane, &smid_op, i % 2 ? "side" : "main", &args), "append");
  }
  fine = fine && ok(rig, tdm_program_seal(program, &seal), "seal") &&
         ok(rig, tdm_graph_capture(program, &graph), "capture");
  for (int i = 0; fine && i < REPLAYS; i++)
    fine = ok(rig, tdm_graph_replay(graph, NULL), "replay") && look(rig, &lanes[0]) && look(rig, &lanes[1]);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
}

static void sleep_ms(long ms) {
  const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
  (void)nanosleep(&time, NULL);
}

static bool times_out(gpu_rig* rig, tdm_graph* graph, const char* words[], int n_words) {
  const tdm_status status = tdm_graph_replay(graph, NULL);
  const char* message = tdm_last_error()->message;
  if (status != TDM_TIMEOUT) {
    gpu_fail(rig, "a launch after the limit answers %s", tdm_status_name(status));
    return false;
  }
  (void)printf("  %s\n", message);
  for (int i = 0; i < n_words; i++)
    if (!strstr(message, words[i])) gpu_fail(rig, "'%s' is not in: %s", words[i], message);
  return true;
}

/* A producer behind a closed gate, a consumer on the other lane that waits 100 ms for it, and a step after that. */
static void get_stuck(gpu_rig* rig, tdm_runtime* runtime, watched_lane lanes[2], volatile int32_t* gate) {
  tdm_program* program;
  tdm_graph* graph = NULL;
  tdm_seal_config seal;
  tdm_seal_config_init(&seal, sizeof seal);
  seal.wait_form = TDM_WAIT_SIGNAL;
  seal.signal_limit_ms = 100;
  if (!ok(rig, tdm_program_create(runtime, "stuck", &program), "program")) return;
  const smid_args producer = {
      .size = sizeof producer, .out = whole_of(lanes[1].buffer), .gate = (const int32_t*)(uintptr_t)gate};
  const smid_args consumer = {
      .size = sizeof consumer, .out = whole_of(lanes[0].buffer), .after = whole_of(lanes[1].buffer)};
  const bool made = ok(rig, tdm_program_append(program, lanes[1].lane, &smid_op, "producer", &producer), "append") &&
                    ok(rig, tdm_program_append(program, lanes[0].lane, &smid_op, "consumer", &consumer), "append") &&
                    ok(rig, tdm_program_append(program, lanes[0].lane, &smid_op, "last", &consumer), "append") &&
                    ok(rig, tdm_program_seal(program, &seal), "seal") &&
                    ok(rig, tdm_graph_capture(program, &graph), "capture");
  static const int32_t zeros[2 * CTAS];
  int32_t got[2 * CTAS], wrote[2 * CTAS];
  const char* words[] = {"'stuck'", "'consumer'", "100 ms", "'producer'", "'side'"};
  for (int round = 0; made && round < 2; round++) {
    *gate = 0;
    if (!ok(rig, tdm_graph_replay(graph, NULL), "replay")) break;
    sleep_ms(300); /* by then the wait has given up, and the producer is still at its gate */
    (void)times_out(rig, graph, words, 5);
    *gate = 1;
    if (!ok(rig, tdm_runtime_synchronize(runtime), "synchronising afterwards: it was told already")) break;
    /* With the gate open all is as ever. */
    if (!ok(rig, tdm_buffer_write(lanes[0].buffer, 0, zeros, sizeof zeros), "write") ||
        !ok(rig, tdm_buffer_write(lanes[1].buffer, 0, zeros, sizeof zeros), "write") ||
        !ok(rig, tdm_graph_replay(graph, NULL), "replay") ||
        !ok(rig, tdm_buffer_read(lanes[0].buffer, 0, got, sizeof got), "read") ||
        !ok(rig, tdm_buffer_read(lanes[1].buffer, 0, wrote, sizeof wrote), "read"))
      break;
    if (memcmp(got + CTAS, wrote, CTAS * sizeof *wrote) != 0) gpu_fail(rig, "the consumer did not see the producer");
  }
  *gate = 1;
  (void)tdm_runtime_synchronize(runtime);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
}

static void test_stuck(gpu_rig* rig) {
  tdm_runtime* runtime = NULL;
  tdm_runtime_config config;
  watched_lane lanes[2] = {{0}};
  void* gate = NULL;
  tdm_runtime_config_init(&config, sizeof config);
  config.device_kind = TDM_DEVICE_CUDA;
  gpu_begin(rig, "lanes: a signal that does not come");
  if (ok(rig, tdm_runtime_create(&config, &runtime), "runtime") && open_lane(rig, runtime, "side", 8, &lanes[1]) &&
      open_lane(rig, runtime, "main", rig->sms - 8, &lanes[0])) {
    const tdm_cuda_driver* driver = &tdm_cuda_of(runtime)->driver;
    if (driver->cuMemHostAlloc(&gate, sizeof(int32_t), CU_MEMHOSTALLOC_PORTABLE) != CUDA_SUCCESS)
      gpu_fail(rig, "no pinned memory");
    else
      get_stuck(rig, runtime, lanes, gate);
    if (gate) (void)driver->cuMemFreeHost(gate);
  }
  tdm_buffer_destroy(lanes[0].buffer);
  tdm_buffer_destroy(lanes[1].buffer);
  (void)ok(rig, tdm_runtime_destroy(runtime), "destroying the runtime");
  gpu_end(rig);
}

static void test_partition(gpu_rig* rig, int n, tdm_wait_form form) {
  static const int32_t sizes[] = {8, 16, 32};
  for (int i = 0; i < n; i++) {
    tdm_runtime* runtime = NULL;
    tdm_runtime_config config;
    static watched_lane lanes[2];
    memset(lanes, 0, sizeof lanes);
    tdm_runtime_config_init(&config, sizeof config);
    config.device_kind = TDM_DEVICE_CUDA;
    gpu_begin(rig, "lanes: %d SMs beside the others%s", sizes[i], form == TDM_WAIT_SIGNAL ? ", signals" : "");
    if (ok(rig, tdm_runtime_create(&config, &runtime), "runtime") &&
        open_lane(rig, runtime, "side", sizes[i], &lanes[1])) {
      tdm_lane_info side = {.size = sizeof side}, main_info = {.size = sizeof main_info};
      (void)tdm_lane_get_info(lanes[1].lane, &side);
      if (open_lane(rig, runtime, "main", rig->sms - side.granted_sms, &lanes[0])) {
        (void)tdm_lane_get_info(lanes[0].lane, &main_info);
        watch(rig, runtime, lanes, form);
        int32_t common = 0;
        for (int sm = 0; sm < SMS; sm++) common += lanes[0].seen[sm] && lanes[1].seen[sm];
        (void)printf(
            "  main: %d SMs granted, %d seen; side: %d requested, %d granted, %d seen; %d in common; work queues %s\n",
            main_info.granted_sms, count(&lanes[0]), side.requested_sms, side.granted_sms, count(&lanes[1]), common,
            side.own_work_queues ? "of their own" : "shared (the driver knows no others)");
        if (common) gpu_fail(rig, "%d SMs were used by both lanes", common);
        if (count(&lanes[0]) > main_info.granted_sms || count(&lanes[1]) > side.granted_sms)
          gpu_fail(rig, "more SMs were used than granted");
        if (count(&lanes[1]) == 0 || count(&lanes[0]) == 0) gpu_fail(rig, "nothing ran");
      }
    }
    tdm_buffer_destroy(lanes[0].buffer);
    tdm_buffer_destroy(lanes[1].buffer);
    (void)ok(rig, tdm_runtime_destroy(runtime), "destroying the runtime");
    gpu_end(rig);
  }
}

void test_lanes(gpu_rig* rig, bool quick) {
  test_partition(rig, quick ? 1 : 3, TDM_WAIT_EDGE);
  test_partition(rig, quick ? 1 : 3, TDM_WAIT_SIGNAL);
  test_stuck(rig);
}
