#include "tests/emulated/emulator.h"

#include "kernels/device/mbarrier.cuh"
#include "kernels/device/step.cuh"
#include "kernels/device/tma.cuh"
#include "tests/emulated/flawed.h"

namespace {

struct Shared {
  alignas(128) float stage[FLAWED_STAGES][FLAWED_COLUMNS];
  uint64_t full[FLAWED_STAGES];
  uint64_t empty[FLAWED_STAGES];
};

void produce(const flawed_params& p, Shared& shared) {
  for (int32_t row = 0; row < p.rows; ++row) {
    const int32_t slot = row % FLAWED_STAGES;
    if (p.flaw != FLAW_FILLS_EARLY) tdm::mbarrier_wait(&shared.empty[slot], row / FLAWED_STAGES % 2 ^ 1);
    tdm::mbarrier_arrive_expect(&shared.full[slot], sizeof shared.stage[slot]);
    float* to = p.flaw == FLAW_COPIES_TOO_FAR ? shared.stage[0] + FLAWED_SHARED_BYTES / 4 - 32 : shared.stage[slot];
    tdm::tma_load_2d(to, &p.x, &shared.full[slot], 0, 0, row);
    if (p.flaw == FLAW_ARRIVES_TOO_OFTEN) tdm::mbarrier_arrive(&shared.full[slot]);
  }
}

void give_back(uint64_t& empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) tdm::mbarrier_arrive(&empty);
  __syncwarp();
}

void consume(const flawed_params& p, Shared& shared) {
  const uint32_t lane = threadIdx.x % 32;
  float sums[2] = {};
  for (int32_t row = 0; row < p.rows - (p.flaw == FLAW_STOPS_EARLY) + (p.flaw == FLAW_WAITS_FOREVER); ++row) {
    const int32_t slot = row % FLAWED_STAGES;
    const auto wait = [&] { tdm::mbarrier_wait(&shared.full[slot], row / FLAWED_STAGES % 2); };
    if (p.flaw != FLAW_READS_EARLY) wait();
    if (p.flaw == FLAW_GIVES_BACK_EARLY) give_back(shared.empty[slot]);
    for (int half = 0; half < 2; ++half) sums[half] += shared.stage[slot][32 * half + lane];
    if (p.flaw == FLAW_READS_EARLY) wait();
    if (p.flaw != FLAW_GIVES_BACK_EARLY) give_back(shared.empty[slot]);
  }
  for (int half = 0; half < 2; ++half) p.out[32 * half + lane] = sums[half];
}

void flawed_sum(flawed_params p, tdm_step_sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0)
    for (int i = 0; i < FLAWED_STAGES; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 1);
    }
  if (p.flaw == FLAW_WRITES_TOO_FAR) memory[FLAWED_SHARED_BYTES + threadIdx.x] = 0;
  if (p.flaw != FLAW_MISSES_A_BARRIER || threadIdx.x != 40) __syncthreads();
  if (threadIdx.x == 0) produce(p, shared);
  if (threadIdx.x >= 32) consume(p, shared);
}

const emulator::Kernel kernels[] = {{"flawed_sum", emulator::call<flawed_params, flawed_sum>}};
const emulator::Kernels known(kernels, 1);

} // namespace
