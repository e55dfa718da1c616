#include <argp.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "examples/common/decode_step.h"

enum { KEY_JSON = 'j', KEY_MS = 'm', KEY_SUITE = 's', KEY_LIST = 'l', KEY_COMPARE = 'c', KEY_TOLERANCE = 't' };
enum {
  KEY_SMS = 256,
  KEY_REPEAT,
  KEY_REPLAYS,
  KEY_REST,
  KEY_PROGRESS,
  KEY_NO_PEER,
  KEY_CUBLASLT,
  KEY_HOST,
  KEY_LAYERS
};
enum { LEAST_REPLAYS = 21, REST_MS = 5, MAX_ROWS = 65536, MAX_SEQUENCES = DECODE_STEP_MOST, MAX_LAYERS = 61 };

static const struct argp_option options[] = {
    {"list", KEY_LIST, NULL, 0, "list the cases and leave", 0},
    {"suite", KEY_SUITE, "roof|prefill|small|all|overlap", 0,
     "the cases of a suite, at the suite's M; all: of the first three; overlap: whole layers in all ways to run them",
     0},
    {"m", KEY_MS, "A,B,...", 0, "rows (tokens; sequences for mla_decode), instead of each case's own", 0},
    {"sms", KEY_SMS, "N", 0, "on a soft lane of N SMs; the peer is told the same number", 0},
    {"json", KEY_JSON, "FILE", 0, "write the results there", 0},
    {"repeat-bits", KEY_REPEAT, "N", 0, "also check that N replays give the same bits", 0},
    {"replays", KEY_REPLAYS, "N", 0, "replays timed, at least 21 (default 21)", 0},
    {"rest", KEY_REST, "MS", 0, "rest before each replay, so that the clock stays up (default 5); 0: sustained load",
     0},
    {"no-peer", KEY_NO_PEER, NULL, 0, "without cuBLASLt", 0},
    {"cublaslt", KEY_CUBLASLT, "FILE", 0, "cuBLASLt's library, if the loader and /usr/local/cuda do not have it", 0},
    {"progress", KEY_PROGRESS, NULL, 0, "a line for each case on stderr (default: if that is a terminal)", 0},
    {"layers", KEY_LAYERS, "N,...", 0,
     "overlap: layers in a graph; what forking costs is measured with each number, the rest with the first (default "
     "4,1,8; a layer takes 1.5 GB)",
     0},
    {"host", KEY_HOST, NULL, 0, "overlap: a tiny layer on the host device, to try it without a GPU", 0},
    {"compare", KEY_COMPARE, NULL, 0, "two files of --json, A and B: print B's times over A's", 1},
    {"tolerance", KEY_TOLERANCE, "PERCENT", 0, "with --compare: the largest difference allowed (default 3)", 1},
    {0},
};

static const char doc[] =
    "Times tandem's kernels on a Hopper GPU: replays of captured programs, beside cuBLASLt in the same run."
    "\vCASE is a group (all its cases), a group and names of it, or a name: see --list. Each case's result is compared "
    "with the reference before it is timed. docs/performance.md says how it measures.\n\n"
    "Exit status: 0 done; 1 a result is wrong, or --compare found a difference; 2 wrong usage; 3 tandem or the driver "
    "failed; 77 no GPU.";

static bool parse_number(const char* text, int64_t least, int64_t most, int64_t* out) {
  char* end;
  errno = 0;
  *out = strtoll(text, &end, 10);
  return end != text && *end == '\0' && errno == 0 && *out >= least && *out <= most;
}

/* Different numbers from 1 to `most`, at most `capacity` of them; answers how many. */
static int32_t parse_list(struct argp_state* state, const char* option, const char* text, int64_t most,
                          int32_t capacity, int64_t* out) {
  int32_t n = 0;
  for (const char* item = text;;) {
    char number[24];
    const size_t length = strcspn(item, ",");
    int64_t value = 0;
    (void)snprintf(number, sizeof number, "%.*s", (int)(length < sizeof number ? length : sizeof number - 1), item);
    if (length >= sizeof number || !parse_number(number, 1, most, &value))
      argp_error(state, "--%s: '%.*s' is no number from 1 to %lld", option, (int)length, item, (long long)most);
    if (n == capacity) argp_error(state, "--%s: more than %d numbers", option, capacity);
    for (int32_t i = 0; i < n; i++)
      if (out[i] == value) argp_error(state, "--%s: %lld comes twice", option, (long long)value);
    out[n++] = value;
    if (item[length] == '\0') return n;
    item += length + 1;
  }
}

static void parse_suite(struct argp_state* state, bench_options* parsed, const char* text) {
  static const struct {
    const char* name;
    uint32_t suites;
  } suites[] = {{"roof", BENCH_ROOF},
                {"prefill", BENCH_PREFILL},
                {"small", BENCH_SMALL},
                {"all", BENCH_ROOF | BENCH_PREFILL | BENCH_SMALL},
                {"overlap", BENCH_OVERLAP}};
  for (size_t i = 0; i < sizeof suites / sizeof *suites; i++) {
    if (strcmp(suites[i].name, text) == 0) {
      parsed->suites |= suites[i].suites;
      return;
    }
  }
  argp_error(state, "--suite: '%s' is none of roof, prefill, small, all, overlap", text);
}

static int32_t number_of(struct argp_state* state, const char* option, const char* text, int64_t least, int64_t most) {
  int64_t value = 0;
  if (!parse_number(text, least, most, &value))
    argp_error(state, "--%s: '%s' is no number from %lld to %lld", option, text, (long long)least, (long long)most);
  return (int32_t)value;
}

static void parse_tolerance(struct argp_state* state, bench_options* parsed, const char* text) {
  char* end;
  parsed->tolerance = strtod(text, &end);
  if (end == text || *end != '\0' || !(parsed->tolerance >= 0 && parsed->tolerance <= 1000))
    argp_error(state, "--tolerance: '%s' is no percentage from 0 to 1000", text);
}

/* Before minutes of measuring: could the file be written? Creates nothing. */
static void check_json_path(struct argp_state* state, const char* path) {
  struct stat info;
  char folder[4096];
  if (stat(path, &info) == 0) {
    if (!S_ISDIR(info.st_mode) && access(path, W_OK) == 0) return;
    argp_error(state, "--json: %s cannot be written: %s", path, S_ISDIR(info.st_mode) ? "a folder" : strerror(errno));
    return;
  }
  (void)snprintf(folder, sizeof folder, "%s", path);
  const char* parent = dirname(folder);
  if (*path == '\0' || access(parent, W_OK) != 0)
    argp_error(state, "--json: '%s' cannot be written: %s: %s", path, *path ? parent : "no name", strerror(errno));
}

static void check_overlap(struct argp_state* state, const bench_options* parsed) {
  if (parsed->suites != BENCH_OVERLAP || parsed->n_words > 0)
    argp_error(state, "--suite overlap has no cases and goes with no other suite");
  if (parsed->sms || parsed->repeat_bits) argp_error(state, "--suite overlap takes no --sms and no --repeat-bits");
  for (int32_t i = 0; i < parsed->n_ms; i++)
    if (parsed->ms[i] > MAX_SEQUENCES) argp_error(state, "--m: --suite overlap takes at most %d", MAX_SEQUENCES);
}

/* What only the whole command line tells. */
static void check_all(struct argp_state* state, const bench_options* parsed) {
  if (parsed->compare) {
    if (parsed->n_words != 2) argp_error(state, "--compare needs two files, not %d", parsed->n_words);
    return;
  }
  if (!parsed->list && parsed->n_words == 0 && parsed->suites == 0)
    argp_error(state, "name cases or a --suite; --list shows them");
  if (parsed->suites & BENCH_OVERLAP)
    check_overlap(state, parsed);
  else if (parsed->host || parsed->n_layers)
    argp_error(state, "--host and --layers are for --suite overlap");
  if (parsed->json_path) check_json_path(state, parsed->json_path);
}

static error_t parse(int key, char* text, struct argp_state* state) {
  bench_options* parsed = state->input;
  switch (key) {
  case KEY_LIST:
    parsed->list = true;
    return 0;
  case KEY_SUITE:
    parse_suite(state, parsed, text);
    return 0;
  case KEY_MS:
    parsed->n_ms = parse_list(state, "m", text, MAX_ROWS, BENCH_MS, parsed->ms);
    return 0;
  case KEY_SMS:
    parsed->sms = number_of(state, "sms", text, 1, 1024);
    return 0;
  case KEY_JSON:
    parsed->json_path = text;
    return 0;
  case KEY_REPEAT:
    parsed->repeat_bits = number_of(state, "repeat-bits", text, 2, 1000);
    return 0;
  case KEY_REPLAYS:
    parsed->replays = number_of(state, "replays", text, LEAST_REPLAYS, 10000);
    return 0;
  case KEY_REST:
    parsed->rest_ms = number_of(state, "rest", text, 0, 1000);
    return 0;
  case KEY_NO_PEER:
    parsed->no_peer = true;
    return 0;
  case KEY_CUBLASLT:
    parsed->cublaslt_path = text;
    return 0;
  case KEY_HOST:
    parsed->host = true;
    return 0;
  case KEY_LAYERS:
    parsed->n_layers = parse_list(state, "layers", text, MAX_LAYERS, BENCH_LAYERS, parsed->layers);
    return 0;
  case KEY_PROGRESS:
    parsed->progress = true;
    return 0;
  case KEY_COMPARE:
    parsed->compare = true;
    return 0;
  case KEY_TOLERANCE:
    parse_tolerance(state, parsed, text);
    return 0;
  case ARGP_KEY_ARGS:
    parsed->words = state->argv + state->next;
    parsed->n_words = state->argc - state->next;
    return 0;
  case ARGP_KEY_END:
    check_all(state, parsed);
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

int bench_parse(int argc, char** argv, bench_options* out_options) {
  const struct argp argp = {
      .options = options, .parser = parse, .args_doc = "[CASE...]\n--compare A.json B.json", .doc = doc};
  *out_options = (bench_options){
      .tolerance = 3, .replays = LEAST_REPLAYS, .rest_ms = REST_MS, .progress = isatty(STDERR_FILENO) != 0};
  argp_err_exit_status = BENCH_USAGE; /* argp_error leaves with it */
  argp_program_version = tdm_version();
  return argp_parse(&argp, argc, argv, 0, NULL, out_options) == 0 ? BENCH_OK : BENCH_USAGE;
}
