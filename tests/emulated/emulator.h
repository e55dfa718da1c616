#ifndef TESTS_EMULATED_EMULATOR_H
#define TESTS_EMULATED_EMULATOR_H

/* Runs the Hopper kernels' own code on the CPU. A kernel file is compiled as C++, with the headers of device/ in the
 * place of those that hold the instructions. Some CTAs are resident at a time and take turns, the others follow in
 * random order. The threads of a CTA are fibers: they go on until they have to wait, take turns in random order, and at
 * times a warp is left behind for a while. What the hardware does in the background happens late: plain asynchronous
 * copies and products of the tensor cores when they are waited for, the copy engine's at some random time. Dynamic
 * shared memory is 0xff at first, static shared memory has what the CTA before left.
 *
 * So it shows wrong addresses, layouts and shapes, missing waits, stages that are handed back too early, arrivals that
 * do not add up, CTAs that get stuck or end under a copy, and what goes past dynamic shared memory. Memory is
 * sequentially consistent and instructions are exact: it does not show a missing fence, what the tensor cores' FP8 sums
 * lose, how approximate instructions round, clusters, waits between steps, registers, or anything about speed. A kernel
 * that passes here may still fail on a GPU. */

#include <cuda_bf16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "runtime/kernel.h"
#include "runtime/step_sync.h"
}

namespace emulator {

struct Index {
  unsigned x;
};
extern __thread Index thread, cta; /* of the fiber that runs */
extern __thread uint8_t* shared;   /* dynamic shared memory of its CTA */
extern Index ctas, threads;        /* of the launch */
extern tdm_step_sync step;         /* nothing to wait for; whether to fetch ahead is left to chance */

/* A kernel that can be run. */
struct Kernel {
  const char* name;
  void (*call)(const void* params);
};
/* That of a __global__ function. */
template <class Params, void (*kFunction)(Params, tdm_step_sync)> void call(const void* params) {
  kFunction(*static_cast<const Params*>(params), step);
}
/* Makes kernels known; as an object of a file that holds some. */
struct Kernels {
  const Kernel* first;
  size_t count;
  const Kernels* next;
  Kernels(const Kernel* kernels, size_t n);
};

/* ---- for the headers in device/ ---- */

/* Ends the program with a sentence: the kernel does what no kernel may. */
[[noreturn]] void refuse(const char* what);
/* Every lane of the warp gets every lane's value. */
void exchange(uint32_t value, uint32_t (&all)[32]);
void barrier(unsigned id, unsigned count);
void mbarrier_init(const uint64_t* barrier, uint32_t count);
void mbarrier_arrive(const uint64_t* barrier, uint32_t expected_bytes);
void mbarrier_wait(const uint64_t* barrier, uint32_t parity);
void copy_tile(void* to, const tdm_tensor_map* map, const uint64_t* barrier, int32_t x0, int32_t x1, int32_t x2 = 0,
               int32_t x3 = 0);
void copy_async(void* to, const void* from, size_t bytes);
void copy_commit();
void copy_wait(size_t most);
/* Arrives, as one that the barrier counts, when the fiber's copies so far are done. */
void copy_arrive(const uint64_t* barrier);
/* Of e4m3 with K = 32, or of bf16 with K = 16; operands are descriptors, K-major unless `a` is transposed. */
void multiply(float* d, int n, uint64_t a, uint64_t b, bool accumulate, bool bf16, bool transposed_a);
void multiply_commit();
void multiply_wait(size_t most);
uint8_t to_e4m3(float value);
/* In a loop that waits for another CTA: others go on. */
void poll();
/* In clocks, which jump at times, so that nobody waits long for a CTA that comes later. */
int64_t clock();

} // namespace emulator

/* ---- what nvcc gives without a header -------------------------------------------------------------------------- */

#define threadIdx emulator::thread
#define blockIdx  emulator::cta
#define gridDim   emulator::ctas
#define blockDim  emulator::threads
#undef __forceinline__
#define __forceinline__ inline
#undef __noinline__
#define __noinline__
#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __maxnreg__
#define __maxnreg__(...)
#ifndef __grid_constant__
#define __grid_constant__
#endif

using std::isnan;
using std::max;
using std::min;

inline void __syncthreads() {
  emulator::barrier(0, blockDim.x);
}
inline void __syncwarp() {
  uint32_t all[32];
  emulator::exchange(0, all);
}
inline uint32_t __ballot_sync(uint32_t, int predicate) {
  uint32_t all[32], bits = 0;
  emulator::exchange(predicate != 0, all);
  for (int i = 0; i < 32; ++i) bits |= all[i] << i;
  return bits;
}
inline bool __any_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
template <class Value> Value __shfl_sync(uint32_t, Value value, int lane) {
  static_assert(sizeof(Value) == 4);
  uint32_t bits, all[32];
  memcpy(&bits, &value, 4);
  emulator::exchange(bits, all);
  memcpy(&value, &all[lane & 31], 4);
  return value;
}
template <class Value> Value __shfl_up_sync(uint32_t mask, Value value, int distance) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, value, lane < distance ? lane : lane - distance);
}
template <class Value> Value __shfl_xor_sync(uint32_t mask, Value value, int distance) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ distance);
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
  uint32_t all[32];
  emulator::exchange(value, all);
  return *std::max_element(all, all + 32);
}
inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
  uint32_t all[32];
  emulator::exchange(value, all);
  return *std::min_element(all, all + 32);
}
template <class Value> Value __reduce_add_sync(uint32_t, Value value) {
  uint32_t all[32], sum = 0;
  emulator::exchange(static_cast<uint32_t>(value), all);
  for (const uint32_t part : all) sum += part;
  return static_cast<Value>(sum);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __popc(uint32_t value) {
  return __builtin_popcount(value);
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
template <class Value> Value __ldcg(const Value* from) {
  return *from;
}
template <class Value> Value __ldg(const Value* from) {
  return *from;
}
template <class Value> void __stcg(Value* to, Value value) {
  *to = value;
}
inline void __threadfence() {
}
inline uint32_t atomicAdd(uint32_t* word, uint32_t value) {
  const uint32_t before = *word;
  *word += value;
  return before;
}
inline uint32_t atomicOr(uint32_t* word, uint32_t value) {
  const uint32_t before = *word;
  *word |= value;
  return before;
}
/* Up to `last`, then from 0 again. */
inline uint32_t atomicInc(uint32_t* word, uint32_t last) {
  const uint32_t before = *word;
  *word = before >= last ? 0 : before + 1;
  return before;
}
inline uint32_t atomicExch(uint32_t* word, uint32_t value) {
  const uint32_t before = *word;
  *word = value;
  return before;
}
inline int64_t clock64() {
  return emulator::clock();
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float __int_as_float(int32_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits));
}
inline int32_t __float2int_rn(float value) { /* saturates; NaN gives 0 */
  if (isnan(value)) return 0;
  return static_cast<int32_t>(fmin(fmax(nearbyint(static_cast<double>(value)), -2147483648.0), 2147483647.0));
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float __frcp_rn(float value) {
  return 1.0f / value;
}
inline float __fsqrt_rn(float value) {
  return sqrtf(value);
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __expf(float value) {
  return expf(value);
}
inline int __double2int_rn(double value) {
  return static_cast<int>(rint(value));
}
inline int __double2hiint(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return static_cast<int>(bits >> 32);
}
inline int __double2loint(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return static_cast<int>(bits);
}
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low);
  double value;
  memcpy(&value, &bits, 8);
  return value;
}

#endif
