#ifndef KERNELS_ROPE_ROPE_CUH
#define KERNELS_ROPE_ROPE_CUH

/* The rotation of 64 values by a warp, a pair a lane; shared with mla_kv_write. Every product and sum rounds on its
 * own, as in the reference, so the bits are the same. */

#include "kernels/device/elements.cuh"

namespace tdm {

struct RopePair {
  float even, odd;
};

/* Values of tdm_rope_style. */
constexpr int32_t kRopeInterleaved = 2, kRopeHalves = 3;

/* Where a lane's pair is: offsets of its first and second element, going in and coming out. */
__device__ __forceinline__ int2 rope_in(int32_t style, int32_t lane) {
  return style == kRopeHalves ? make_int2(lane, lane + 32) : make_int2(2 * lane, 2 * lane + 1);
}

__device__ __forceinline__ int2 rope_out(int32_t style, int32_t lane) {
  return style == kRopeInterleaved ? make_int2(2 * lane, 2 * lane + 1) : make_int2(lane, lane + 32);
}

/* A position outside of the table gives NaN: loud, and no read out of bounds. */
__device__ __forceinline__ RopePair rope_rotate(RopePair v, const float* cos_sin, int64_t stride, int32_t position,
                                                int32_t n_positions, bool inverse, int32_t lane) {
  float c = __uint_as_float(0x7fc00000u), s = c;
  if (position >= 0 && position < n_positions) {
    c = cos_sin[position * stride + lane];
    s = cos_sin[position * stride + 32 + lane];
  }
  if (inverse) s = -s;
  return RopePair{__fsub_rn(__fmul_rn(v.even, c), __fmul_rn(v.odd, s)),
                  __fadd_rn(__fmul_rn(v.odd, c), __fmul_rn(v.even, s))};
}

} // namespace tdm

#endif
