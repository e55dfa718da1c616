#ifndef KERNELS_DEVICE_LAUNCH_H
#define KERNELS_DEVICE_LAUNCH_H

/* Planning that the Hopper kernels share: pure functions, no GPU needed. */

#include "kernels/device/prefetch_params.h"
#include "runtime/op.h"

/* What a CUDA lane's plan says of the kernel it launches; flops and bytes are the op's, on every device. */
void tdm_plan_kernel(tdm_plan* plan, const tdm_kernel_launch* launch, int32_t splits, size_t scratch_bytes,
                     size_t state_bytes);

/* Whether the copy engine can address the tile: data and strides multiples of 16 bytes, sizes in range. */
bool tdm_tensor_tile_valid(const tdm_tensor_tile* tile);

/* Of an optional view of rows, checked by tdm_check_prefetch. */
tdm_prefetch tdm_prefetch_of(const tdm_view* view);

/* What sums are cut for: H100 and H200 SXM; not the device's or the lane's count, since segments decide bits. */
enum { TDM_REFERENCE_SMS = 132 };

/* Shared memory that a CTA of sm_90 can have. */
enum { TDM_SHARED_BYTES = 232448 };

/* Into how many segments a GEMM's sum is cut so that few tiles (of tile_rows weight rows, 64 times some number) still
 * fill the GPU; `blocks` are 128-byte steps along K, `granule` is what a segment is a multiple of. Callers pass what
 * the weights' shape decides and nothing else: bits must depend neither on the number of rows nor on the lane. */
int32_t tdm_gemm_segments(int64_t tiles, int64_t tile_rows, int64_t blocks, int64_t granule);

/* Shared memory to ask for when a GEMM needs `needed` and a CTA walks `blocks` steps along K. Two CTAs fit on an SM up
 * to 32 tokens, so that the next kernel of the lane begins under this one. Where CTAs take long they ask for more than
 * half an SM all the same: else two CTAs of this kernel, begun early, may settle on an SM that the kernel before left
 * free, and share its copy bandwidth (FC2 at 16 tokens 142 us instead of 120, a TP8 layer at one token 473 instead of
 * 451; H200, 2026-11-22). */
uint32_t tdm_gemm_shared_bytes(uint32_t needed, int64_t blocks);

/* Smallest token tile that holds m rows: 8, 16, 24, 32, 64 or 128. */
int32_t tdm_gemm_token_tile(int64_t m);

/* Rows of a token tile that the kernels load, as loaded_rows of gemm.cuh: m to the next multiple of 8, or the tile. */
uint32_t tdm_gemm_loaded_rows(int64_t m, int32_t tile);

#endif
