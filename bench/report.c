#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"

void bench_print_header(const bench_rig* rig) {
  (void)printf("%s, %d SMs; tandem %s; cuBLASLt %s\n", rig->device_name, rig->device_sms, tdm_version(),
               rig->cublaslt_state);
  (void)printf("read bandwidth on %d SMs: %.0f GB/s by plain loads, %.0f by bulk copies; %% is of the better\n",
               rig->sms, rig->loads * 1e-9, rig->bulk * 1e-9);
  (void)printf("%-17s %5s  %-30s %6s %9s %9s %9s %6s %6s %6s %5s %9s %9s %8s %6s\n", "case", "M", "kernel", "copies",
               "us", "min", "max", "GB/s", "%", "TFLOP", "MHz", "cuBLASLt", "recorded", "goal", "peer %");
}

static const char* number(char* text, size_t bytes, double value) {
  if (value > 0)
    (void)snprintf(text, bytes, value < 1000 ? "%.2f" : "%.0f", value);
  else
    (void)snprintf(text, bytes, "-");
  return text;
}

/* The best that others do: measured in this run or recorded. 0: nothing known. */
static double best_peer(const bench_result* r) {
  const double recorded = r->figure ? r->figure->peer_us : 0;
  if (!r->has_peer) return recorded;
  return recorded > 0 && recorded < r->timing.peer.median ? recorded : r->timing.peer.median;
}

void bench_print_result(const bench_rig* rig, const bench_result* r) {
  char copies[16], us[16], low[16], high[16], peer[16], recorded[16], goal[16], percent[16] = "-";
  if (!r->ok) {
    (void)printf("%-17s %5lld  FAILED: %s\n", r->c->name, (long long)r->m, r->note);
    return;
  }
  (void)snprintf(copies, sizeof copies, r->work->warm ? "warm" : "%d", r->work->copies);
  const double rate = r->work->plan.bytes / r->timing.ours.median * 1e6, other = best_peer(r);
  if (other > 0) (void)snprintf(percent, sizeof percent, "%.0f", 100 * other / r->timing.ours.median);
  (void)printf("%-17s %5lld  %-30s %6s %9s %9s %9s %6.0f %6.1f %6.0f %5.0f %9s %9s %8s %6s\n", r->c->name,
               (long long)r->m, r->work->plan.variant, copies, number(us, sizeof us, r->timing.ours.median),
               number(low, sizeof low, r->timing.ours.low), number(high, sizeof high, r->timing.ours.high), rate * 1e-9,
               100 * rate / rig->bandwidth, r->work->plan.flops / r->timing.ours.median * 1e-6, r->timing.mhz,
               number(peer, sizeof peer, r->has_peer ? r->timing.peer.median : 0),
               number(recorded, sizeof recorded, r->figure ? r->figure->peer_us : 0),
               number(goal, sizeof goal, r->figure ? r->figure->goal_us : 0), percent);
  if (!r->has_peer && r->note[0]) (void)printf("%24s %s\n", "", r->note);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

json_t* bench_json_number(double value) {
  return json_real(round(value * 1000) / 1000);
}

json_t* bench_json_times(const bench_times* times) {
  return json_pack("{so so so}", "median", bench_json_number(times->median), "min", bench_json_number(times->low),
                   "max", bench_json_number(times->high));
}

json_t* bench_json_open(const bench_rig* rig, const bench_options* options) {
  char date[32];
  const time_t now = time(NULL);
  struct tm utc;
  (void)strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
  json_t* root =
      json_pack("{si ss ss ss si si ss si si s{so so so} s[]}", "tandem_bench", 1, "date", date, "tandem",
                tdm_version(), "device", rig->device_name, "device_sms", rig->device_sms, "sms", rig->sms, "cublaslt",
                rig->cublaslt_state, "replays", options->replays, "rest_ms", options->rest_ms, "bandwidth_gbps",
                "loads", bench_json_number(rig->loads * 1e-9), "bulk", bench_json_number(rig->bulk * 1e-9), "best",
                bench_json_number(rig->bandwidth * 1e-9), "results");
  if (!root) bench_die("no memory for the results");
  return root;
}

void bench_json_add(const bench_rig* rig, json_t* root, const bench_result* r) {
  json_t* one = json_pack("{ss ss sI sI sI sI si sb ss}", "group", r->c->group, "case", r->c->name, "m",
                          (json_int_t)r->m, "n", (json_int_t)r->c->n, "k", (json_int_t)r->c->k, "batch",
                          (json_int_t)r->c->batch, "sms", rig->sms, "ok", r->ok, "note", r->note);
  if (!one) bench_die("no memory for a result");
  if (r->ok) {
    const bench_work* work = r->work;
    const double rate = work->plan.bytes / r->timing.ours.median * 1e6;
    json_t* measured = json_pack(
        "{ss ss si so sI sI so so so si si sb sf so}", "op", work->op->name, "kernel", work->plan.variant, "splits",
        work->plan.splits, "us", bench_json_times(&r->timing.ours), "bytes", (json_int_t)work->plan.bytes, "flops",
        (json_int_t)work->plan.flops, "gbps", bench_json_number(rate * 1e-9), "percent_of_bandwidth",
        bench_json_number(100 * rate / rig->bandwidth), "tflops",
        bench_json_number(work->plan.flops / r->timing.ours.median * 1e-6), "steps", work->steps, "copies",
        work->copies, "warm", work->warm, "difference", r->difference, "sm_mhz", bench_json_number(r->timing.mhz));
    if (!measured || json_object_update(one, measured) != 0) bench_die("no memory for a result");
    json_decref(measured);
    if (r->has_peer) (void)json_object_set_new(one, "cublaslt_us", bench_json_times(&r->timing.peer));
    if (r->figure && r->figure->peer_us > 0)
      (void)json_object_set_new(one, "peer_us", bench_json_number(r->figure->peer_us));
    if (r->figure && r->figure->goal_us > 0)
      (void)json_object_set_new(one, "goal_us", bench_json_number(r->figure->goal_us));
    (void)json_object_set_new(one, "floor_us", bench_json_number(work->plan.bytes / rig->bandwidth * 1e6));
  }
  if (json_array_append_new(json_object_get(root, "results"), one) != 0) bench_die("no memory for a result");
}

int bench_json_close(json_t* root, const bench_options* options, int status) {
  if (root && json_dump_file(root, options->json_path, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0) {
    (void)fprintf(stderr, "tandem-bench: %s could not be written\n", options->json_path);
    status = BENCH_USAGE;
  }
  json_decref(root);
  return status;
}
