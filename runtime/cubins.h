#ifndef RUNTIME_CUBINS_H
#define RUNTIME_CUBINS_H

#include <stddef.h>
#include <stdint.h>

/* A compiled kernel file, embedded by the build (cmake/tandem_cuda.cmake). */
typedef struct tdm_cubin {
  const char* name; /* of the source without its ending: "gemm_fp8_sm90" */
  const void* data; /* an ELF image for cuModuleLoadData, 64-byte aligned */
  size_t bytes;
} tdm_cubin;

/* tdm_cubin_count long, ascending by path. Empty in a build without nvcc. */
extern const tdm_cubin tdm_cubins[];
extern const int tdm_cubin_count;

/* Of the names and bytes of all: tells builds apart. Reads some 12 MB. */
uint64_t tdm_cubins_hash(void);

#endif
