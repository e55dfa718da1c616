#ifndef TESTS_EMULATED_RUN_H
#define TESTS_EMULATED_RUN_H

#include "tests/support/rig.h"

/* Of f32 sums in another order, as test_expect_close: twice what the worst case has. */
#define EMULATED_TOLERANCE 3e-7

/* An output of an op. In bf16 and e4m3 one element in a thousand may be rounded the other way; integers have the
 * reference's bits. */
typedef struct emulated_output {
  test_tensor* tensor; /* NULL: none */
  bool exact;          /* f32 has the reference's bits too */
} emulated_output;

/* Makes the launches of checked args. */
typedef tdm_status (*emulated_encode_fn)(const void* args, const tdm_encode_env* env, tdm_encoded_step* out_step);

enum { EMULATED_RUNS = 3 };

typedef struct emulated_call {
  const tdm_op* op;
  const void* args;
  const emulated_output* outputs;
  int32_t n_outputs;
  const char* kernel;     /* a part of the name of the last kernel that is launched: which of them the case is for */
  const char* few_kernel; /* the same in the runs that follow the first; NULL: `kernel` */
  int32_t sms[EMULATED_RUNS]; /* zeros: 132, 5 and 2 */
  bool counts_launches;       /* in the first word of counters, which is not zero then; there are two of each */
  emulated_encode_fn encode;  /* NULL: the op's */
  size_t memory_bytes;        /* scratch and counters for `encode` */
} emulated_call;

/* Runs the op's reference, then its kernels as a lane of so many SMs launches them, and compares; then on fewer SMs and
 * in other orders, which must give the same bits. Outputs are 0xff before each run, memory that is no output's element
 * must end as the reference leaves it, and counters as zeros. */
void emulated_compare(test_rig* rig, const emulated_call* call);

/* Runs the kernels alone, as on 132 SMs. */
void emulated_run(test_rig* rig, const emulated_call* call);

#endif
