#ifndef TESTS_SUPPORT_RANDOM_H
#define TESTS_SUPPORT_RANDOM_H

/* Random numbers that are the same on every machine: splitmix64. */

#include <stdint.h>

typedef struct test_random {
  uint64_t state; /* the seed, any value */
} test_random;

uint64_t test_random_u64(test_random* random);
/* 0 .. count - 1; count > 0. */
int64_t test_random_below(test_random* random, int64_t count);
/* In [low, high). */
float test_random_uniform(test_random* random, float low, float high);
/* Mean 0, variance 1. */
float test_random_normal(test_random* random);

void test_random_fill_uniform(test_random* random, float* values, int64_t count, float low, float high);
void test_random_fill_normal(test_random* random, float* values, int64_t count, float deviation);

#endif
