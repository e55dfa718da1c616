#ifndef RUNTIME_KERNEL_H
#define RUNTIME_KERNEL_H

/* Kernel launches as plain data: what an op's encode makes, once, when its program is sealed on a CUDA device, and what
 * a launch then hands to the driver as it is. Free of driver types. */

#include "runtime/tensor_map.h"
#include "tandem/base.h"

enum { TDM_TILE_DIMS = 4 };

/* A tensor as the copy engine sees it. Dimension 0 is contiguous; strides are those of dimensions 1 and up, in bytes.
 */
typedef struct tdm_tensor_tile {
  void* data;
  tdm_dtype dtype;
  uint32_t rank; /* 2 to 4 */
  uint64_t dim[TDM_TILE_DIMS];
  uint64_t stride_bytes[TDM_TILE_DIMS - 1];
  uint32_t box[TDM_TILE_DIMS];
  bool swizzle; /* 128-byte swizzle: box[0] is 128 bytes; else plain rows */
} tdm_tensor_tile;

/* Encodes a tile for the device (cuTensorMapEncodeTiled). */
typedef tdm_status (*tdm_tensor_map_fn)(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map);

/* One kernel launch. Grid and block have one dimension. */
typedef struct tdm_kernel_launch {
  char kernel[48]; /* entry point in one of the embedded cubins */
  uint32_t grid;
  uint32_t block;
  uint32_t shared_bytes; /* dynamic */
  bool admits_late;      /* the lane's next kernel begins only when this one's CTAs have waited for the steps before */
} tdm_kernel_launch;

enum { TDM_KERNEL_PARAMS_BYTES = 1024, TDM_STEP_LAUNCHES = 3 };

/* A launch with its parameters: one struct passed by value. */
typedef struct tdm_encoded_launch {
  tdm_kernel_launch launch;
  uint32_t params_bytes;
  TDM_ALIGNED(64) uint8_t params[TDM_KERNEL_PARAMS_BYTES];
} tdm_encoded_launch;

/* What a step launches, in order. */
typedef struct tdm_encoded_step {
  int32_t n_launches;
  tdm_encoded_launch launches[TDM_STEP_LAUNCHES];
} tdm_encoded_step;

/* Appends a launch with a copy of its parameters. INTERNAL when it does not fit. */
tdm_status tdm_encoded_step_add(tdm_encoded_step* step, const tdm_kernel_launch* launch, const void* params,
                                size_t params_bytes);

/* Where a step is encoded: the lane's SMs and the step's own memory on the device. */
typedef struct tdm_encode_env {
  int32_t sms;
  void* scratch; /* plan->scratch_bytes of the workspace */
  void* state;   /* plan->state_bytes, zero before the first launch, this step's alone */
  tdm_tensor_map_fn tensor_map;
  void* tensor_map_ctx;
} tdm_encode_env;

#endif
