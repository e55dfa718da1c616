#ifndef KERNELS_DEVICE_PREFETCH_CUH
#define KERNELS_DEVICE_PREFETCH_CUH

/* What a later step reads, asked for into L2. */

#include "kernels/device/bulk.cuh"
#include "kernels/device/prefetch_params.h"
#include "kernels/device/tma.cuh"

namespace tdm {

/* Every `step`-th piece from `first` on. */
__device__ __forceinline__ void prefetch_rows(const tdm_prefetch& p, int32_t first, int32_t step) {
  constexpr int64_t kPiece = 16384;
  if (p.data == nullptr) return;
  const int32_t pieces = static_cast<int32_t>((p.bytes + kPiece - 1) / kPiece);
  for (int32_t i = first; i < pieces * p.rows; i += step) {
    const int32_t row = i / pieces;
    const int64_t offset = (i - row * pieces) * kPiece;
    bulk_prefetch(p.data + row * p.stride + offset, static_cast<uint32_t>(min(kPiece, p.bytes - offset)));
  }
}

/* The same by many threads, a line of 128 bytes at a time: for rows so short that the copy engine would take long. */
__device__ __forceinline__ void prefetch_lines(const tdm_prefetch& p, int32_t first, int32_t step) {
  constexpr int64_t kLine = 128;
  if (p.data == nullptr) return;
  const int32_t lines = static_cast<int32_t>((p.bytes + kLine - 1) / kLine);
  for (int32_t i = first; i < lines * p.rows; i += step) {
    const int32_t row = i / lines;
    l2_prefetch(p.data + row * p.stride + (i - row * lines) * kLine);
  }
}

} // namespace tdm

#endif
