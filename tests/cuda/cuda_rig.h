#ifndef TESTS_CUDA_CUDA_RIG_H
#define TESTS_CUDA_CUDA_RIG_H

/* A runtime on the fake device, and programs of probes for it. */

#include "runtime/cuda/cuda.h"
#include "tandem/tandem.h"
#include "tests/cuda/driver/fake_cuda.h"
#include "tests/support/heap.h"
#include "tests/support/probe.h"

typedef struct cuda_rig {
  test_heap host, device; /* device: when asked for */
  tdm_runtime* runtime;
  int warnings; /* lines logged as such */
} cuda_rig;

tdm_runtime_config cuda_rig_config(cuda_rig* rig);
/* With the driver's memory. */
void cuda_rig_open(cuda_rig* rig);
/* Fails the test when anything is left, or the driver's rules were broken. */
void cuda_rig_close(cuda_rig* rig);
/* The same for the driver alone. */
void cuda_rig_expect_clean(const char* where);

tdm_lane* cuda_rig_lane(cuda_rig* rig, const char* name, tdm_lane_kind kind, int32_t sms);
/* A green lane of that partition. */
tdm_lane* cuda_rig_green(cuda_rig* rig, const char* name, int32_t partition, int32_t sms);
CUstream cuda_rig_stream(const tdm_lane* lane);

/* A probe with an encode: it launches the kernel that fills memory, with a grid of salt + 1 blocks. */
extern const tdm_op cuda_probe_op;

/* What the encode functions of a sealed program's steps ask for, step by step. To be freed. */
tdm_encoded_step* cuda_rig_encode(const tdm_program* program);

/* Ops of one issue of a program, judged:
 * the launches are those of the steps, in program order, each on its lane's stream (`serial`: all on origin);
 * two steps are ordered exactly if the schedule orders them, every step comes after `first` and before `last`;
 * no event is recorded or waited for beyond the derived waits, one fork a lane that needs it and one join. */
typedef struct cuda_issue {
  const fake_op* ops;
  int begin, end; /* ops of the issue */
  CUstream origin;
  bool serial;
  bool callers; /* the origin is a stream of the caller's: the end of the launch is recorded on it */
} cuda_issue;
void cuda_rig_judge(const char* name, const tdm_program* program, const cuda_issue* issue);

#endif
