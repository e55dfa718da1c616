#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

/* tandem-bench: what its files share. docs/performance.md says how it measures.
 *
 *   arguments  the command line          cases     the table of cases: shapes, suites, figures to beat
 *   device     runtime, graphs, events   make_*    a case's operands and steps
 *   ruler      bandwidth, clock          check     results against the references
 *   cublaslt   the peer                  report    the table and the JSON file;  compare: two such files
 *   overlap    the ways to run a whole layer; its own model, tables and results, on the same device and timing */

#include <jansson.h>
#include <stdalign.h>

#include "runtime/op.h"
#include "tandem/tandem.h"

/* Exit statuses. */
enum { BENCH_OK = 0, BENCH_WRONG = 1, BENCH_USAGE = 2, BENCH_FAILED = 3, BENCH_NO_GPU = 77 };

enum { BENCH_MS = 12, BENCH_LAYERS = 8, BENCH_ARGS_BYTES = 2048, BENCH_CUTS = 24, BENCH_AXES = 4, BENCH_BUFFERS = 24 };

/* ---- arguments -------------------------------------------------------------------------------------------------- */

typedef struct bench_options {
  bool list, compare, progress, no_peer;
  bool host;       /* overlap: a tiny layer on the host device */
  uint32_t suites; /* of bench_suite */
  char** words;    /* groups and cases; with `compare` two files */
  int32_t n_words;
  int64_t ms[BENCH_MS];
  int32_t n_ms;                 /* 0: each case's own */
  int64_t layers[BENCH_LAYERS]; /* overlap: in a graph */
  int32_t n_layers;             /* 0: the suite's own */
  int32_t sms;                  /* 0: all */
  int32_t replays, repeat_bits, rest_ms;
  double tolerance; /* percent */
  const char* json_path;
  const char* cublaslt_path; /* NULL: where the loader and the toolkit have it */
} bench_options;

/* Answers BENCH_OK, or an exit status after having said why. */
int bench_parse(int argc, char** argv, bench_options* out_options);

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* Of cases, but for overlap, which has none and runs alone. */
typedef enum bench_suite { BENCH_ROOF = 1, BENCH_PREFILL = 2, BENCH_SMALL = 4, BENCH_OVERLAP = 8 } bench_suite;

typedef struct bench_rig bench_rig;
typedef struct bench_work bench_work;

/* A number of rows that a case is run at by itself, and what is known of it; 0: nothing. */
typedef struct bench_figure {
  bench_suite suite;
  int64_t m;
  double peer_us; /* best recorded peer, docs/peers.md */
  double goal_us;
} bench_figure;

typedef struct bench_case {
  const char* group;
  const char* name;
  const char* what;
  /* Allocates operands and fills `work`: op, args, what rotates, what is checked, the peer. */
  tdm_status (*make)(bench_rig* rig, const struct bench_case* c, int64_t m, bench_work* work);
  int64_t n, k, batch; /* batch: experts for fc1 and fc2, heads for attention */
  bench_figure figures[BENCH_MS];
} bench_case;

extern const bench_case bench_cases[];
extern const int32_t bench_case_count;

/* Marks in `chosen` [bench_case_count] what suites and words ask for. Answers BENCH_OK, or BENCH_USAGE after having
 * said which word names nothing. */
int bench_choose(const bench_options* options, bool* chosen);
void bench_list(void);
/* The rows that a run measures the case at; how many. */
int32_t bench_rows(const bench_options* options, const bench_case* c, int64_t* out_ms);
/* The case's figure at m rows, or NULL. */
const bench_figure* bench_find_figure(const bench_case* c, int64_t m);
uint32_t bench_case_suites(const bench_case* c);

/* ---- device ----------------------------------------------------------------------------------------------------- */

/* Clocks that tick beside what is timed: before it, to give the host a lead, and after it. */
typedef enum bench_clock { BENCH_CLOCK_BEFORE, BENCH_CLOCK_AFTER, BENCH_CLOCKS } bench_clock;

typedef struct bench_driver bench_driver;
typedef struct bench_cublaslt bench_cublaslt;

struct bench_rig {
  tdm_runtime* runtime; /* what is measured: of the CUDA device, or, with --host, of the host device */
  tdm_runtime* host;    /* of the references; NULL with --host */
  tdm_lane* lane;       /* all SMs, or a soft lane of `sms`; NULL with --host, and so is the driver */
  char device_name[64];
  int32_t device_sms, sms;
  uint64_t random;
  tdm_buffer* pools[2];          /* random e4m3 and bf16 values, which weights are cut from */
  double loads, bulk, bandwidth; /* bytes a second: plain loads, bulk copies, the better */
  tdm_buffer* clock_sums;
  tdm_graph* clocks[BENCH_CLOCKS];
  bench_driver* driver;
  bench_cublaslt* cublaslt; /* NULL where it is missing */
  char cublaslt_state[200]; /* its version, or why it is missing */
};

/* BENCH_OK, BENCH_NO_GPU or BENCH_FAILED, the latter two after having said why. With --host what can be tried without a
 * GPU: replays, reading and writing buffers, and bench_time_turns, by the wall clock. */
int bench_open(const bench_options* options, bench_rig* rig);
void bench_close(bench_rig* rig);

/* Ends the program with tandem's, the driver's or our sentence: nothing after it would mean anything. */
_Noreturn void bench_die(const char* format, ...) __attribute__((format(printf, 1, 2)));
void bench_must(tdm_status status, const char* what);

uint64_t bench_random(bench_rig* rig);
/* The pool of that dtype (TDM_E4M3 or TDM_BF16), at least `bytes` long. Views of it die when it grows. */
tdm_buffer* bench_pool(bench_rig* rig, tdm_dtype dtype, size_t bytes);
/* The stream of all that is timed; CUstream. */
void* bench_stream(const bench_rig* rig);
void bench_replay(const bench_rig* rig, tdm_graph* graph);
void bench_synchronize(const bench_rig* rig);
/* 0xff to the bytes that the view can reach: NaN in every float format. */
void bench_poison(const bench_rig* rig, const tdm_view* view);
/* Captures what `enqueue` puts on the stream; a CUgraphExec. NULL after a failing capture. */
void* bench_capture(const bench_rig* rig, bool (*enqueue)(void* ctx), void* ctx);
void bench_graph_launch(const bench_rig* rig, void* exec);
void bench_graph_destroy(const bench_rig* rig, void* exec);

/* Microseconds of a replay. */
typedef struct bench_times {
  double median, low, high;
} bench_times;

typedef struct bench_timing {
  bench_times ours, peer;
  double mhz; /* SM clock right after ours, the mean of all rounds */
} bench_timing;

/* Replays `graph` and, where it is there, the peer's by turns, after 3 of each to warm up. The GPU never waits for the
 * host between an event and what it times: rounds are issued ahead of it, or, when it rests `rest_ms` before each
 * round, begin with a wait on the GPU. */
void bench_time(const bench_rig* rig, tdm_graph* graph, void* peer, int32_t replays, int32_t rest_ms,
                bench_timing* out_timing);

/* Replays `n` graphs by turns, each round beginning with the next one, with the same care; `leads`: how many waits of
 * 20 us go before each, for graphs that take the host longer to launch. `out_mhz` (0 with --host) is over all. */
void bench_time_turns(const bench_rig* rig, tdm_graph* const* graphs, int32_t n, int32_t leads,
                      const bench_options* options, bench_times* out_times, double* out_mhz);

/* Median of a few replays of a graph by itself. */
double bench_time_graph(const bench_rig* rig, void* exec, int32_t replays);

/* ---- work: a case at a number of rows --------------------------------------------------------------------------- */

/* Along `axis`, unit u of an operand is [at + u * step, at + u * step + count) of dimension `dim`. */
typedef struct bench_cut {
  int32_t axis;
  size_t view; /* offsetof(args, operand) */
  int32_t dim;
  int64_t at, step, count;
} bench_cut;

/* A call whose result is compared with the reference, in pieces that the reference can do. */
typedef struct bench_check {
  const tdm_op* op;
  alignas(16) uint8_t args[BENCH_ARGS_BYTES];
  bench_cut cuts[BENCH_CUTS];
  int32_t n_cuts;
  int64_t units[BENCH_AXES]; /* 0 or 1: the axis has one */
  double bound;              /* of the difference; 0: the dtype's */
} bench_check;

/* The same product by cuBLASLt: out[b] = a[b] w[b]^T. Leading strides count elements. */
typedef struct bench_product {
  int64_t m, n, k, batch;
  tdm_dtype in, out_dtype; /* TDM_E4M3 with block scales, or TDM_BF16 */
  tdm_view a, a_scale, w, w_scale, out;
  int64_t a_stride, a_batch, w_stride, w_batch, out_stride, out_batch;
  bool w_transposed; /* w is [K, N] */
  const char* note;  /* what it leaves out */
} bench_product;

struct bench_work {
  const tdm_op* op;
  alignas(16) uint8_t args[BENCH_ARGS_BYTES];
  size_t rotated;      /* offsetof the view that rotates; 0: none */
  size_t copy_bytes;   /* from one copy to the next */
  int32_t least_steps; /* set before the maker is called */
  int32_t copies, steps;
  double unread; /* bytes of weights that nobody chose, the copies' mean; the plan counts them */
  bool warm;     /* all copies together are less than four times L2 */
  bench_check check;
  bool has_product;
  bench_product product;
  bench_check product_check;
  tdm_plan plan;
  tdm_buffer* buffers[BENCH_BUFFERS];
  int32_t n_buffers;
  char note[240];
};

/* A program of work->steps steps, each with its copy of what rotates, captured; fills work->plan. */
tdm_status bench_capture_work(bench_rig* rig, bench_work* work, tdm_graph** out_graph);
void bench_work_close(bench_work* work);
/* The args of step `index`: those of `args` with the rotated view moved. */
void bench_step_args(const bench_work* work, int32_t index, void* out_args);

/* Runs nothing: compares what lies in the check's outputs with the reference, at corners and in the middle. True when
 * all is within bounds; else `out_why`. `out_difference`: the largest. */
bool bench_compare_result(bench_rig* rig, const bench_check* check, double* out_difference, char* out_why,
                          size_t why_bytes);
void bench_poison_outputs(const bench_rig* rig, const tdm_op* op, const void* args);

/* ---- the rulers, the peer --------------------------------------------------------------------------------------- */

/* Measures rig->loads, bulk and bandwidth over 2 GB. */
void bench_measure_bandwidth(bench_rig* rig, const bench_options* options);

void bench_clock_open(bench_rig* rig);
void bench_clock_close(bench_rig* rig);
void bench_clock_reset(const bench_rig* rig);
/* Of what has ticked since. */
double bench_clock_mhz(const bench_rig* rig, bench_clock clock);

void bench_cublaslt_open(bench_rig* rig, const char* path);
void bench_cublaslt_close(bench_rig* rig);
/* A graph of work->steps products, the quickest of the algorithms offered; NULL with the reason in `note`. */
void* bench_cublaslt_graph(bench_rig* rig, const bench_work* work, char* note, size_t note_bytes);

/* ---- report ----------------------------------------------------------------------------------------------------- */

typedef struct bench_result {
  const bench_case* c;
  int64_t m;
  const bench_work* work;
  const bench_figure* figure; /* NULL: nothing recorded */
  bench_timing timing;        /* of a step */
  bool has_peer, ok;
  double difference; /* from the reference */
  char note[320];
} bench_result;

void bench_print_header(const bench_rig* rig);
void bench_print_result(const bench_rig* rig, const bench_result* result);
/* Three decimals: of microseconds they are 1 ns, and more would be noise. */
json_t* bench_json_number(double value);
json_t* bench_json_times(const bench_times* times);
json_t* bench_json_open(const bench_rig* rig, const bench_options* options);
void bench_json_add(const bench_rig* rig, json_t* root, const bench_result* result);

/* Writes and frees it. `status`, or BENCH_USAGE after having said that the file could not be written. NULL is allowed.
 */
int bench_json_close(json_t* root, const bench_options* options, int status);

int bench_compare(const char* path_a, const char* path_b, double tolerance);

/* ---- overlap ---------------------------------------------------------------------------------------------------- */

/* Opens what it needs, measures, reports; answers the exit status. */
int bench_overlap(const bench_options* options);

#endif
