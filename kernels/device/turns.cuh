#ifndef KERNELS_DEVICE_TURNS_CUH
#define KERNELS_DEVICE_TURNS_CUH

/* An order of CTAs in which each may wait for the one before it: that in which they begin to run, for which they draw
 * numbers. Notes bear the number of the launch, so that what a launch leaves that went wrong misleads nobody.
 *
 *   counters  [1 + CTAs] numbers drawn, then a note for each CTA */

#include "kernels/device/step.cuh"

namespace tdm {

/* Of a CTA: its place in the order, and the number of the launch, never 0. */
struct Turn {
  uint32_t cta;
  uint32_t launch;
};

/* By one thread, into shared memory. Before step_wait or behind it: counters are this step's alone, and its last launch
 * is complete. Without counters the order is that of block numbers, and nobody may wait. */
__device__ __forceinline__ void draw_turn(uint32_t* counters, Turn& turn) {
  constexpr uint32_t kLaunches = 1u << 20; /* then from 0 again */
  if (counters == nullptr) {
    turn = Turn{blockIdx.x, 0};
    return;
  }
  const uint32_t number = atomicInc(counters, gridDim.x * kLaunches - 1);
  turn = Turn{number % gridDim.x, number / gridDim.x + 1};
}

/* By one thread, behind a barrier of those who stored what the next CTA waits for. */
__device__ __forceinline__ void tell_next(uint32_t* counters, const Turn& turn) {
  store_release(counters + 1 + turn.cta, turn.launch);
}

/* Where the CTA before leaves its note; the first in the order has none, and something else is there. */
__device__ __forceinline__ uint32_t* note_for(uint32_t* counters, const Turn& turn) {
  return counters + turn.cta;
}

/* By each thread that loads, or by one before a barrier of theirs; the note is to be set back to 0 when none of the CTA
 * waits for it any more. In a launch whose waits ran out of time CTAs may have seen different work: what is waited for
 * may never come, and does not matter. */
__device__ __forceinline__ void await_note(const uint32_t* note, const Turn& turn, const tdm_step_sync& sync) {
  while (load_acquire(note) != turn.launch && !launch_failed(sync)) {
  }
}

/* By one thread for all who load. */
__device__ __forceinline__ void await_previous(uint32_t* counters, const Turn& turn, const tdm_step_sync& sync) {
  uint32_t* const note = note_for(counters, turn);
  await_note(note, turn, sync);
  *note = 0;
}

} // namespace tdm

#endif
