#ifndef KERNELS_DEVICE_PREFETCH_CUH
#define KERNELS_DEVICE_PREFETCH_CUH

/* What a later step reads, asked for into L2. */

#include "kernels/device/bulk.cuh"
#include "kernels/device/prefetch_params.h"
#include "kernels/device/tma.cuh"

namespace tdm {

/* ask(address, bytes) for every `step`-th piece of kPiece bytes from `first` on. */
template <int32_t kPiece, class Ask>
__device__ __forceinline__ void prefetch_pieces(const tdm_prefetch& p, int32_t first, int32_t step, Ask ask) {
  if (p.data == nullptr) return;
  const int32_t pieces = static_cast<int32_t>((p.bytes + kPiece - 1) / kPiece);
  for (int32_t i = first; i < pieces * p.rows; i += step) {
    const int32_t row = i / pieces;
    const int64_t offset = int64_t{i - row * pieces} * kPiece;
    ask(p.data + row * p.stride + offset, static_cast<uint32_t>(min(int64_t{kPiece}, p.bytes - offset)));
  }
}

/* By one thread or a few, for long rows. */
__device__ __forceinline__ void prefetch_rows(const tdm_prefetch& p, int32_t first, int32_t step) {
  prefetch_pieces<16384>(p, first, step, [](const uint8_t* at, uint32_t bytes) { bulk_prefetch(at, bytes); });
}

/* By many threads, a line of 128 bytes at a time: for rows so short that the copy engine would take long. */
__device__ __forceinline__ void prefetch_lines(const tdm_prefetch& p, int32_t first, int32_t step) {
  prefetch_pieces<128>(p, first, step, [](const uint8_t* at, uint32_t) { l2_prefetch(at); });
}

} // namespace tdm

#endif
