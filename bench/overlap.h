#ifndef BENCH_OVERLAP_H
#define BENCH_OVERLAP_H

/* The ways to run a decode layer against each other: overlap.c measures, overlap_report.c judges and reports.
 * docs/overlap.md says how, and what follows from it. */

#include "bench/bench.h"
#include "examples/common/decode_step.h"

/* Lanes number l are way 3 l with all experts, then with hit experts, then with each for its tokens alone; way 0 is
 * serial and dense. */
enum {
  OVERLAP_LANES = 5,
  OVERLAP_PATHS = 3,
  OVERLAP_WAYS = OVERLAP_PATHS * OVERLAP_LANES,
  OVERLAP_TUNED = OVERLAP_WAYS,
  OVERLAP_SIDE_SMS = 16,
  OVERLAP_SPLIT_SMS = 4 /* of split lanes, whose main one cannot use them */
};

typedef struct overlap_way {
  const char* name; /* in the JSON file */
  tdm_choice choice;
} overlap_way;

extern const overlap_way overlap_ways[OVERLAP_WAYS];

typedef enum overlap_state {
  OVERLAP_FINE = 1,    /* the bits of the first way, and a time */
  OVERLAP_SKIPPED = 2, /* the device does not have such lanes, or no kernels for such experts */
  OVERLAP_WRONG = 3
} overlap_state;

typedef struct overlap_result {
  tdm_choice choice;
  overlap_state state;
  char note[240];   /* why there is no time */
  bench_times us;   /* of the whole graph */
  int64_t launches; /* in the whole graph; on the host device steps */
} overlap_result;

/* All ways at one number of sequences. */
typedef struct overlap_point {
  int64_t m;
  double experts;                            /* hit, of the routed ones; the layers' mean */
  overlap_result results[OVERLAP_TUNED + 1]; /* the ways, then the model's own choice */
  tdm_choice_source source;                  /* of that choice */
  double router_us;                          /* the router's product by itself; 0: not measured */
  double mhz;
} overlap_point;

/* What forking costs: graphs of so many layers, all experts, one result for each kind of lanes, then one for split
 * lanes that divide the SMs as green ones do: plain streams, and kernels of the same size. */
enum { OVERLAP_PLAIN = OVERLAP_LANES, OVERLAP_FORKS };
typedef struct overlap_fork {
  int64_t m, layers;
  overlap_result results[OVERLAP_FORKS];
} overlap_fork;

/* What the MoE block takes, from the norm to its output, and what a chain of peers would for the same: dense GEMMs, or
 * grouped ones over the experts that were hit, and kernels of their own for the rest. us of a block. */
typedef struct overlap_block {
  int64_t m;
  double experts;            /* hit, of the routed ones */
  overlap_result results[2]; /* serial, dense; the tuned way */
  double fc1, fc2, router;   /* recorded or cuBLASLt's in this run, whichever is less; 0: not known */
  double norm, route;        /* our own kernels' in this run, for the peer too */
  double activation;         /* SwiGLU and quantisation: what the bytes take at the read bandwidth */
  double grouped;            /* FC1 and FC2 together, recorded for all experts, by the share that was hit */
} overlap_block;

typedef struct overlap_suite {
  const bench_options* options;
  bench_rig rig;
  decode_step_options shape; /* its layers are those of the graphs */
  int64_t ms[BENCH_MS];      /* ascending */
  int32_t n_ms;
  tdm_model* model;
  double weight_bytes, expert_bytes; /* of a layer; of one routed expert in it */
  tdm_tune_result tuned;
  json_t* json;                  /* NULL: not wanted */
  int32_t timed, skipped, wrong; /* results */
  int32_t judged, close;         /* choices; of them at most 1 % slower than the best */
  int32_t dense, hiding;         /* dense choices with a known router time; of them hiding it but for 1 us */
} overlap_suite;

/* Bytes that a layer cannot do without: weights and cache, each once. */
double overlap_bytes(const overlap_suite* suite, const overlap_point* point, const overlap_result* result);

void overlap_report_header(overlap_suite* suite);
/* Prints a point and adds it to the JSON file and the sums. */
void overlap_report_point(overlap_suite* suite, const overlap_point* point);
void overlap_report_block_header(void);
void overlap_report_block(overlap_suite* suite, const overlap_block* block);
void overlap_report_fork_header(int64_t m);
void overlap_report_fork(overlap_suite* suite, const overlap_fork* fork);
void overlap_report_end(const overlap_suite* suite);

#endif
