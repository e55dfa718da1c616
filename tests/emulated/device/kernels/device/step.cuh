#ifndef KERNELS_DEVICE_STEP_CUH
#define KERNELS_DEVICE_STEP_CUH

/* What came before is done, and nothing comes after. */

#include "runtime/step_sync.h"
#include "tests/emulated/emulator.h"

#define TDM_DYNAMIC_SHARED(type, name, alignment) type* const name = reinterpret_cast<type*>(emulator::shared)

namespace tdm {

inline uint32_t load_acquire(const uint32_t* word) {
  emulator::poll();
  return *word;
}
inline void store_release(uint32_t* word, uint32_t value) {
  *word = value;
}
inline void add_release(uint32_t* word, uint32_t value) {
  *word += value;
}
inline bool launch_failed(const tdm_step_sync&) {
  return false;
}
inline void step_admit_next() {
}
inline void step_enter(const tdm_step_sync&, bool = true) {
}
inline void step_wait(const tdm_step_sync&) {
}
inline void step_begin(const tdm_step_sync&, bool = true) {
}
inline void step_end(const tdm_step_sync&) {
}

} // namespace tdm

#endif
