#ifndef KERNELS_DEVICE_STEP_CUH
#define KERNELS_DEVICE_STEP_CUH

/* The beginning and end of every kernel.
 *
 *   __global__ void kernel(const __grid_constant__ params p, const __grid_constant__ tdm_step_sync sync) {
 *     barriers, tensor-map prefetch
 *     tdm::step_begin(sync);         from here on: what other kernels write or read
 *     ...
 *     tdm::step_end(sync);           after the last store
 *   }
 *
 * Where warps have roles: step_enter, then step_wait in every warp; the one that asks for weights does so before
 * it waits, if sync.fetches_ahead says that no step of the program writes them.
 *
 * A kernel is launched with programmatic stream serialisation where it directly follows another on its lane: its CTAs
 * may be resident while the one before still runs, and step_begin waits until that one is complete and its stores are
 * visible. Every kernel calls it, so completion is transitive: what came before the one before is complete too. A
 * kernel that lets the next one begin only behind its own wait (tdm_kernel_launch.admits_late) so lets it read, at
 * once, what earlier steps wrote; sync.reads_ahead says that the operands meant for this are such.
 *
 * Signals (runtime/step_sync.h) wait for steps of other lanes. A wait that runs out of time leaves a note and goes on,
 * as do all further waits of that launch: steps then work on memory that is theirs, with contents that are not. Kernels
 * must therefore bound what they read from device memory before they use it as an index; the launch is reported as
 * TIMEOUT. */

#include <cstdint>

#include "kernels/device/instructions.cuh"
#include "kernels/device/mbarrier.cuh"
#include "runtime/step_sync.h"

/* The CTA's dynamic shared memory, as an array `name` of `type`. */
#define TDM_DYNAMIC_SHARED(type, name, alignment)                                                                      \
  extern __shared__ __align__(alignment)                                                                               \
  type name[]

namespace tdm {

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint32_t* word, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

/* For all whose stores come before this thread's, as behind a barrier with them. */
__device__ __forceinline__ void add_release(uint32_t* word, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ uint64_t global_nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ tdm_signal* signals_of(tdm_signal_board* board) {
  return reinterpret_cast<tdm_signal*>(board + 1);
}

/* The first wait of a launch to fail leaves its note; the count, which the host looks at, comes last. */
__device__ __forceinline__ void leave_fault(tdm_signal_board* board, int32_t step, uint32_t signal, uint32_t epoch,
                                            uint32_t seen) {
  if (atomicExch(&board->failed, epoch) == epoch) return;
  volatile tdm_signal_fault* fault = board->fault;
  fault->step = static_cast<uint32_t>(step);
  fault->signaler = signal;
  fault->epoch = epoch;
  fault->seen = seen;
  __threadfence_system();
  fault->count = fault->count + 1;
  __threadfence_system();
}

/* One thread, one signal. */
__device__ __forceinline__ void await_signal(const tdm_step_sync& sync, uint32_t signal) {
  tdm_signal_board* board = sync.board;
  const uint32_t* word = &signals_of(board)[signal].value;
  const uint32_t epoch = *const_cast<volatile uint32_t*>(&board->epoch);
  uint32_t seen = load_acquire(word);
  if (static_cast<int32_t>(seen - epoch) >= 0) return;
  const uint64_t start = global_nanoseconds(), limit = board->limit_ns;
  for (uint32_t turn = 0; static_cast<int32_t>(seen - epoch) < 0; ++turn) {
    if (turn % 64 == 63) {
      if (*const_cast<volatile uint32_t*>(&board->failed) == epoch) return;
      if (global_nanoseconds() - start > limit) return leave_fault(board, sync.step, signal, epoch, seen);
    }
    seen = load_acquire(word);
  }
}

/* Whether a wait of this launch has run out of time, so that its results are void. */
__device__ __forceinline__ bool launch_failed(const tdm_step_sync& sync) {
  tdm_signal_board* board = sync.board;
  if (board == nullptr) return false;
  const volatile uint32_t *failed = &board->failed, *epoch = &board->epoch;
  return *failed == *epoch;
}

/* Lets the next kernel of the lane begin as soon as there is room for it. */
__device__ __forceinline__ void step_admit_next() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ void trace_resident(const tdm_step_sync& sync) {
  if (sync.trace == nullptr || threadIdx.x != 0) return;
  uint32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  sync.trace[blockIdx.x].resident = global_nanoseconds();
  sync.trace[blockIdx.x].sm = sm;
}

/* First of all, all threads. `admits`: else the kernel calls step_admit_next itself. */
__device__ __forceinline__ void step_enter(const tdm_step_sync& sync, bool admits = true) {
  if (admits) step_admit_next();
  trace_resident(sync);
}

/* What the last thread of a CTA waits for, the CTA waits for. */
__device__ __forceinline__ void trace_begin(const tdm_step_sync& sync) {
  if (sync.trace != nullptr && threadIdx.x + 1 == blockDim.x) sync.trace[blockIdx.x].begin = global_nanoseconds();
}

/* The wait alone, by every thread for itself: for kernels whose warps have roles. */
__device__ __forceinline__ void step_wait(const tdm_step_sync& sync) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (sync.n_waits > 0) {
    for (int32_t i = 0; i < sync.n_waits; ++i) await_signal(sync, sync.waits[i]);
    fence_async(); /* what the copy engine reads next was written by plain stores */
  }
  trace_begin(sync);
}

/* All threads of the CTA. `admits`: else the kernel calls step_admit_next towards its end, where the next one is many
 * CTAs that would take issue slots and registers from it for long. */
__device__ __forceinline__ void step_begin(const tdm_step_sync& sync, bool admits = true) {
  if (admits) step_admit_next();
  trace_resident(sync);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (sync.n_waits > 0) {
    if (static_cast<int32_t>(threadIdx.x) < sync.n_waits) await_signal(sync, sync.waits[threadIdx.x]);
    __syncthreads();
    fence_async();
  }
  trace_begin(sync);
}

/* All threads of the CTA, none of which has left. */
__device__ __forceinline__ void step_end(const tdm_step_sync& sync) {
  if (sync.trace != nullptr && threadIdx.x % 32 == 0)
    atomicMax(reinterpret_cast<unsigned long long*>(&sync.trace[blockIdx.x].end), global_nanoseconds());
  if (sync.board == nullptr || sync.publishes < 0) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  tdm_signal* signal = &signals_of(sync.board)[sync.publishes];
  fence_gpu();
  if (atomicAdd(&signal->arrived, 1u) + 1 != gridDim.x) return;
  signal->arrived = 0;
  fence_gpu();
  store_release(&signal->value, *const_cast<volatile uint32_t*>(&sync.board->epoch));
}

} // namespace tdm

#endif
