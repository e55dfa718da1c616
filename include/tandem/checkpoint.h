#ifndef TANDEM_CHECKPOINT_H
#define TANDEM_CHECKPOINT_H

/* Checkpoints as on the hub: a directory with config.json and *.safetensors, or a single safetensors file. */

#include "tandem/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The tensors of one or many safetensors files, mapped read-only. Every header is checked whole before a tensor is
 * handed out: sizes, dtypes, shapes, offsets (in bounds, not overlapping, no gaps), names (no duplicates, in one file
 * only). The files must not be changed or truncated while the checkpoint is open (as with any mapping, the kernel then
 * raises SIGBUS). Threads: immutable once open. */
typedef struct tdm_checkpoint tdm_checkpoint;

/* Opens `path`: a *.safetensors file; or a directory, in which model.safetensors.index.json names the files, or else
 * model.safetensors, or else every *.safetensors but io.safetensors counts. Errors: INVALID_ARGUMENT, IO (errno in
 * raw_code), CORRUPT (the sentence names file, tensor and values), OUT_OF_MEMORY. Allocates. */
TDM_API tdm_status tdm_checkpoint_open(tdm_runtime* runtime, const char* path, tdm_checkpoint** out_checkpoint);
TDM_API void tdm_checkpoint_close(tdm_checkpoint* checkpoint);

#define TDM_TENSOR_MAX_RANK 8

/* A tensor in the mapping. Valid while the checkpoint is open. */
typedef struct tdm_tensor_info {
  const char* name;
  const char* file; /* path of its file */
  tdm_dtype dtype;  /* 0 where tandem has no such type: BOOL, U32, F8_E5M2, ... */
  int32_t rank;     /* 0..8; 0 is a scalar */
  int64_t shape[TDM_TENSOR_MAX_RANK];
  const void* data; /* row-major, aligned to nothing but the byte; NULL when bytes is 0 */
  size_t bytes;
} tdm_tensor_info;

/* Number of tensors. */
TDM_API int64_t tdm_checkpoint_count(const tdm_checkpoint* checkpoint);
/* Tensor `index`, in ascending order of names. INVALID_ARGUMENT when out of range. */
TDM_API tdm_status tdm_checkpoint_get(const tdm_checkpoint* checkpoint, int64_t index, tdm_tensor_info* out_info);
/* Tensor by name. Answers false when there is none, without recording an error. */
TDM_API bool tdm_checkpoint_find(const tdm_checkpoint* checkpoint, const char* name, tdm_tensor_info* out_info);

#ifdef __cplusplus
}
#endif
#endif
