#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

/* A result's identity and time. Strings belong to the file. */
typedef struct entry {
  const char* group;
  const char* name;
  json_int_t m, sms;
  double us; /* 0: it failed */
} entry;

/* BENCH_OK with the parsed file, or BENCH_USAGE after having said what is wrong with it. */
static int load(const char* path, json_t** out_root) {
  json_error_t error;
  *out_root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
  if (!*out_root) {
    if (error.line > 0)
      (void)fprintf(stderr, "tandem-bench: %s:%d: %s\n", path, error.line, error.text);
    else
      (void)fprintf(stderr, "tandem-bench: %s: %s\n", path, error.text);
    return BENCH_USAGE;
  }
  if (json_integer_value(json_object_get(*out_root, "tandem_bench")) == 1 &&
      json_is_array(json_object_get(*out_root, "results")))
    return BENCH_OK;
  (void)fprintf(stderr, "tandem-bench: %s is no file of tandem-bench --json\n", path);
  json_decref(*out_root);
  *out_root = NULL;
  return BENCH_USAGE;
}

static bool read_entry(const json_t* result, entry* out) {
  *out = (entry){.group = json_string_value(json_object_get(result, "group")),
                 .name = json_string_value(json_object_get(result, "case")),
                 .m = json_integer_value(json_object_get(result, "m")),
                 .sms = json_integer_value(json_object_get(result, "sms"))};
  if (json_is_true(json_object_get(result, "ok")))
    out->us = json_number_value(json_object_get(json_object_get(result, "us"), "median"));
  return out->group && out->name && isfinite(out->us) && out->us >= 0;
}

static bool find(const json_t* results, const entry* wanted, entry* out) {
  size_t i;
  json_t* result;
  json_array_foreach(results, i, result) {
    if (read_entry(result, out) && out->m == wanted->m && out->sms == wanted->sms &&
        strcmp(out->name, wanted->name) == 0 && strcmp(out->group, wanted->group) == 0)
      return true;
  }
  return false;
}

typedef struct tally {
  int compared, apart, lost;
} tally;

static void compare_entry(const entry* a, const json_t* results_b, double tolerance, tally* sum) {
  entry b;
  char label[96];
  (void)snprintf(label, sizeof label, "%s %s", a->group, a->name);
  if (!find(results_b, a, &b) || a->us <= 0 || b.us <= 0) {
    (void)printf("%-28s %6lld %4lld  %s\n", label, (long long)a->m, (long long)a->sms,
                 a->us > 0 ? "has no time in B" : "has no time in A");
    sum->lost++;
    return;
  }
  const double ratio = b.us / a->us;
  const bool apart = fabs(ratio - 1) * 100 > tolerance;
  (void)printf("%-28s %6lld %4lld %10.2f %10.2f %7.3f%s\n", label, (long long)a->m, (long long)a->sms, a->us, b.us,
               ratio,
               !apart      ? ""
               : ratio > 1 ? "  slower"
                           : "  faster");
  sum->compared++;
  sum->apart += apart;
}

static int compare_results(const json_t* a, const json_t* b, double tolerance) {
  size_t i;
  json_t* result;
  tally sum = {0};
  (void)printf("%-28s %6s %4s %10s %10s %7s\n", "case", "M", "SMs", "A us", "B us", "B / A");
  json_array_foreach(a, i, result) {
    entry one;
    if (read_entry(result, &one)) compare_entry(&one, b, tolerance, &sum);
  }
  if (sum.compared == 0) {
    (void)fprintf(stderr, "tandem-bench: the two files have no case in common\n");
    return BENCH_WRONG;
  }
  (void)printf("%d compared, %d apart by more than %g %%, %d of A without a counterpart\n", sum.compared, sum.apart,
               tolerance, sum.lost);
  return sum.apart || sum.lost ? BENCH_WRONG : BENCH_OK;
}

/* Says so where the two were not measured alike. */
static void compare_conditions(const json_t* a, const json_t* b) {
  static const char* const keys[] = {"device", "rest_ms", "replays"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    char* of_a = json_dumps(json_object_get(a, keys[i]), JSON_ENCODE_ANY);
    char* of_b = json_dumps(json_object_get(b, keys[i]), JSON_ENCODE_ANY);
    if (of_a && of_b && strcmp(of_a, of_b) != 0)
      (void)printf("measured otherwise: %s is %s in A, %s in B\n", keys[i], of_a, of_b);
    free(of_a);
    free(of_b);
  }
}

int bench_compare(const char* path_a, const char* path_b, double tolerance) {
  json_t *a = NULL, *b = NULL;
  int status = load(path_a, &a);
  if (status == BENCH_OK) status = load(path_b, &b);
  if (status == BENCH_OK) {
    compare_conditions(a, b);
    status = compare_results(json_object_get(a, "results"), json_object_get(b, "results"), tolerance);
  }
  json_decref(a);
  json_decref(b);
  return status;
}
