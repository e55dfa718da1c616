#ifndef KERNELS_DEVICE_ROWS_CUH
#define KERNELS_DEVICE_ROWS_CUH

#include "kernels/device/elements.cuh"

namespace tdm {

/* A CTA copies a row of bf16 or f32 with at most one rounding. `from` negative: the row becomes NaN, since the index it
 * came from was out of range. */
__device__ __forceinline__ void copy_row(const void* source, int32_t source_dtype, int64_t from, void* target,
                                         int32_t target_dtype, int64_t to, int32_t cols, bool vectors) {
  const int32_t whole = cols / 8 * 8, thread = static_cast<int32_t>(threadIdx.x),
                threads = static_cast<int32_t>(blockDim.x);
  const float nan = __uint_as_float(0x7fc00000u);
  for (int32_t column = 8 * thread; column < whole; column += 8 * threads) {
    float v[8] = {nan, nan, nan, nan, nan, nan, nan, nan};
    if (from >= 0) load_8(v, source, source_dtype, from + column, vectors);
    store_8(v, target, target_dtype, to + column, vectors);
  }
  for (int32_t column = whole + thread; column < cols; column += threads)
    store_element(target, target_dtype, to + column,
                  from >= 0 ? load_element(source, source_dtype, from + column) : nan);
}

} // namespace tdm

#endif
