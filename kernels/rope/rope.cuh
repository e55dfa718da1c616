#ifndef KERNELS_ROPE_ROPE_CUH
#define KERNELS_ROPE_ROPE_CUH

/* The rotation of 64 values by a warp, a pair a lane; shared with mla_kv_write and mla_absorb. Every product and sum
 * rounds on its own, as in the reference, so the bits are the same. */

#include "kernels/device/elements.cuh"
#include "kernels/rope/rope_params.h"

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

struct RopeAngle {
  float cosine, sine;
};

/* A position outside of the table gives NaN: loud, and no read out of bounds. */
__device__ __forceinline__ RopeAngle rope_angle(const float* cos_sin, int64_t stride, int32_t position,
                                                int32_t n_positions, bool inverse, int32_t lane) {
  float c = __uint_as_float(0x7fc00000u), s = c;
  if (position >= 0 && position < n_positions) {
    c = cos_sin[position * stride + lane];
    s = cos_sin[position * stride + 32 + lane];
  }
  return RopeAngle{c, inverse ? -s : s};
}

__device__ __forceinline__ RopePair rope_rotate(RopePair v, RopeAngle a) {
  return RopePair{__fsub_rn(__fmul_rn(v.even, a.cosine), __fmul_rn(v.odd, a.sine)),
                  __fadd_rn(__fmul_rn(v.odd, a.cosine), __fmul_rn(v.even, a.sine))};
}

/* The pairs of kHeads heads, of one dtype: no branch between the loads. */
template <class Element, int kHeads>
__device__ __forceinline__ void rope_load(RopePair (&v)[kHeads], const Element* x, int64_t head_stride, int2 in) {
  Element even[kHeads], odd[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) even[i] = x[i * head_stride + in.x], odd[i] = x[i * head_stride + in.y];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) v[i] = RopePair{static_cast<float>(even[i]), static_cast<float>(odd[i])};
}

/* kHeads heads of a token, from `first` on, by a warp: all are asked for before one is rotated. */
template <int kHeads>
__device__ __forceinline__ void rope_heads(const tdm_rope_params& p, int64_t row, int64_t first, int32_t lane) {
  const int2 in = rope_in(p.style, lane), out = rope_out(p.style, lane);
  const int64_t from = row * p.x_stride + first * p.x_head_stride, to = row * p.out_stride + first * p.out_head_stride;
  const int32_t position = p.positions[row];
  RopePair v[kHeads];
  if (p.x_dtype == TDM_KERNEL_F32)
    rope_load(v, static_cast<const float*>(p.x) + from, p.x_head_stride, in);
  else
    rope_load(v, static_cast<const __nv_bfloat16*>(p.x) + from, p.x_head_stride, in);
  const RopeAngle angle = rope_angle(p.cos_sin, p.cos_sin_stride, position, p.n_positions, p.inverse != 0, lane);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    v[i] = rope_rotate(v[i], angle);
    store_element(p.out, p.out_dtype, to + i * p.out_head_stride + out.x, v[i].even);
    store_element(p.out, p.out_dtype, to + i * p.out_head_stride + out.y, v[i].odd);
  }
}

} // namespace tdm

#endif
