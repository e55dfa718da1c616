#include "bench/overlap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/model.h"
#include "runtime/program.h"

enum { DEFAULT_LAYERS = 4, FORK_M = 16, CONTEXT = 4096, HOST_CONTEXT = 64, LAUNCHES_A_LEAD = 32 };

#define LANES(text, lanes, form, sms)                                                                                  \
  {text "_dense", {TDM_STRATEGY_##lanes, TDM_WAIT_##form, sms, TDM_MOE_PATH_DENSE}},                                   \
      {text "_hits", {TDM_STRATEGY_##lanes, TDM_WAIT_##form, sms, TDM_MOE_PATH_HITS}}, {                               \
    text "_grouped", {                                                                                                 \
      TDM_STRATEGY_##lanes, TDM_WAIT_##form, sms, TDM_MOE_PATH_GROUPED                                                 \
    }                                                                                                                  \
  }

const overlap_way overlap_ways[OVERLAP_WAYS] = {
    LANES("serial", SERIAL, EDGE, 0),
    LANES("soft", SOFT, EDGE, OVERLAP_SIDE_SMS),
    LANES("split", SPLIT, EDGE, OVERLAP_SPLIT_SMS),
    LANES("green_edge", GREEN, EDGE, OVERLAP_SIDE_SMS),
    LANES("green_signal", GREEN, SIGNAL, OVERLAP_SIDE_SMS),
};

/* Graphs over one batch that are compared with each other. */
typedef struct heat {
  const overlap_suite* suite;
  tdm_model* model;
  int64_t layers;
  int32_t n;
  overlap_result* results;              /* [n] */
  tdm_graph* graphs[OVERLAP_TUNED + 1]; /* NULL where the result has no time */
  size_t bytes;                         /* of the last layer's output */
  uint8_t *wanted, *got;                /* the first graph's; another's */
} heat;

static const int64_t default_ms[] = {1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256};
static const int64_t default_layers[] = {DEFAULT_LAYERS, 1, 8};

static void say(const overlap_suite* suite, const char* what, int64_t number) {
  if (suite->options->progress) (void)fprintf(stderr, "tandem-bench: overlap, %s %lld\n", what, (long long)number);
}

/* ---- capturing -------------------------------------------------------------------------------------------------- */

static tdm_status no_tensor_map(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  (void)ctx;
  (void)tile;
  memset(out_map, 0, sizeof *out_map);
  return TDM_OK;
}

/* A step may launch more than one kernel, and signals have one of their own that begins their epoch. */
static int64_t count_launches(const overlap_suite* suite, const tdm_program* program) {
  tdm_program_info info = {.size = sizeof info};
  bench_must(tdm_program_get_info(program, &info), "a program");
  if (!suite->rig.driver) return info.steps;
  int64_t launches = info.wait_form == TDM_WAIT_SIGNAL && info.waits > 0;
  for (int64_t i = 0; i < program->n_steps; i++) {
    static tdm_encoded_step encoded; /* large */
    const tdm_step* step = &program->steps[i];
    const tdm_encode_env env = {.sms = tdm_lane_sms(program->lanes[step->lane]), .tensor_map = no_tensor_map};
    encoded.n_launches = 0;
    bench_must(step->op->encode(step->args, &step->plan, &env, &encoded), "counting launches");
    launches += encoded.n_launches;
  }
  return launches;
}

/* `choice` NULL: the model's own. */
static void capture(heat* h, int32_t index, int64_t m, const tdm_choice* choice) {
  overlap_result* result = &h->results[index];
  const tdm_status status = tdm_model_capture_layers(h->model, 0, h->layers, m, false, choice, &h->graphs[index]);
  *result = (overlap_result){.state = OVERLAP_FINE};
  if (choice) result->choice = *choice;
  if (status == TDM_UNSUPPORTED) {
    result->state = OVERLAP_SKIPPED;
    (void)snprintf(result->note, sizeof result->note, "%s", tdm_last_error()->message);
    return;
  }
  bench_must(status, "capturing layers");
  result->launches = count_launches(h->suite, tdm_graph_program(h->graphs[index]));
}

static void close_heat(heat* h) {
  for (int32_t i = 0; i < h->n; i++) tdm_graph_destroy(h->graphs[i]);
  free(h->wanted);
  free(h->got);
}

/* ---- bits ------------------------------------------------------------------------------------------------------- */

static tdm_view output_of(const heat* h, tdm_graph* graph) {
  char name[32];
  tdm_view view;
  (void)snprintf(name, sizeof name, "layer%d.out", (int)h->layers - 1);
  bench_must(tdm_program_find(tdm_graph_program(graph), name, &view), "the layers' output");
  return view;
}

static void read_output(const heat* h, tdm_graph* graph, uint8_t* out) {
  const tdm_view view = output_of(h, graph);
  bench_must(tdm_buffer_read(view.buffer, (size_t)view.offset_bytes, out, h->bytes), "reading the layers' output");
}

/* A replay into a poisoned output. */
static void run_once(heat* h, tdm_graph* graph, uint8_t* out) {
  const tdm_view view = output_of(h, graph);
  memset(out, 0xff, h->bytes);
  bench_must(tdm_buffer_write(view.buffer, (size_t)view.offset_bytes, out, h->bytes), "poisoning the output");
  bench_replay(&h->suite->rig, graph);
  bench_synchronize(&h->suite->rig);
  read_output(h, graph, out);
}

static void make_room(heat* h) {
  const tdm_view view = output_of(h, h->graphs[0]);
  h->bytes = tdm_view_span_bytes(&view);
  h->wanted = malloc(h->bytes);
  h->got = malloc(h->bytes);
  if (!h->wanted || !h->got) bench_die("no memory for outputs of %zu bytes", h->bytes);
}

static void fail(heat* h, int32_t index, const char* note) {
  overlap_result* result = &h->results[index];
  result->state = OVERLAP_WRONG;
  (void)snprintf(result->note, sizeof result->note, "%s", note);
  tdm_graph_destroy(h->graphs[index]);
  h->graphs[index] = NULL;
}

static bool all_finite(const uint8_t* bf16, size_t bytes) {
  bool finite = true;
  for (size_t i = 0; i < bytes; i += 2) finite &= (bf16[i + 1] & 0x7f) != 0x7f || !(bf16[i] & 0x80);
  return finite;
}

/* Compares what is in `got` with the first way's. */
static void compare(heat* h, int32_t index, const char* when) {
  char note[200];
  size_t first = 0;
  int64_t differ = 0;
  for (size_t i = h->bytes; i-- > 0;)
    if (h->got[i] != h->wanted[i]) {
      first = i;
      differ++;
    }
  if (differ == 0) return;
  const size_t width = (size_t)tdm_model_get_config(h->model)->hidden_size;
  (void)snprintf(note, sizeof note,
                 "%s %lld of %zu bytes differ from the serial result, the first in row %zu, column %zu", when,
                 (long long)differ, h->bytes, first / 2 / width, first / 2 % width);
  fail(h, index, note);
}

/* Each way by itself. */
static void check_bits(heat* h) {
  make_room(h);
  run_once(h, h->graphs[0], h->wanted);
  if (!all_finite(h->wanted, h->bytes)) bench_die("the serial result is not finite, so equal bits would say nothing");
  for (int32_t i = 1; i < h->n; i++) {
    if (!h->graphs[i]) continue;
    run_once(h, h->graphs[i], h->got);
    compare(h, i, "by itself");
  }
}

/* What the last of the replays that were timed has left. */
static void check_bits_again(heat* h) {
  for (int32_t i = 0; i < h->n; i++) {
    if (!h->graphs[i]) continue;
    read_output(h, h->graphs[i], h->got);
    compare(h, i, "after the last replay");
  }
}

/* ---- times ------------------------------------------------------------------------------------------------------ */

static double time_by_turns(heat* h) {
  tdm_graph* graphs[OVERLAP_TUNED + 1];
  bench_times times[OVERLAP_TUNED + 1];
  int32_t n = 0;
  int64_t most = 0;
  double mhz = 0;
  for (int32_t i = 0; i < h->n; i++) {
    if (!h->graphs[i]) continue;
    graphs[n++] = h->graphs[i];
    if (h->results[i].launches > most) most = h->results[i].launches;
  }
  bench_time_turns(&h->suite->rig, graphs, n, 1 + (int32_t)(most / LAUNCHES_A_LEAD), h->suite->options, times, &mhz);
  n = 0;
  for (int32_t i = 0; i < h->n; i++)
    if (h->graphs[i]) h->results[i].us = times[n++];
  return mhz;
}

/* One of the bench's own cases by itself: `out_peer`, 0 where there is none, is cuBLASLt's time. */
static double time_case(overlap_suite* suite, const char* name, int64_t m, double* out_peer) {
  static bench_work work; /* large */
  const bench_case* c = bench_cases;
  char note[200];
  tdm_graph* graph = NULL;
  bench_timing timing;
  if (out_peer) *out_peer = 0;
  if (!suite->rig.driver) return 0;
  while (strcmp(c->name, name) != 0) c++;
  work = (bench_work){.least_steps = 20};
  bench_must(c->make(&suite->rig, c, m, &work), name);
  bench_must(bench_capture_work(&suite->rig, &work, &graph), name);
  void* peer = out_peer && suite->rig.cublaslt && work.has_product
                   ? bench_cublaslt_graph(&suite->rig, &work, note, sizeof note)
                   : NULL;
  bench_time(&suite->rig, graph, peer, suite->options->replays, suite->options->rest_ms, &timing);
  if (peer) *out_peer = timing.peer.median / work.steps;
  const double us = timing.ours.median / work.steps;
  bench_graph_destroy(&suite->rig, peer);
  tdm_graph_destroy(graph);
  bench_work_close(&work);
  return us;
}

/* ---- models ----------------------------------------------------------------------------------------------------- */

static tdm_status open_model(const overlap_suite* suite, const decode_step_options* shape, const int64_t* ms,
                             int32_t n_ms, tdm_model** out_model) {
  tdm_model_config config;
  bench_must(tdm_model_config_init(&config, sizeof config), "the model");
  config.buckets = ms;
  config.n_buckets = n_ms;
  config.taps = true; /* to count the experts that are hit: more memory, the same kernels */
  return decode_step_model(suite->rig.runtime, shape, ms[n_ms - 1], &config, out_model);
}

/* The suite's model has `vocab_size` rows of embedding and head and a norm besides its layers. */
static void weigh(overlap_suite* suite) {
  const tdm_deepseek_v3_config* shape = tdm_model_get_config(suite->model);
  const double hidden = (double)shape->hidden_size, width = (double)shape->moe_intermediate_size;
  tdm_model_info info = {.size = sizeof info};
  bench_must(tdm_model_get_info(suite->model, &info), "the model");
  const double ends = (2 * (double)shape->vocab_size + 1) * hidden * 2;
  suite->weight_bytes = ((double)info.weight_bytes - ends) / (double)suite->shape.layers;
  suite->expert_bytes = 3 * hidden * width * (1 + 4.0 / (128 * 128)); /* gate, up and down, with scales of blocks */
}

double overlap_bytes(const overlap_suite* suite, const overlap_point* point, const overlap_result* result) {
  const double experts = (double)tdm_model_get_config(suite->model)->n_routed_experts;
  const tdm_moe_path path = result->choice.moe_path;
  const bool all = path != TDM_MOE_PATH_HITS && path != TDM_MOE_PATH_GROUPED;
  const double left_out = all ? 0 : experts - point->experts;
  const double latents = (double)(point->m * (suite->shape.context + 1)) * 576 * 2;
  return suite->weight_bytes - left_out * suite->expert_bytes + latents;
}

/* The model goes by what is found from then on. */
static void tune(overlap_suite* suite) {
  tdm_tuning* tuning = NULL;
  tdm_tune_config config;
  bench_must(tdm_tune_config_init(&config, sizeof config), "tuning");
  config.layers = suite->shape.layers;
  config.context = suite->shape.context;
  config.prefill = false;
  config.gain = 0.01; /* the default, 2 %, would leave ways that miss the goal */
  config.limit_s = 600;
  suite->tuned.size = sizeof suite->tuned;
  bench_must(tdm_tuning_create(suite->rig.runtime, &tuning), "tuning");
  bench_must(tdm_model_tune(suite->model, &config, tuning, &suite->tuned), "tuning");
  tdm_tuning_destroy(tuning);
}

/* ---- a point: all ways at one M --------------------------------------------------------------------------------- */

static int64_t count_layer(const heat* h, int64_t layer, int32_t* ids, size_t bytes, bool* seen) {
  const int64_t experts = tdm_model_get_config(h->model)->n_routed_experts;
  char name[32];
  tdm_view view;
  int64_t hit = 0;
  (void)snprintf(name, sizeof name, "layer%d.topk_ids", (int)layer);
  bench_must(tdm_program_find(tdm_graph_program(h->graphs[0]), name, &view), "the chosen experts");
  bench_must(tdm_buffer_read(view.buffer, (size_t)view.offset_bytes, ids, bytes), "the chosen experts");
  memset(seen, 0, (size_t)experts * sizeof *seen);
  for (size_t i = 0; i < bytes / sizeof *ids; i++) {
    if (ids[i] < 0 || ids[i] >= experts) bench_die("the router chose expert %d of %lld", ids[i], (long long)experts);
    hit += !seen[ids[i]];
    seen[ids[i]] = true;
  }
  return hit;
}

/* After a replay of the first graph. */
static double count_experts(const heat* h, int64_t m) {
  const tdm_deepseek_v3_config* shape = tdm_model_get_config(h->model);
  const size_t bytes = (size_t)(m * shape->num_experts_per_tok) * sizeof(int32_t);
  int32_t* ids = malloc(bytes);
  bool* seen = calloc((size_t)shape->n_routed_experts, sizeof *seen);
  int64_t hit = 0;
  if (!ids || !seen) bench_die("no memory to count experts");
  for (int64_t layer = 0; layer < h->layers; layer++) hit += count_layer(h, layer, ids, bytes, seen);
  free(ids);
  free(seen);
  return (double)hit / (double)h->layers;
}

static void capture_tuned(heat* h, overlap_point* point) {
  tdm_choice_info info = {.size = sizeof info};
  bench_must(tdm_model_get_choice(h->model, point->m, false, &info), "the tuned choice");
  capture(h, OVERLAP_TUNED, point->m, NULL);
  point->results[OVERLAP_TUNED].choice = info.choice;
  point->source = info.source;
}

static void run_point(overlap_suite* suite, int64_t m) {
  static decode_step step; /* large */
  overlap_point point = {.m = m};
  heat h = {.suite = suite,
            .model = suite->model,
            .layers = suite->shape.layers,
            .n = OVERLAP_TUNED + 1,
            .results = point.results};
  say(suite, "M =", m);
  bench_must(decode_step_begin(suite->model, &suite->shape, m, &step), "a decode step");
  for (int32_t i = 0; i < OVERLAP_WAYS; i++) capture(&h, i, m, &overlap_ways[i].choice);
  capture_tuned(&h, &point);
  check_bits(&h);
  point.experts = count_experts(&h, m);
  point.mhz = time_by_turns(&h);
  check_bits_again(&h);
  close_heat(&h);
  decode_step_end(&step);
  point.router_us = time_case(suite, "router", m, NULL);
  overlap_report_point(suite, &point);
}

/* ---- the MoE block ---------------------------------------------------------------------------------------------- */

/* The best peer's time for a product: recorded, or in this run. */
static double best_peer(overlap_suite* suite, const char* name, int64_t m) {
  const bench_case* c = bench_cases;
  double now = 0;
  while (strcmp(c->name, name) != 0) c++;
  const bench_figure* figure = bench_find_figure(c, m);
  (void)time_case(suite, name, m, &now);
  const double recorded = figure ? figure->peer_us : 0;
  return now > 0 && (recorded == 0 || now < recorded) ? now : recorded;
}

static void measure_chain(overlap_suite* suite, overlap_block* block) {
  /* DeepGEMM's masked grouped FC1 and FC2, 1 to 64 rows an expert, all experts' weights (docs/peers.md, 1.3). */
  const double grouped_us = 236.9 + 129.8, experts = (double)tdm_model_get_config(suite->model)->n_routed_experts;
  const double columns = 65536, read = 2 * columns * 2, written = columns * (1 + 4.0 / 128);
  block->fc1 = best_peer(suite, "fc1", block->m);
  block->fc2 = best_peer(suite, "fc2", block->m);
  block->router = best_peer(suite, "router", block->m);
  block->norm = time_case(suite, "rmsnorm", block->m, NULL);
  block->route = time_case(suite, "moe_route", block->m, NULL);
  block->activation = (double)block->m * (read + written) / suite->rig.bandwidth * 1e6;
  block->grouped = grouped_us * block->experts / experts;
}

static void capture_block(heat* h, int32_t index, int64_t m, const tdm_choice* choice) {
  overlap_result* result = &h->results[index];
  *result = (overlap_result){.state = OVERLAP_FINE, .choice = *choice};
  bench_must(tdm_model_capture_mlps(h->model, 0, h->layers, m, choice, &h->graphs[index]), "capturing MoE blocks");
  result->launches = count_launches(h->suite, tdm_graph_program(h->graphs[index]));
}

static void run_block(overlap_suite* suite, int64_t m) {
  static decode_step step; /* large */
  overlap_block block = {.m = m};
  heat h = {.suite = suite, .model = suite->model, .layers = suite->shape.layers, .n = 2, .results = block.results};
  tdm_choice_info info = {.size = sizeof info};
  say(suite, "MoE block, M =", m);
  bench_must(decode_step_begin(suite->model, &suite->shape, m, &step), "a decode step");
  bench_must(tdm_model_get_choice(suite->model, m, false, &info), "the tuned choice");
  if (info.choice.moe_path == TDM_MOE_PATH_AUTO)
    info.choice.moe_path = m <= 72 ? TDM_MOE_PATH_HITS : TDM_MOE_PATH_DENSE; /* the rule, 8 of 256 */
  capture_block(&h, 0, m, &overlap_ways[0].choice);
  capture_block(&h, 1, m, &info.choice);
  check_bits(&h);
  block.experts = count_experts(&h, m);
  (void)time_by_turns(&h);
  check_bits_again(&h);
  close_heat(&h);
  decode_step_end(&step);
  measure_chain(suite, &block);
  overlap_report_block(suite, &block);
}

/* Where there are figures to compare with. */
static void run_blocks(overlap_suite* suite) {
  static const int64_t ms[] = {1, 16, 64, 128, 256};
  bool any = false;
  for (size_t i = 0; i < sizeof ms / sizeof *ms; i++)
    for (int32_t k = 0; k < suite->n_ms && suite->rig.driver; k++) {
      if (suite->ms[k] != ms[i]) continue;
      if (!any) overlap_report_block_header();
      any = true;
      run_block(suite, ms[i]);
    }
}

/* ---- what forking costs ----------------------------------------------------------------------------------------- */

static const tdm_choice plain = {TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, OVERLAP_SIDE_SMS, TDM_MOE_PATH_DENSE};

/* Graphs of all experts: a fork and a join in every layer, for router and routing. */
static void run_fork(overlap_suite* suite, tdm_model* model, int64_t m, int64_t layers) {
  overlap_fork fork = {.m = m, .layers = layers};
  heat h = {.suite = suite, .model = model, .layers = layers, .n = OVERLAP_FORKS, .results = fork.results};
  say(suite, "layers =", layers);
  for (int32_t i = 0; i < OVERLAP_LANES; i++) capture(&h, i, m, &overlap_ways[OVERLAP_PATHS * i].choice);
  capture(&h, OVERLAP_PLAIN, m, &plain);
  check_bits(&h);
  (void)time_by_turns(&h);
  check_bits_again(&h);
  close_heat(&h);
  overlap_report_fork(suite, &fork);
}

/* At 16 sequences, or the fewest where 16 is none of the numbers chosen. */
static int64_t fork_m(const overlap_suite* suite) {
  for (int32_t i = 0; i < suite->n_ms; i++)
    if (suite->ms[i] == FORK_M) return FORK_M;
  return suite->ms[0];
}

/* One model with as many layers as the longest graph has. */
static void run_forks(overlap_suite* suite, const int64_t* layers, int32_t n) {
  static decode_step step; /* large */
  const int64_t m = fork_m(suite);
  decode_step_options shape = suite->shape;
  tdm_model* model = NULL;
  for (int32_t i = 0; i < n; i++)
    if (layers[i] > shape.layers) shape.layers = layers[i];
  const tdm_status status = open_model(suite, &shape, &m, 1, &model);
  if (status == TDM_OUT_OF_MEMORY) {
    (void)printf("what forking costs is not measured: %lld layers: %s\n", (long long)shape.layers,
                 tdm_last_error()->message);
    return;
  }
  bench_must(status, "the model");
  bench_must(decode_step_begin(model, &shape, m, &step), "a decode step");
  overlap_report_fork_header(m);
  for (int32_t i = 0; i < n; i++) run_fork(suite, model, m, layers[i]);
  decode_step_end(&step);
  bench_must(tdm_model_destroy(model), "closing");
}

/* ---- the suite -------------------------------------------------------------------------------------------------- */

static int ascending(const void* a, const void* b) {
  const int64_t x = *(const int64_t*)a, y = *(const int64_t*)b;
  return (x > y) - (x < y);
}

static void choose_ms(overlap_suite* suite) {
  const bool own = suite->options->n_ms > 0;
  suite->n_ms = own ? suite->options->n_ms : (int32_t)(sizeof default_ms / sizeof *default_ms);
  memcpy(suite->ms, own ? suite->options->ms : default_ms, (size_t)suite->n_ms * sizeof *suite->ms);
  qsort(suite->ms, (size_t)suite->n_ms, sizeof *suite->ms, ascending);
}

static void run_suite(overlap_suite* suite, const int64_t* layers, int32_t n_layers) {
  bench_must(open_model(suite, &suite->shape, suite->ms, suite->n_ms, &suite->model), "the model");
  weigh(suite);
  if (suite->rig.driver) bench_measure_bandwidth(&suite->rig, suite->options);
  say(suite, "tuning; buckets:", suite->n_ms);
  tune(suite);
  overlap_report_header(suite);
  for (int32_t i = 0; i < suite->n_ms; i++) run_point(suite, suite->ms[i]);
  run_blocks(suite);
  bench_must(tdm_model_destroy(suite->model), "closing");
  run_forks(suite, layers, n_layers);
  overlap_report_end(suite);
}

int bench_overlap(const bench_options* options) {
  bench_options own = *options;
  if (own.host) own.rest_ms = 0;
  const int64_t* layers = own.n_layers ? own.layers : default_layers;
  const int32_t n_layers = own.n_layers ? own.n_layers : (int32_t)(sizeof default_layers / sizeof *default_layers);
  overlap_suite suite = {
      .options = &own,
      .shape = {.tiny = own.host, .layers = layers[0], .context = own.host ? HOST_CONTEXT : CONTEXT},
  };
  const int opened = bench_open(&own, &suite.rig);
  if (opened != BENCH_OK) return opened;
  if (own.no_peer || own.host)
    (void)snprintf(suite.rig.cublaslt_state, sizeof suite.rig.cublaslt_state, "left out");
  else
    bench_cublaslt_open(&suite.rig, own.cublaslt_path);
  choose_ms(&suite);
  run_suite(&suite, layers, n_layers);
  bench_cublaslt_close(&suite.rig);
  bench_close(&suite.rig);
  return bench_json_close(suite.json, &own, suite.wrong ? BENCH_WRONG : BENCH_OK);
}
