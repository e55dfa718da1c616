#ifndef TESTS_EMULATED_EMULATED_H
#define TESTS_EMULATED_EMULATED_H

/* Kernels on the CPU, for tests in C (emulator.h says what that shows, and what it does not). */

#include "runtime/kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A tile for kernels that are emulated: tdm_encode_env.tensor_map. */
tdm_status emulated_encode(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map);
/* Runs a launch on host memory, in an order that `seed` decides. False: no such kernel is here. What no kernel may do
 * ends the program with a sentence. */
bool emulated_launch(const tdm_encoded_launch* launch, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
