#include "runtime/hash.h"

uint64_t tdm_hash(uint64_t hash, const void* data, size_t bytes) {
  const uint8_t* at = data;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
  return hash;
}
