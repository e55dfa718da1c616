#ifndef TESTS_SUPPORT_PROBE_H
#define TESTS_SUPPORT_PROBE_H

/* An op for tests of programs: what it writes depends on every byte that it reads, so any step that runs too early or
 * too late shows in the result. No Criterion here: plain programs use it as well. */

#include <string.h>
#include <time.h>

#include "runtime/op.h"
#include "runtime/status.h"

enum { PROBE_READS = 3, PROBE_WRITES = 2 };

typedef struct probe_args {
  size_t size;
  tdm_view read0, read1, read2; /* any views of u8, rank 1 or 2 */
  tdm_view write0, write1;
  tdm_view update;
  uint64_t salt;
  size_t scratch_bytes;
  tdm_status fails; /* answered by ref, unless TDM_OK */
  int32_t nap_us;   /* sleeps before it touches anything */
} probe_args;

static const tdm_operand probe_operands[] = {
    TDM_OPTIONAL_OPERAND(probe_args, read0, TDM_READ),   TDM_OPTIONAL_OPERAND(probe_args, read1, TDM_READ),
    TDM_OPTIONAL_OPERAND(probe_args, read2, TDM_READ),   TDM_OPTIONAL_OPERAND(probe_args, write0, TDM_WRITE),
    TDM_OPTIONAL_OPERAND(probe_args, write1, TDM_WRITE), TDM_OPTIONAL_OPERAND(probe_args, update, TDM_READ_WRITE),
};

static inline uint64_t probe_mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

static inline uint64_t probe_read(const tdm_view* view, uint64_t hash) {
  if (!tdm_view_present(view)) return hash;
  const uint8_t* data = tdm_view_data(view);
  const int64_t cols = view->rank == 2 ? view->shape[1] : 1;
  for (int64_t row = 0; row < view->shape[0]; row++)
    for (int64_t col = 0; col < cols; col++)
      hash = probe_mix(hash, data[row * view->stride[0] + col * view->stride[1]]);
  return hash;
}

static inline void probe_write(const tdm_view* view, uint64_t hash) {
  if (!tdm_view_present(view)) return;
  uint8_t* data = tdm_view_data(view);
  const int64_t cols = view->rank == 2 ? view->shape[1] : 1;
  for (int64_t row = 0; row < view->shape[0]; row++)
    for (int64_t col = 0; col < cols; col++) {
      hash = probe_mix(hash, (uint64_t)(row * cols + col));
      data[row * view->stride[0] + col * view->stride[1]] = (uint8_t)(hash >> 32);
    }
}

static inline tdm_status probe_check(void* args) {
  (void)args;
  return TDM_OK;
}

static inline void probe_plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  const probe_args* probe = args;
  (void)sms;
  out_plan->scratch_bytes = probe->scratch_bytes;
  out_plan->flops = 1;
  out_plan->bytes = 2;
}

static inline tdm_status probe_ref(const void* args, const tdm_plan* plan, void* scratch) {
  const probe_args* probe = args;
  if (probe->fails != TDM_OK) return TDM_FAIL(probe->fails, "probe %d fails as asked", (int)probe->salt);
  if (probe->nap_us > 0) nanosleep(&(struct timespec){.tv_nsec = probe->nap_us * 1000L}, NULL);
  uint64_t hash = probe_mix(1, probe->salt);
  hash = probe_read(&probe->read2, probe_read(&probe->read1, probe_read(&probe->read0, hash)));
  hash = probe_read(&probe->update, hash);
  if (plan->scratch_bytes) { /* written whole, then read: another step in the same scratch shows */
    memset(scratch, (int)(hash & 0xff), plan->scratch_bytes);
    for (size_t i = 0; i < plan->scratch_bytes; i++) hash = probe_mix(hash, ((uint8_t*)scratch)[i]);
  }
  probe_write(&probe->write0, probe_mix(hash, 10));
  probe_write(&probe->write1, probe_mix(hash, 11));
  probe_write(&probe->update, probe_mix(hash, 12));
  return TDM_OK;
}

static const tdm_op probe_op = {.name = "probe",
                                .args_bytes = sizeof(probe_args),
                                .operands = probe_operands,
                                .n_operands = PROBE_READS + PROBE_WRITES + 1,
                                .check = probe_check,
                                .plan = probe_plan,
                                .ref = probe_ref};

/* The same op, except that its table leaves out that it reads read0: the mistake that a schedule check must notice. */
static const tdm_op blind_probe_op = {.name = "blind_probe",
                                      .args_bytes = sizeof(probe_args),
                                      .operands = probe_operands + 1,
                                      .n_operands = PROBE_READS + PROBE_WRITES,
                                      .check = probe_check,
                                      .plan = probe_plan,
                                      .ref = probe_ref};

#endif
