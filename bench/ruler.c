/* Rulers, as steps of captured programs like everything else: how fast this GPU reads 2 GB, and its clock. */

#include "bench/bench.h"
#include "bench/ruler_params.h"

enum { STEPS = 4, BARRIER_BYTES = 128 };
static const int64_t ruler_bytes = INT64_C(2) << 30;

typedef struct read_args {
  size_t size;
  tdm_view data; /* [bytes] e4m3 */
  tdm_view out;  /* [1] i32 */
  int32_t ctas_per_sm;
  int32_t tile_bytes; /* 0: plain loads */
  int32_t stages;
} read_args;

static const tdm_operand read_operands[] = {TDM_OPERAND(read_args, data, TDM_READ),
                                            TDM_OPERAND(read_args, out, TDM_WRITE)};

/* What an op's table needs and a ruler has no use for. */
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
  return TDM_OK;
}

static tdm_status encode_read(const void* void_args, const tdm_plan* step_plan, const tdm_encode_env* env,
                              tdm_encoded_step* out_step) {
  const read_args* args = void_args;
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

static const tdm_op read_op = {.name = "bandwidth",
                               .args_bytes = sizeof(read_args),
                               .operands = read_operands,
                               .n_operands = 2,
                               .check = check,
                               .plan = plan,
                               .ref = ref,
                               .encode = encode_read};

static double measure(bench_rig* rig, const read_args* args, const bench_options* options) {
  tdm_program* program = NULL;
  tdm_graph* graph = NULL;
  bench_timing timing;
  bench_must(tdm_program_create(rig->runtime, "bandwidth", &program), "bandwidth");
  for (int i = 0; i < STEPS; i++)
    bench_must(tdm_program_append(program, rig->lane, &read_op, "read", args), "bandwidth");
  bench_must(tdm_program_seal(program, NULL), "bandwidth");
  bench_must(tdm_graph_capture(program, &graph), "bandwidth");
  bench_time(rig, graph, NULL, options->replays, options->rest_ms, &timing);
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  return (double)args->data.shape[0] * STEPS / timing.ours.median * 1e6;
}

void bench_measure_bandwidth(bench_rig* rig, const bench_options* options) {
  static const struct {
    int32_t ctas_per_sm, tile_bytes, stages;
  } forms[] = {{2, 0, 0}, {3, 0, 0}, {4, 0, 0}, {1, 32 << 10, 6}, {2, 16 << 10, 6}};
  tdm_buffer* out = NULL;
  bench_must(tdm_buffer_create(rig->runtime, 16, &out), "bandwidth");
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    const read_args args = {
        .size = sizeof args,
        .data = tdm_view_make(bench_pool(rig, TDM_E4M3, (size_t)ruler_bytes), TDM_E4M3, 1, &ruler_bytes),
        .out = tdm_view_make(out, TDM_I32, 1, (const int64_t[]){1}),
        .ctas_per_sm = forms[i].ctas_per_sm,
        .tile_bytes = forms[i].tile_bytes,
        .stages = forms[i].stages};
    const double rate = measure(rig, &args, options);
    double* best = forms[i].tile_bytes ? &rig->bulk : &rig->loads;
    if (rate > *best) *best = rate;
  }
  rig->bandwidth = rig->loads > rig->bulk ? rig->loads : rig->bulk;
  tdm_buffer_destroy(out);
}

/* ---- the clock -------------------------------------------------------------------------------------------------- */

enum { CLOCK_NS = 20000 };

typedef struct clock_args {
  size_t size;
  tdm_view sums; /* [2] i64 */
} clock_args;

static const tdm_operand clock_operands[] = {TDM_OPERAND(clock_args, sums, TDM_READ_WRITE)};

static tdm_status encode_clock(const void* void_args, const tdm_plan* step_plan, const tdm_encode_env* env,
                               tdm_encoded_step* out_step) {
  const clock_args* args = void_args;
  (void)step_plan;
  (void)env;
  const bench_clock_params params = {.sums = tdm_view_data(&args->sums), .ns = CLOCK_NS};
  const tdm_kernel_launch launch = {.kernel = "bench_clock_sm90", .grid = 1, .block = 32};
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

static const tdm_op clock_op = {.name = "clock",
                                .args_bytes = sizeof(clock_args),
                                .operands = clock_operands,
                                .n_operands = 1,
                                .check = check,
                                .plan = plan,
                                .ref = ref,
                                .encode = encode_clock};

void bench_clock_open(bench_rig* rig) {
  bench_must(tdm_buffer_create(rig->runtime, 2 * BENCH_CLOCKS * sizeof(int64_t), &rig->clock_sums), "the clock");
  for (int i = 0; i < BENCH_CLOCKS; i++) {
    tdm_program* program = NULL;
    clock_args args = {.size = sizeof args, .sums = tdm_view_make(rig->clock_sums, TDM_I64, 1, (const int64_t[]){2})};
    args.sums.offset_bytes = i * 2 * (int64_t)sizeof(int64_t);
    bench_must(tdm_program_create(rig->runtime, "clock", &program), "the clock");
    bench_must(tdm_program_append(program, rig->lane, &clock_op, "clock", &args), "the clock");
    bench_must(tdm_program_seal(program, NULL), "the clock");
    bench_must(tdm_graph_capture(program, &rig->clocks[i]), "the clock");
    tdm_program_destroy(program);
  }
}

void bench_clock_close(bench_rig* rig) {
  for (int i = 0; i < BENCH_CLOCKS; i++) tdm_graph_destroy(rig->clocks[i]);
  tdm_buffer_destroy(rig->clock_sums);
}

void bench_clock_reset(const bench_rig* rig) {
  const int64_t zeros[2 * BENCH_CLOCKS] = {0};
  bench_must(tdm_buffer_write(rig->clock_sums, 0, zeros, sizeof zeros), "the clock");
}

double bench_clock_mhz(const bench_rig* rig, bench_clock clock) {
  int64_t sums[2];
  bench_must(tdm_buffer_read(rig->clock_sums, clock * sizeof sums, sums, sizeof sums), "the clock");
  return sums[1] > 0 ? 1e3 * (double)sums[0] / (double)sums[1] : 0;
}
