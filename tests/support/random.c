#include "tests/support/random.h"

#include <math.h>

uint64_t test_random_u64(test_random* random) {
  uint64_t z = random->state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

int64_t test_random_below(test_random* random, int64_t count) {
  return (int64_t)(test_random_u64(random) % (uint64_t)count);
}

/* In [0, 1), with 53 bits. */
static double unit(test_random* random) {
  return (double)(test_random_u64(random) >> 11) * 0x1p-53;
}

float test_random_uniform(test_random* random, float low, float high) {
  float value = (float)((double)low + unit(random) * ((double)high - (double)low));
  return value < high ? value : low; /* rounding up can reach high */
}

float test_random_normal(test_random* random) {
  double radius = sqrt(-2.0 * log(1.0 - unit(random)));
  return (float)(radius * cos(6.283185307179586 * unit(random)));
}

void test_random_fill_uniform(test_random* random, float* values, int64_t count, float low, float high) {
  for (int64_t i = 0; i < count; i++) values[i] = test_random_uniform(random, low, high);
}

void test_random_fill_normal(test_random* random, float* values, int64_t count, float deviation) {
  for (int64_t i = 0; i < count; i++) values[i] = deviation * test_random_normal(random);
}
