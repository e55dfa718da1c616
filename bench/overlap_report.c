#include "bench/overlap.h"

#include <stdio.h>
#include <string.h>

#include "models/tuning.h"

/* What is asked of a tuned choice (docs/overlap.md). */
static const double slower_percent = 1, router_slack_us = 1, chain_ratio = 1.12, one_token_us = 30;

/* How the tuned choice compares. Times are a layer's. */
typedef struct verdict {
  const overlap_result* best; /* of the ways; NULL: nothing was timed */
  double over_best;           /* percent */
  bool same, close;           /* it is that way itself: then the difference is noise */
  bool dense;                 /* it is dense, and the router's time is known */
  double gain_us;
  bool hides;
} verdict;

static bool is_fine(const overlap_result* result) {
  return result->state == OVERLAP_FINE;
}

static bool same_choice(const tdm_choice* a, const tdm_choice* b) {
  return a->strategy == b->strategy && a->wait_form == b->wait_form && a->side_sms == b->side_sms &&
         a->moe_path == b->moe_path;
}

static verdict judge(const overlap_suite* suite, const overlap_point* point) {
  const overlap_result *tuned = &point->results[OVERLAP_TUNED], *plain = &point->results[0];
  verdict v = {0};
  if (!is_fine(tuned)) return v;
  for (int32_t i = 0; i < OVERLAP_WAYS; i++) {
    const overlap_result* result = &point->results[i];
    if (is_fine(result) && (!v.best || result->us.median < v.best->us.median)) v.best = result;
  }
  if (!v.best) return v;
  v.over_best = 100 * (tuned->us.median / v.best->us.median - 1);
  v.same = same_choice(&tuned->choice, &v.best->choice);
  v.close = v.same || v.over_best <= slower_percent;
  v.dense = tuned->choice.moe_path == TDM_MOE_PATH_DENSE && point->router_us > 0 && is_fine(plain);
  v.gain_us = (plain->us.median - tuned->us.median) / (double)suite->shape.layers;
  v.hides = v.gain_us >= point->router_us - router_slack_us;
  return v;
}

/* "serial", "soft 16", "green 16, signal". */
static const char* lanes_of(const tdm_choice* choice, char text[32]) {
  const char* name = tdm_strategy_name(choice->strategy);
  if (choice->strategy == TDM_STRATEGY_SERIAL)
    (void)snprintf(text, 32, "%s", name);
  else if (choice->strategy != TDM_STRATEGY_GREEN)
    (void)snprintf(text, 32, "%s %d", name, choice->side_sms);
  else
    (void)snprintf(text, 32, "%s %d, %s", name, choice->side_sms, tdm_wait_form_name(choice->wait_form));
  return text;
}

/* Serial with the same experts; dense where their path is none of the ways'. */
static const overlap_result* serial_of(const overlap_point* point, const overlap_result* result) {
  for (int32_t i = 1; i < OVERLAP_PATHS; i++)
    if (overlap_ways[i].choice.moe_path == result->choice.moe_path) return &point->results[i];
  return &point->results[0];
}

static double percent_of(const overlap_result* result, const overlap_result* base) {
  return is_fine(base) ? 100 * result->us.median / base->us.median : 0;
}

/* Bytes a second. */
static double rate_of(const overlap_suite* suite, const overlap_point* point, const overlap_result* result) {
  return overlap_bytes(suite, point, result) * (double)suite->shape.layers / result->us.median * 1e6;
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static void print_row(const overlap_suite* suite, const overlap_point* point, int32_t index) {
  const overlap_result* result = &point->results[index];
  const double layers = (double)suite->shape.layers;
  char lanes[32], percent[16] = "-";
  (void)printf("%5lld %-6s %-17s %-7s", (long long)point->m, index == OVERLAP_TUNED ? "tuned:" : "",
               lanes_of(&result->choice, lanes), tdm_moe_path_name(result->choice.moe_path));
  if (!is_fine(result)) {
    (void)printf(" %s: %s\n", result->state == OVERLAP_WRONG ? "FAILED" : "skipped", result->note);
    return;
  }
  const double rate = rate_of(suite, point, result);
  if (suite->rig.bandwidth > 0) (void)snprintf(percent, sizeof percent, "%.1f", 100 * rate / suite->rig.bandwidth);
  (void)printf(" %9.2f %9.2f %9.2f %8.1f %7.1f %6.0f %5s %8.2f\n", result->us.median / layers, result->us.low / layers,
               result->us.high / layers, percent_of(result, serial_of(point, result)),
               percent_of(result, &point->results[0]), rate * 1e-9, percent, (double)result->launches / layers);
}

static void print_verdict(const overlap_suite* suite, const overlap_point* point, const verdict* v) {
  char lanes[32];
  if (!v->best) return;
  (void)printf("%12s goal, at most %g %% slower than the best (%s, %s%s): %+.2f %%, %s\n", "", slower_percent,
               lanes_of(&v->best->choice, lanes), tdm_moe_path_name(v->best->choice.moe_path),
               v->same ? ", the same way" : "", v->over_best, v->close ? "holds" : "MISSED");
  if (v->dense)
    (void)printf("%12s goal, the router (%.2f us) is hidden but for %g us: %.2f us less than serial dense, %s\n", "",
                 point->router_us, router_slack_us, v->gain_us, v->hides ? "holds" : "MISSED");
  else if (point->results[OVERLAP_TUNED].choice.moe_path == TDM_MOE_PATH_DENSE && !suite->rig.driver)
    (void)printf("%12s goal, the router is hidden: not judged, its time is measured on a GPU only\n", "");
}

static void count(overlap_suite* suite, const overlap_result* results, int32_t n) {
  for (int32_t i = 0; i < n; i++) {
    suite->timed += results[i].state == OVERLAP_FINE;
    suite->skipped += results[i].state == OVERLAP_SKIPPED;
    suite->wrong += results[i].state == OVERLAP_WRONG;
  }
}

/* ---- the MoE block ---------------------------------------------------------------------------------------------- */

static double chain_of(const overlap_block* block, bool grouped) {
  const double products = grouped ? block->grouped : block->fc1 + block->fc2;
  return products + block->router + block->norm + block->route + block->activation;
}

void overlap_report_block_header(void) {
  (void)printf(
      "\nthe MoE block, norm to output: us of a block, tuned; peers one after the other with dense GEMMs, and with\n"
      "grouped ones over the experts hit (an estimate by bytes); what their chain is made of\n");
  (void)printf("%5s %-17s %-7s %8s %8s %8s %8s %8s %6s | %7s %7s %6s %5s %5s %6s\n", "M", "lanes", "experts", "us",
               "min", "max", "dense", "grouped", "ratio", "fc1", "fc2", "router", "norm", "route", "swiglu");
}

static json_t* block_json(const overlap_suite* suite, const overlap_block* block);

void overlap_report_block(overlap_suite* suite, const overlap_block* block) {
  const overlap_result* tuned = &block->results[1];
  const double layers = (double)suite->shape.layers;
  char lanes[32];
  count(suite, block->results, 2);
  (void)printf("%5lld %-17s %-7s", (long long)block->m, lanes_of(&tuned->choice, lanes),
               tdm_moe_path_name(tuned->choice.moe_path));
  if (!is_fine(tuned)) {
    (void)printf(" %s\n", tuned->note);
    return;
  }
  const double us = tuned->us.median / layers, dense = chain_of(block, false), grouped = chain_of(block, true);
  const double best = grouped < dense ? grouped : dense;
  (void)printf(" %8.2f %8.2f %8.2f %8.2f %8.2f %6.2f | %7.2f %7.2f %6.2f %5.2f %5.2f %6.2f\n", us,
               tuned->us.low / layers, tuned->us.high / layers, dense, grouped, best / us, block->fc1, block->fc2,
               block->router, block->norm, block->route, block->activation);
  if (block->m == 1)
    (void)printf("%12s goal, at most %g us: %s\n", "", one_token_us, us <= one_token_us ? "holds" : "MISSED");
  else
    (void)printf("%12s goal, %g times as fast as the quicker chain: %s\n", "", chain_ratio,
                 best >= chain_ratio * us ? "holds" : "MISSED");
  if (!suite->json) return;
  json_t* blocks = json_object_get(json_object_get(suite->json, "overlap"), "blocks");
  if (json_array_append_new(blocks, block_json(suite, block)) != 0) bench_die("no memory for a result");
}

void overlap_report_fork_header(int64_t m) {
  (void)printf("\nwhat forking costs: us of a whole graph, M = %lld, all experts; extra is over split %d, plain "
               "streams\nwhose kernels have the SMs that green lanes have\n",
               (long long)m, OVERLAP_SIDE_SMS);
  (void)printf("%6s %-17s %9s %9s %9s %9s %8s\n", "layers", "lanes", "us", "min", "max", "extra us", "launches");
}

static void print_fork(const overlap_fork* fork, int32_t index) {
  const overlap_result *result = &fork->results[index], *plain = &fork->results[OVERLAP_PLAIN];
  char lanes[32], extra[16] = "-";
  (void)printf("%6lld %-17s", (long long)fork->layers, lanes_of(&result->choice, lanes));
  if (!is_fine(result)) {
    (void)printf(" %s: %s\n", result->state == OVERLAP_WRONG ? "FAILED" : "skipped", result->note);
    return;
  }
  if (is_fine(plain)) (void)snprintf(extra, sizeof extra, "%+.2f", result->us.median - plain->us.median);
  (void)printf(" %9.2f %9.2f %9.2f %9s %8lld\n", result->us.median, result->us.low, result->us.high, extra,
               (long long)result->launches);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

/* Takes `value`. */
static void put(json_t* object, const char* key, json_t* value) {
  if (json_object_set_new(object, key, value) != 0) bench_die("no memory for the results");
}

static json_t* choice_json(const overlap_result* result) {
  const tdm_choice* choice = &result->choice;
  json_t* one = json_pack("{ss ss si ss sb ss}", "lanes", tdm_strategy_name(choice->strategy), "wait",
                          tdm_wait_form_name(choice->wait_form), "side_sms", choice->side_sms, "experts",
                          tdm_moe_path_name(choice->moe_path), "ok", is_fine(result), "note", result->note);
  if (!one) bench_die("no memory for the results");
  return one;
}

static bench_times a_layer(const bench_times* times, int64_t layers) {
  const double n = (double)layers;
  return (bench_times){.median = times->median / n, .low = times->low / n, .high = times->high / n};
}

static void add_figures(const overlap_suite* suite, const overlap_point* point, const overlap_result* result,
                        json_t* one) {
  const bench_times us = a_layer(&result->us, suite->shape.layers);
  const double rate = rate_of(suite, point, result);
  const double of_serial = percent_of(result, serial_of(point, result));
  const double of_dense = percent_of(result, &point->results[0]);
  put(one, "us", bench_json_times(&us));
  put(one, "launches", bench_json_number((double)result->launches / (double)suite->shape.layers));
  put(one, "bytes", json_integer((json_int_t)overlap_bytes(suite, point, result)));
  put(one, "gbps", bench_json_number(rate * 1e-9));
  if (of_serial > 0) put(one, "percent_of_serial", bench_json_number(of_serial));
  if (of_dense > 0) put(one, "percent_of_serial_dense", bench_json_number(of_dense));
  if (suite->rig.bandwidth > 0) {
    put(one, "percent_of_bandwidth", bench_json_number(100 * rate / suite->rig.bandwidth));
    put(one, "sm_mhz", bench_json_number(point->mhz));
  }
}

/* Why the tuned choice is what it is, and whether it is what it should be. */
static void add_verdict(const overlap_point* point, const verdict* v, json_t* one) {
  put(one, "measured", json_boolean(point->source == TDM_CHOICE_TUNING));
  if (!v->best) return;
  const int64_t best = v->best - point->results;
  put(one, "best", json_string(overlap_ways[best].name));
  put(one, "percent_over_best", bench_json_number(v->over_best));
  put(one, "same_way", json_boolean(v->same));
  put(one, "close", json_boolean(v->close));
  if (!v->dense) return;
  put(one, "gain_us", bench_json_number(v->gain_us));
  put(one, "router_us", bench_json_number(point->router_us));
  put(one, "hides_router", json_boolean(v->hides));
}

static void add_result(const overlap_suite* suite, const overlap_point* point, int32_t index, const verdict* v) {
  const overlap_result* result = &point->results[index];
  json_t* one = choice_json(result);
  put(one, "group", json_string("overlap"));
  put(one, "case", json_string(index == OVERLAP_TUNED ? "tuned" : overlap_ways[index].name));
  put(one, "m", json_integer(point->m));
  put(one, "sms", json_integer(suite->rig.device_sms));
  put(one, "experts_hit", bench_json_number(point->experts));
  if (is_fine(result)) add_figures(suite, point, result, one);
  if (index == OVERLAP_TUNED) add_verdict(point, v, one);
  if (json_array_append_new(json_object_get(suite->json, "results"), one) != 0) bench_die("no memory for a result");
}

static void add_fork(const overlap_suite* suite, const overlap_fork* fork, int32_t index) {
  const overlap_result *result = &fork->results[index], *plain = &fork->results[OVERLAP_PLAIN];
  json_t* one = choice_json(result);
  put(one, "m", json_integer(fork->m));
  put(one, "layers", json_integer(fork->layers));
  if (is_fine(result)) {
    put(one, "us", bench_json_times(&result->us));
    put(one, "launches", json_integer(result->launches));
    if (is_fine(plain)) put(one, "extra_us", bench_json_number(result->us.median - plain->us.median));
  }
  json_t* forks = json_object_get(json_object_get(suite->json, "overlap"), "forks");
  if (json_array_append_new(forks, one) != 0) bench_die("no memory for a result");
}

static json_t* block_json(const overlap_suite* suite, const overlap_block* block) {
  const overlap_result* tuned = &block->results[1];
  json_t* one = choice_json(tuned);
  put(one, "m", json_integer(block->m));
  put(one, "us", bench_json_times(&tuned->us));
  put(one, "blocks", json_integer(suite->shape.layers));
  put(one, "launches", json_integer(tuned->launches));
  put(one, "experts_hit", bench_json_number(block->experts));
  put(one, "dense_chain_us", bench_json_number(chain_of(block, false)));
  put(one, "grouped_chain_us", bench_json_number(chain_of(block, true)));
  put(one, "fc1_us", bench_json_number(block->fc1));
  put(one, "fc2_us", bench_json_number(block->fc2));
  put(one, "router_us", bench_json_number(block->router));
  put(one, "norm_us", bench_json_number(block->norm));
  put(one, "route_us", bench_json_number(block->route));
  put(one, "activation_us", bench_json_number(block->activation));
  return one;
}

static json_t* open_json(const overlap_suite* suite) {
  json_t* root = bench_json_open(&suite->rig, suite->options);
  json_t* overlap = json_pack("{ss sI sI si so so so si s[]}", "shape", suite->shape.tiny ? "tiny" : "TP8", "layers",
                              (json_int_t)suite->shape.layers, "context", (json_int_t)suite->shape.context, "side_sms",
                              OVERLAP_SIDE_SMS, "weight_bytes", json_integer((json_int_t)suite->weight_bytes),
                              "expert_bytes", json_integer((json_int_t)suite->expert_bytes), "tuning_s",
                              bench_json_number(suite->tuned.seconds), "tuned_buckets", suite->tuned.buckets, "forks");
  if (!overlap) bench_die("no memory for the results");
  put(overlap, "blocks", json_array());
  put(root, "overlap", overlap);
  return root;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

void overlap_report_header(overlap_suite* suite) {
  const bench_rig* rig = &suite->rig;
  if (suite->options->json_path) suite->json = open_json(suite);
  (void)printf("%s, %d SMs; tandem %s; decode steps of %lld %s DeepSeek-V3 layers, context %lld\n", rig->device_name,
               rig->device_sms, tdm_version(), (long long)suite->shape.layers, suite->shape.tiny ? "tiny" : "TP8",
               (long long)suite->shape.context);
  if (rig->driver)
    (void)printf("read bandwidth: %.0f GB/s by plain loads, %.0f by bulk copies; %% is of the better\n",
                 rig->loads * 1e-9, rig->bulk * 1e-9);
  else
    (void)printf("wall clock of the host device, whose lanes are threads: times say nothing about a GPU\n");
  (void)printf("bytes: %.1f MB of weights a layer (hits and grouped: %.2f MB less for each routed expert that no token "
               "chose) and the "
               "cache of each sequence, once; no activations\n",
               suite->weight_bytes * 1e-6, suite->expert_bytes * 1e-6);
  (void)printf("tuned: %d buckets in %.1f s, %d ways measured, %d left at their rule\n", suite->tuned.buckets,
               suite->tuned.seconds, suite->tuned.programs, suite->tuned.left);
  (void)printf(
      "us and launches are a layer's; serial %% is of one lane with the same experts, dense %% of one lane with "
      "all experts\n\n");
  (void)printf("%5s %-6s %-17s %-7s %9s %9s %9s %8s %7s %6s %5s %8s\n", "M", "", "lanes", "experts", "us", "min", "max",
               "serial %", "dense %", "GB/s", "%", "launches");
}

void overlap_report_point(overlap_suite* suite, const overlap_point* point) {
  const verdict v = judge(suite, point);
  count(suite, point->results, OVERLAP_TUNED + 1);
  suite->judged += v.best != NULL;
  suite->close += v.close;
  suite->dense += v.dense;
  suite->hiding += v.dense && v.hides;
  for (int32_t i = 0; i <= OVERLAP_TUNED; i++) {
    print_row(suite, point, i);
    if (suite->json) add_result(suite, point, i, &v);
  }
  print_verdict(suite, point, &v);
  (void)printf("%12s experts hit: %.1f; %s\n", "", point->experts,
               point->source == TDM_CHOICE_TUNING ? "the choice was measured" : "the choice is the rule's");
}

void overlap_report_fork(overlap_suite* suite, const overlap_fork* fork) {
  count(suite, fork->results, OVERLAP_FORKS);
  for (int32_t i = 0; i < OVERLAP_FORKS; i++) {
    print_fork(fork, i);
    if (suite->json) add_fork(suite, fork, i);
  }
}

void overlap_report_end(const overlap_suite* suite) {
  (void)printf("\n%d timed with the bits of the serial result, %d skipped, %d with other bits\n", suite->timed,
               suite->skipped, suite->wrong);
  (void)printf(
      "goals: %d of %d tuned choices at most %g %% slower than the best; %d of %d dense ones hide the router but "
      "for %g us\n",
      suite->close, suite->judged, slower_percent, suite->hiding, suite->dense, router_slack_us);
}
