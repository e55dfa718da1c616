/* The ruler: how fast this GPU reads 2 GB, measured like everything else, as steps of a captured program. */

#include "bench/bandwidth_params.h"
#include "bench/bench.h"

enum { STEPS = 4, BARRIER_BYTES = 128 };
static const int64_t ruler_bytes = INT64_C(2) << 30;

typedef struct ruler_args {
  size_t size;
  tdm_view data; /* [bytes] e4m3 */
  tdm_view out;  /* [1] i32 */
  int32_t ctas_per_sm;
  int32_t tile_bytes; /* 0: plain loads */
  int32_t stages;
} ruler_args;

static const tdm_operand operands[] = {TDM_OPERAND(ruler_args, data, TDM_READ),
                                       TDM_OPERAND(ruler_args, out, TDM_WRITE)};

static tdm_status check(void* args) {
  (void)args;
  return TDM_OK;
}

static void plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  (void)sms;
  out_plan->bytes = (double)((const ruler_args*)args)->data.shape[0];
}

static tdm_status ref(const void* args, const tdm_plan* step_plan, void* scratch) {
  (void)args;
  (void)step_plan;
  (void)scratch;
  return TDM_OK;
}

static tdm_status encode(const void* void_args, const tdm_plan* step_plan, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const ruler_args* args = void_args;
  (void)step_plan;
  const bench_bandwidth_params params = {.data = tdm_view_data(&args->data),
                                         .out = tdm_view_data(&args->out),
                                         .bytes = args->data.shape[0],
                                         .tile_bytes = args->tile_bytes,
                                         .stages = args->stages};
  const uint32_t grid = (uint32_t)(args->ctas_per_sm * env->sms);
  const tdm_kernel_launch loads = {.kernel = "bench_bandwidth_loads_sm90", .grid = grid, .block = 512};
  const tdm_kernel_launch bulk = {.kernel = "bench_bandwidth_bulk_sm90",
                                  .grid = grid,
                                  .block = 32,
                                  .shared_bytes = (uint32_t)(args->stages * args->tile_bytes + BARRIER_BYTES)};
  return tdm_encoded_step_add(out_step, args->tile_bytes ? &bulk : &loads, &params, sizeof params);
}

static const tdm_op ruler_op = {.name = "bandwidth",
                                .args_bytes = sizeof(ruler_args),
                                .operands = operands,
                                .n_operands = 2,
                                .check = check,
                                .plan = plan,
                                .ref = ref,
                                .encode = encode};

static double measure(bench_rig* rig, const ruler_args* args, int32_t replays) {
  tdm_program* program = NULL;
  tdm_graph* graph = NULL;
  bench_times times;
  bench_must(tdm_program_create(rig->runtime, "bandwidth", &program), "bandwidth");
  for (int i = 0; i < STEPS; i++)
    bench_must(tdm_program_append(program, rig->lane, &ruler_op, "read", args), "bandwidth");
  bench_must(tdm_program_seal(program, NULL), "bandwidth");
  bench_must(tdm_graph_capture(program, &graph), "bandwidth");
  bench_time(rig, graph, NULL, replays, &times, NULL);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  return (double)args->data.shape[0] * STEPS / times.median * 1e6;
}

void bench_measure_bandwidth(bench_rig* rig, int32_t replays) {
  static const struct {
    int32_t ctas_per_sm, tile_bytes, stages;
  } forms[] = {{2, 0, 0}, {3, 0, 0}, {4, 0, 0}, {1, 32 << 10, 6}, {2, 16 << 10, 6}};
  tdm_buffer* out = NULL;
  bench_must(tdm_buffer_create(rig->runtime, 16, &out), "bandwidth");
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    const ruler_args args = {
        .size = sizeof args,
        .data = tdm_view_make(bench_pool(rig, TDM_E4M3, (size_t)ruler_bytes), TDM_E4M3, 1, &ruler_bytes),
        .out = tdm_view_make(out, TDM_I32, 1, (const int64_t[]){1}),
        .ctas_per_sm = forms[i].ctas_per_sm,
        .tile_bytes = forms[i].tile_bytes,
        .stages = forms[i].stages};
    const double rate = measure(rig, &args, replays);
    double* best = forms[i].tile_bytes ? &rig->bulk : &rig->loads;
    if (rate > *best) *best = rate;
  }
  rig->bandwidth = rig->loads > rig->bulk ? rig->loads : rig->bulk;
  tdm_buffer_destroy(out);
}
