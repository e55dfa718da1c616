#ifndef KERNELS_SAMPLE_PHILOX_H
#define KERNELS_SAMPLE_PHILOX_H

#include <stdint.h>

/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): four random words
 * from a counter and a key, without state. */
void tdm_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
