#ifndef RUNTIME_SAFETENSORS_H
#define RUNTIME_SAFETENSORS_H

/* The header of one safetensors file:
 *
 *     8 bytes   N, little-endian
 *     N bytes   JSON {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {..}}
 *     the rest  the tensors' data; offsets count from its start, no byte of it belongs to no tensor or to two */

#include "runtime/runtime.h"
#include "tandem/checkpoint.h"

#define TDM_SAFETENSORS_MAX_HEADER ((size_t)100 << 20)
#define TDM_SAFETENSORS_MAX_NAME   512

/* What a file holds. Points into its bytes, which must outlive it. */
typedef struct tdm_safetensors {
  tdm_runtime* runtime;
  tdm_tensor_info* tensors; /* in the order of their data */
  int64_t n_tensors;
  char* names; /* behind the tensors' names */
  size_t names_bytes;
} tdm_safetensors;

/* Reads and checks the header of a file that lies in memory. `path` becomes the tensors' `file` (it must live as long)
 * and is in every sentence. A tensor's dtype is 0 where tandem has no such type (BOOL, U32, F8_E5M2, ...): its size is
 * checked like any other's. Reads no data. Errors: CORRUPT, OUT_OF_MEMORY; *out is then empty. */
tdm_status tdm_safetensors_parse(tdm_runtime* runtime, const char* path, const char* bytes, size_t n_bytes,
                                 tdm_safetensors* out);
/* Frees and empties; may be called again. */
void tdm_safetensors_clear(tdm_safetensors* safetensors);

#endif
