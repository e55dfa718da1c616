#ifndef TESTS_CUDA_DRIVER_CUBIN_H
#define TESTS_CUDA_DRIVER_CUBIN_H

/* The kernels of a cubin, from its ELF image. */

#include <stddef.h>

typedef struct fake_entry {
  const char* name;    /* in the image */
  size_t params_bytes; /* of its parameters together */
  int n_params;
  unsigned fixed_shared_bytes;
  unsigned most_threads; /* of a block; 0: not limited by the kernel */
} fake_entry;

/* Answers how many entry points there are, and up to `capacity` of them; -1 when the image is none of a cubin. */
int fake_cubin_entries(const void* image, fake_entry* entries, int capacity);

#endif
