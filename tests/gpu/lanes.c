/* Green lanes on the hardware: in replays of a captured graph every lane's CTAs stay on SMs of their own. */

#include <stdio.h>
#include <string.h>

#include "runtime/kernel.h"
#include "runtime/status.h"
#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"
#include "tests/gpu/smid_params.h"

enum { CTAS = 528, SMS = 256, REPLAYS = 50 };

typedef struct smid_args {
  size_t size;
  tdm_view out; /* [CTAS] i32 */
} smid_args;

static const tdm_operand operands[] = {TDM_OPERAND(smid_args, out, TDM_WRITE)};

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
  const tdm_test_smid_params params = {.out = tdm_view_data(&args->out), .cycles = 20000};
  const tdm_kernel_launch launch = {.kernel = "tdm_test_smid", .grid = CTAS, .block = 128};
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

static const tdm_op smid_op = {.name = "smid",
                               .args_bytes = sizeof(smid_args),
                               .operands = operands,
                               .n_operands = 1,
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
         ok(rig, tdm_buffer_create(runtime, CTAS * sizeof(int32_t), &lane->buffer), "buffer");
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

/* Both lanes' kernels side by side, three rounds in a graph, replayed. */
static void watch(gpu_rig* rig, tdm_runtime* runtime, watched_lane lanes[2]) {
  tdm_program* program;
  tdm_graph* graph = NULL;
  if (!ok(rig, tdm_program_create(runtime, "lanes", &program), "program")) return;
  bool fine = true;
  for (int i = 0; fine && i < 6; i++) {
    watched_lane* lane = &lanes[i % 2];
    const smid_args args = {.size = sizeof args, .out = tdm_view_make(lane->buffer, TDM_I32, 1, (int64_t[]){CTAS})};
    fine = ok(rig, tdm_program_append(program, lane->lane, &smid_op, i % 2 ? "side" : "main", &args), "append");
  }
  fine = fine && ok(rig, tdm_program_seal(program, NULL), "seal") &&
         ok(rig, tdm_graph_capture(program, &graph), "capture");
  for (int i = 0; fine && i < REPLAYS; i++)
    fine = ok(rig, tdm_graph_replay(graph, NULL), "replay") && look(rig, &lanes[0]) && look(rig, &lanes[1]);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
}

void test_lanes(gpu_rig* rig, bool quick) {
  static const int32_t sizes[] = {8, 16, 32};
  for (int i = 0; i < (quick ? 1 : 3); i++) {
    tdm_runtime* runtime = NULL;
    tdm_runtime_config config;
    static watched_lane lanes[2];
    memset(lanes, 0, sizeof lanes);
    tdm_runtime_config_init(&config, sizeof config);
    config.device_kind = TDM_DEVICE_CUDA;
    gpu_begin(rig, "lanes: %d SMs beside the others", sizes[i]);
    if (ok(rig, tdm_runtime_create(&config, &runtime), "runtime") &&
        open_lane(rig, runtime, "side", sizes[i], &lanes[1])) {
      tdm_lane_info side = {.size = sizeof side}, main_info = {.size = sizeof main_info};
      (void)tdm_lane_get_info(lanes[1].lane, &side);
      if (open_lane(rig, runtime, "main", rig->sms - side.granted_sms, &lanes[0])) {
        (void)tdm_lane_get_info(lanes[0].lane, &main_info);
        watch(rig, runtime, lanes);
        int32_t common = 0;
        for (int sm = 0; sm < SMS; sm++) common += lanes[0].seen[sm] && lanes[1].seen[sm];
        (void)printf("  main: %d SMs granted, %d seen; side: %d requested, %d granted, %d seen; %d in common\n",
                     main_info.granted_sms, count(&lanes[0]), side.requested_sms, side.granted_sms, count(&lanes[1]),
                     common);
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
