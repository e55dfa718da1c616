/* tandem-bench: see bench.h and docs/performance.md. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

/* From so many rows on a step takes long, and 8 are enough. */
enum { MANY_ROWS = 1024 };

typedef struct totals {
  int32_t measured, failed;
} totals;

/* A replay into poisoned outputs. */
static void run_once(const bench_rig* rig, const bench_work* work, tdm_graph* graph) {
  bench_poison_outputs(rig, work->op, work->args);
  bench_replay(rig, graph);
  bench_synchronize(rig);
}

/* What every output holds, one after the other; freed by the caller. */
static uint8_t* read_outputs(const bench_work* work, size_t* out_bytes) {
  uint8_t* all = NULL;
  *out_bytes = 0;
  for (int32_t i = 0; i < work->op->n_operands; i++) {
    const tdm_view* view = (const tdm_view*)(const void*)(work->args + work->op->operands[i].offset);
    if (!(work->op->operands[i].access & TDM_WRITE) || !tdm_view_present(view)) continue;
    const size_t bytes = tdm_view_span_bytes(view);
    uint8_t* grown = realloc(all, *out_bytes + bytes);
    if (!grown) bench_die("no memory for %zu bytes of outputs", *out_bytes + bytes);
    all = grown;
    bench_must(tdm_buffer_read(view->buffer, (size_t)view->offset_bytes, all + *out_bytes, bytes), "reading outputs");
    *out_bytes += bytes;
  }
  return all;
}

/* `runs` replays give the same bytes. */
static bool repeat_bits(const bench_rig* rig, const bench_work* work, tdm_graph* graph, int32_t runs, char* why,
                        size_t why_bytes) {
  size_t bytes = 0, again = 0;
  uint8_t *first = NULL, *other = NULL;
  bool same = true;
  for (int32_t i = 0; i < runs && same; i++) {
    run_once(rig, work, graph);
    if (i == 0) {
      first = read_outputs(work, &bytes);
      continue;
    }
    other = read_outputs(work, &again);
    same = memcmp(first, other, bytes) == 0;
    if (!same) (void)snprintf(why, why_bytes, "replay %d gives other bits than the first", i);
    free(other);
  }
  free(first);
  return same;
}

static bool check_ours(bench_rig* rig, const bench_options* options, const bench_work* work, tdm_graph* graph,
                       bench_result* result) {
  run_once(rig, work, graph);
  if (!bench_compare_result(rig, &work->check, &result->difference, result->note, sizeof result->note)) return false;
  return options->repeat_bits == 0 ||
         repeat_bits(rig, work, graph, options->repeat_bits, result->note, sizeof result->note);
}

/* The peer's graph if it can do the product and gets it right; else NULL, and the note says why. */
static void* open_peer(bench_rig* rig, const bench_work* work, bench_result* result) {
  char why[200];
  double difference = 0;
  if (!rig->cublaslt || !work->has_product) return NULL;
  bench_poison(rig, &work->product.out);
  void* graph = bench_cublaslt_graph(rig, work, result->note, sizeof result->note);
  if (!graph) return NULL;
  bench_poison(rig, &work->product.out);
  bench_graph_launch(rig, graph);
  bench_synchronize(rig);
  if (bench_compare_result(rig, &work->product_check, &difference, why, sizeof why)) return graph;
  (void)snprintf(result->note, sizeof result->note, "cuBLASLt's result is wrong and not timed: %s", why);
  bench_graph_destroy(rig, graph);
  return NULL;
}

static void scale(bench_times* times, int32_t steps) {
  times->median /= steps;
  times->low /= steps;
  times->high /= steps;
}

static void measure(bench_rig* rig, const bench_options* options, bench_work* work, bench_result* result) {
  tdm_graph* graph = NULL;
  const tdm_status status = bench_capture_work(rig, work, &graph);
  if (status != TDM_OK) {
    (void)snprintf(result->note, sizeof result->note, "%s: %s", tdm_status_name(status), tdm_last_error()->message);
    return;
  }
  result->ok = check_ours(rig, options, work, graph, result);
  if (result->ok) {
    void* peer = open_peer(rig, work, result);
    bench_time(rig, graph, peer, options->replays, options->rest_ms, &result->timing);
    scale(&result->timing.ours, work->steps);
    scale(&result->timing.peer, work->steps);
    result->has_peer = peer != NULL;
    bench_graph_destroy(rig, peer);
  }
  tdm_graph_destroy(graph);
}

static void run_case(bench_rig* rig, const bench_options* options, const bench_case* c, int64_t m, json_t* json,
                     totals* sum) {
  static bench_work work; /* large */
  work = (bench_work){.least_steps = m < MANY_ROWS ? 20 : 8};
  bench_result result = {.c = c, .m = m, .work = &work};
  if (rig->sms == rig->device_sms) result.figure = bench_find_figure(c, m); /* figures are for all SMs */
  if (options->progress) (void)fprintf(stderr, "tandem-bench: %s %s, M = %lld\n", c->group, c->name, (long long)m);
  const tdm_status made = c->make(rig, c, m, &work);
  if (made == TDM_OK)
    measure(rig, options, &work, &result);
  else
    (void)snprintf(result.note, sizeof result.note, "%s: %s", tdm_status_name(made), tdm_last_error()->message);
  bench_print_result(rig, &result);
  if (json) bench_json_add(rig, json, &result);
  bench_work_close(&work);
  sum->measured++;
  sum->failed += !result.ok;
}

static int run(const bench_options* options, const bool* chosen) {
  bench_rig rig;
  const int opened = bench_open(options, &rig);
  if (opened != BENCH_OK) return opened;
  if (options->no_peer)
    (void)snprintf(rig.cublaslt_state, sizeof rig.cublaslt_state, "left out");
  else
    bench_cublaslt_open(&rig, options->cublaslt_path);
  if (options->progress) (void)fprintf(stderr, "tandem-bench: read bandwidth\n");
  bench_measure_bandwidth(&rig, options);
  bench_print_header(&rig);
  totals sum = {0};
  json_t* json = options->json_path ? bench_json_open(&rig, options) : NULL;
  for (int32_t i = 0; i < bench_case_count; i++) {
    int64_t ms[BENCH_MS];
    const int32_t n = chosen[i] ? bench_rows(options, &bench_cases[i], ms) : 0;
    for (int32_t j = 0; j < n; j++) run_case(&rig, options, &bench_cases[i], ms[j], json, &sum);
  }
  bench_cublaslt_close(&rig);
  bench_close(&rig);
  (void)printf("%d measured, %d failed\n", sum.measured, sum.failed);
  return bench_json_close(json, options, sum.failed ? BENCH_WRONG : BENCH_OK);
}

int main(int argc, char** argv) {
  bench_options options;
  (void)setvbuf(stdout, NULL, _IOLBF, 0);
  const int parsed = bench_parse(argc, argv, &options);
  if (parsed != BENCH_OK) return parsed;
  if (options.compare) return bench_compare(options.words[0], options.words[1], options.tolerance);
  if (options.list) {
    bench_list();
    return BENCH_OK;
  }
  if (options.suites & BENCH_OVERLAP) return bench_overlap(&options);
  bool* chosen = calloc((size_t)bench_case_count, sizeof *chosen);
  if (!chosen) bench_die("no memory for the choice of cases");
  int status = bench_choose(&options, chosen);
  if (status == BENCH_OK) status = run(&options, chosen);
  free(chosen);
  return status;
}
