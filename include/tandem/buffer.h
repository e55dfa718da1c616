#ifndef TANDEM_BUFFER_H
#define TANDEM_BUFFER_H

/* Buffers (memory of the runtime's device) and views (a dtype, a shape and strides over a piece of a buffer). */

#include "tandem/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A piece of device memory. Reference-counted: programs and graphs that use a buffer keep it, so destroying it early
 * leaves nothing dangling. Threads: create, retain and destroy from any thread; the contents are the caller's to order.
 */
typedef struct tdm_buffer tdm_buffer;

/* `bytes` > 0 bytes of zeros, 256-byte aligned. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. Allocates; not capture-safe.
 */
TDM_API tdm_status tdm_buffer_create(tdm_runtime* runtime, size_t bytes, tdm_buffer** out_buffer);

/* A buffer over memory that the caller owns and keeps until the last user of the buffer is gone. `data` is 16-byte
 * aligned device memory of the runtime's device (host memory on the host device). The memory is not touched. */
TDM_API tdm_status tdm_buffer_wrap(tdm_runtime* runtime, void* data, size_t bytes, tdm_buffer** out_buffer);

/* Gives up the caller's reference. NULL is allowed. */
TDM_API void tdm_buffer_destroy(tdm_buffer* buffer);

TDM_API size_t tdm_buffer_bytes(const tdm_buffer* buffer);
/* Device address; NULL for a program's temporary before the program is sealed. */
TDM_API void* tdm_buffer_data(const tdm_buffer* buffer);

/* Copy between host memory and a buffer; done when the call returns. INVALID_ARGUMENT when the range leaves the buffer,
 * INVALID_STATE for a program's temporary before seal. Blocks; not capture-safe; allocates nothing. */
TDM_API tdm_status tdm_buffer_write(tdm_buffer* buffer, size_t offset_bytes, const void* source, size_t bytes);
TDM_API tdm_status tdm_buffer_read(const tdm_buffer* buffer, size_t offset_bytes, void* destination, size_t bytes);

#define TDM_MAX_RANK 4

/* A tensor: plain data, copied freely, owns nothing. buffer NULL means "absent" (an optional operand left out), and a
 * zeroed view is absent. Strides count elements; the last dimension usually has stride 1. */
typedef struct tdm_view {
  tdm_buffer* buffer;
  int64_t offset_bytes;
  tdm_dtype dtype;
  int32_t rank;
  int64_t shape[TDM_MAX_RANK];
  int64_t stride[TDM_MAX_RANK];
} tdm_view;

/* A contiguous row-major view of `shape[0..rank)` at the start of `buffer`. Checks nothing: whoever uses the view does.
 */
TDM_API tdm_view tdm_view_make(tdm_buffer* buffer, tdm_dtype dtype, int32_t rank, const int64_t* shape);
/* `view` limited to [begin, begin + count) along dimension `dim`. Checks nothing. */
TDM_API tdm_view tdm_view_slice(tdm_view view, int32_t dim, int64_t begin, int64_t count);
/* `view` with dimensions a and b exchanged. Checks nothing. */
TDM_API tdm_view tdm_view_transpose(tdm_view view, int32_t a, int32_t b);

/* Columns between two rows of an FP8 activation-scale tensor of `n_rows` tokens: n_rows rounded up to a multiple of 4,
 * so that TMA's 16-byte stride holds. Producers and consumers of scales take the stride from here and nowhere else. */
TDM_API int64_t tdm_scale_stride(int64_t n_rows);

#ifdef __cplusplus
}
#endif
#endif
