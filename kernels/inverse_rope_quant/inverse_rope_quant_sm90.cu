/* Inverse rotary embedding of the last 64 values of every head and FP8 quantisation in blocks of 1 x 128, for sm_90a.
 *
 * d512: heads of 512 bf16 values, everything aligned for vectors.
 * 1. A warp takes a head of four tokens at a time, eight lanes a token, two 16-byte vectors a lane and block of 128:
 *
 *      | block 0         | block 1         | block 2         | block 3: nope | rope          |
 *      | 0 1 .. 7 0 1 .. | 0 1 .. 7 0 1 .. | 0 1 .. 7 0 1 .. | 0 1 .. 7      | 0 1 .. 7      |  lanes of token 0
 *
 *    The rotation is one vector of every lane, so that all lanes rotate as much and nothing diverges.
 * 2. Vectors come by asynchronous copies into slots of the lane's own in shared memory, some heads ahead; the position
 * and the angles behind it one head ahead.
 * 3. amax over a lane's 16 values (packed bf16; f32 where rotated) and over eight lanes, scale, quotients, conversion,
 * two 8-byte stores a block.
 * 4. The scales of a block's four tokens are neighbours in memory: one store for the sixteen of a warp, 16 bytes a row.
 *    Rows from the live count to the next multiple of 4 get zeros.
 * CTAs sweep over x in one front, tile after tile of four tokens by as many heads as warps, so that what is under way
 * at a time lies together in memory and the lines of the scales, 32 tokens each, are soon complete. Grid: any. Block: a
 * warp or more, see the plan. Shared: warps x slots x 4 KB.
 *
 * any: every other shape. Half a warp takes a block, as in quant. Block: 256 threads. Shared: none.
 *
 * Limit: device bandwidth, two thirds of it reads. */

#include "kernels/device/elements.cuh"
#include "kernels/device/step.cuh"
#include "kernels/inverse_rope_quant/inverse_rope_quant_params.h"
#include "kernels/rope/rope.cuh"

namespace {

using Params = tdm_inverse_rope_quant_params;

/* Cosines and sines of a lane's part of the 64 values; sines with the sign of what is added to the value at hand. */
template <bool kHalves> struct Angles {
  static constexpr int kCount = kHalves ? 8 : 4;
  float c[kCount], s[kCount];
  bool known;

  __device__ __forceinline__ void load(const Params& p, int32_t position, int32_t member) {
    known = position >= 0 && position < p.n_positions;
    const int32_t first = kHalves ? member % 4 * 8 : member * 4;
    const float4* from = reinterpret_cast<const float4*>(p.cos_sin + (known ? position : 0) * p.cos_sin_stride + first);
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 cosines = from[i], sines = from[8 + i];
      c[4 * i] = cosines.x, c[4 * i + 1] = cosines.y, c[4 * i + 2] = cosines.z, c[4 * i + 3] = cosines.w;
      s[4 * i] = sines.x, s[4 * i + 1] = sines.y, s[4 * i + 2] = sines.z, s[4 * i + 3] = sines.w;
    }
  }

  /* Every product and sum rounds on its own, as in the reference. */
  __device__ __forceinline__ void rotate(float (&v)[8], int32_t member) const {
    if constexpr (kHalves) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float partner = __shfl_xor_sync(~0u, v[i], 4), crossed = __fmul_rn(partner, s[i]);
        v[i] = __fadd_rn(__fmul_rn(v[i], c[i]), member < 4 ? crossed : -crossed);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float even = v[2 * i], odd = v[2 * i + 1];
        v[2 * i] = __fadd_rn(__fmul_rn(even, c[i]), __fmul_rn(odd, s[i]));
        v[2 * i + 1] = __fsub_rn(__fmul_rn(odd, c[i]), __fmul_rn(even, s[i]));
      }
    }
  }
};

__device__ __forceinline__ void unpack(float* v, uint4 packed) {
  v[0] = tdm::bf16_low(packed.x), v[1] = tdm::bf16_high(packed.x);
  v[2] = tdm::bf16_low(packed.y), v[3] = tdm::bf16_high(packed.y);
  v[4] = tdm::bf16_low(packed.z), v[5] = tdm::bf16_high(packed.z);
  v[6] = tdm::bf16_low(packed.w), v[7] = tdm::bf16_high(packed.w);
}

__device__ __forceinline__ uint32_t largest_of(uint4 packed) {
  return tdm::bf16x2_largest(tdm::bf16x2_largest(packed.x, packed.y), tdm::bf16x2_largest(packed.z, packed.w));
}

/* Magnitude of the larger half as f32; infinity and NaN stay. */
__device__ __forceinline__ float magnitude_of(uint32_t packed) {
  return __uint_as_float(max((packed & 0x7fffu) << 16, packed & 0x7fff0000u));
}

/* Where quotients of all magnitudes are good: see tdm::quotients. */
__device__ __forceinline__ bool is_odd(const Params& p, float amax) {
  return !(amax >= p.fast_from && amax <= 0x1p100f) && amax != 0.0f;
}

/* Block kBlock of 128 in eight lanes, from their two vectors each: stores where `inside`, returns the scale. */
template <int kBlock, class Angles>
__device__ __forceinline__ float quantise(const Params& p, uint4 first, uint4 second, const Angles& angles, uint8_t* to,
                                          bool inside, int32_t member, bool& odd) {
  float v[16], amax;
  unpack(v, first);
  if constexpr (kBlock == 3) {
    float rotated[8];
    unpack(rotated, second);
    angles.rotate(rotated, member);
    amax = magnitude_of(largest_of(first));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      amax = tdm::f32_largest(amax, rotated[i]);
      v[8 + i] = rotated[i];
    }
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2)
      amax = tdm::f32_largest(amax, __shfl_xor_sync(~0u, amax, distance));
    amax = fabsf(amax);
  } else {
    unpack(v + 8, second);
    uint32_t largest = tdm::bf16x2_largest(largest_of(first), largest_of(second));
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2)
      largest = tdm::bf16x2_largest(largest, __shfl_xor_sync(~0u, largest, distance));
    amax = magnitude_of(largest);
  }
  const bool broken = !(amax <= 3.402823466e38f) || (kBlock == 3 && !angles.known);
  odd |= is_odd(p, amax);
  const float scale = tdm::quant_scale(amax, broken, p.quant_eps, p.pow2_scale != 0);
  if constexpr (kBlock == 3) {
    tdm::quotients_from_2_80(v, scale);
  } else {
    tdm::quotients_of_bf16(v, scale);
  }
  tdm::store_8_bytes_if(inside, to + kBlock * 128,
                        make_uint2(tdm::e4m3x4(v[0], v[1], v[2], v[3]), tdm::e4m3x4(v[4], v[5], v[6], v[7])));
  tdm::store_8_bytes_if(inside, to + kBlock * 128 + 64,
                        make_uint2(tdm::e4m3x4(v[8], v[9], v[10], v[11]), tdm::e4m3x4(v[12], v[13], v[14], v[15])));
  return scale;
}

/* The lane's part of a head once more, element by element, for blocks with scales at the edges of f32: their scales are
 * right, their quotients may not be. */
template <bool kHalves>
__device__ __noinline__ void quantise_slowly(const Params& p, int32_t token, int32_t head, int32_t member,
                                             uint8_t* to) {
  const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(p.x) + token * p.x_stride + head * p.x_head_stride;
  const int32_t group = head / p.group_heads, in_group = head % p.group_heads;
  const float* scales = p.out_scale + group * p.out_scale_group_stride + in_group * 4 * p.out_scale_stride + token;
  const float* angles = p.cos_sin + min(max(p.positions[token], 0), p.n_positions - 1) * p.cos_sin_stride;
#pragma unroll 1
  for (int32_t i = 0; i < 64; ++i) {
    const int32_t offset = i / 8 * 64 + i % 8, element = offset + member * 8, e = element - 448;
    float v = __bfloat162float(from[element]);
    if (e >= 0) {
      const int32_t index = kHalves ? e % 32 : e / 2, other = kHalves ? (e + 32) % 64 : e ^ 1;
      const bool second = kHalves ? e >= 32 : e % 2 != 0;
      const float crossed = __fmul_rn(__bfloat162float(from[448 + other]), angles[32 + index]);
      v = __fadd_rn(__fmul_rn(v, angles[index]), second ? -crossed : crossed);
    }
    to[offset] = static_cast<uint8_t>(tdm::e4m3x2(__fdiv_rn(v, scales[i / 16 * p.out_scale_stride]), 0.0f));
  }
}

__device__ __forceinline__ uint64_t product(int32_t a, int32_t b) {
  return uint64_t{static_cast<uint32_t>(a)} * static_cast<uint32_t>(b);
}

/* What a lane needs of the call, and the angles of its token. */
template <bool kHalves> struct Work {
  const uint8_t* x; /* the lane's first vector in token 0, head 0 */
  uint8_t* q;       /* and where its result goes */
  float* scale;     /* of block member % 4 in token 0, head 0 */
  int32_t live, lane_token, member;
  Angles<kHalves> angles;

  __device__ __forceinline__ int32_t row(int32_t quad) const {
    return min(quad * 4 + lane_token, live - 1);
  }

  /* A head of four tokens, whose vectors lie in `slot`, 512 bytes apart. */
  __device__ __forceinline__ void quantise_head(const Params& p, int32_t quad, int32_t head, const uint8_t* slot) {
    const int32_t token = quad * 4 + lane_token;
    const bool inside = token < live;
    const int32_t group = static_cast<int32_t>(product(head, static_cast<int32_t>(p.group_inverse)) >> 31);
    const int32_t in_group = head - group * p.group_heads;
    uint8_t* to = q + group * p.out_q_group_stride + product(token, p.out_q_row_bytes) + in_group * 512;
    float* scales = scale + group * p.out_scale_group_stride + product(in_group * 4, p.out_scale_row) + token;
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = *reinterpret_cast<const uint4*>(slot + i * 512);
    bool odd = false;
    const float s0 = quantise<0>(p, v[0], v[1], angles, to, inside, member, odd);
    const float s1 = quantise<1>(p, v[2], v[3], angles, to, inside, member, odd);
    const float s2 = quantise<2>(p, v[4], v[5], angles, to, inside, member, odd);
    const float s3 = quantise<3>(p, v[6], v[7], angles, to, inside, member, odd);
    const float mine = member < 2 ? (member == 0 ? s0 : s1) : (member == 2 ? s2 : s3);
    if (member < 4) *scales = inside ? mine : 0.0f;
    if (__any_sync(~0u, odd && inside)) {
      __syncwarp(); /* the scales are there */
      if (odd && inside) quantise_slowly<kHalves>(p, token, head, member, to);
    }
  }
};

/* A place in the sweep: four tokens, and which run of neighbouring heads, a warp each. */
struct Place {
  int32_t quad, run;

  __device__ __forceinline__ void advance(const Place& step, int32_t runs) {
    quad += step.quad;
    run += step.run;
    if (run >= runs) {
      run -= runs;
      ++quad;
    }
  }
};

template <bool kHalves> __device__ __forceinline__ void heads_of_512(const Params& p, const tdm_step_sync& sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 128);
  constexpr int kSlots = TDM_INVERSE_ROPE_QUANT_SLOTS, kSlotBytes = TDM_INVERSE_ROPE_QUANT_SLOT_BYTES;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t warps = static_cast<int32_t>(blockDim.x / 32), runs = p.heads / warps;
  const int32_t cta = static_cast<int32_t>(blockIdx.x), ctas = static_cast<int32_t>(gridDim.x);
  const Place step{ctas / runs, ctas % runs};
  Place here{cta / runs, cta % runs};
  uint8_t* const slots = memory + warp * kSlots * kSlotBytes + lane * 16; /* the lane's own: nobody else waits for it */
  Work<kHalves> work;
  work.member = lane % 8;
  work.lane_token = lane / 8;
  work.x = static_cast<const uint8_t*>(p.x) + work.member * 16;
  work.q = p.out_q + work.member * 8;
  work.scale = p.out_scale + product(work.member % 4, p.out_scale_row);
  /* Positions and angles do not depend on the steps before: their two loads pass under the end of those. */
  const int32_t first_row = min(here.quad * 4 + work.lane_token, p.rows - 1);
  if (sync.fetches_ahead != 0) work.angles.load(p, p.positions[first_row], work.member);
  tdm::step_begin(sync);
  work.live = tdm::live_rows(p.n_tokens, p.rows);
  const int32_t quads = (work.live + 3) / 4;
  if (here.quad >= quads) return;

  Place asked = here;
  int32_t asked_slot = 0, slot = 0;
  const auto ask = [&] {
    if (asked.quad < quads) {
      const uint8_t* from =
          work.x + product(work.row(asked.quad), p.x_row_bytes) + product(asked.run * warps + warp, p.x_head_bytes);
#pragma unroll
      for (int i = 0; i < 8; ++i) tdm::copy_async_16(slots + asked_slot * kSlotBytes + i * 512, from + i * 128);
    }
    tdm::copy_async_commit();
    asked_slot = (asked_slot + 1) % kSlots;
    asked.advance(step, runs);
  };
#pragma unroll
  for (int i = 0; i < kSlots; ++i) ask();
  if (sync.fetches_ahead == 0) work.angles.load(p, p.positions[first_row], work.member);
  while (true) {
    Place next = here;
    next.advance(step, runs);
    const bool more = next.quad < quads;
    int32_t position = 0;
    if (more) position = p.positions[work.row(next.quad)];
    tdm::copy_async_wait<kSlots - 1>();
    work.quantise_head(p, here.quad, here.run * warps + warp, slots + slot * kSlotBytes);
    if (!more) break;
    ask();
    work.angles.load(p, position, work.member);
    slot = (slot + 1) % kSlots;
    here = next;
  }
}

} // namespace

#define D512(name, halves)                                                                                             \
  extern "C" __global__ void __launch_bounds__(TDM_INVERSE_ROPE_QUANT_THREADS, TDM_INVERSE_ROPE_QUANT_CTAS)            \
      tdm_inverse_rope_quant_d512_##name##_sm90(const __grid_constant__ tdm_inverse_rope_quant_params p,               \
                                                const __grid_constant__ tdm_step_sync sync) {                          \
    heads_of_512<halves>(p, sync);                                                                                     \
    tdm::step_end(sync);                                                                                               \
  }
D512(pairs, false)
D512(halves, true)

extern "C" __global__ void __launch_bounds__(256)
    tdm_inverse_rope_quant_any_sm90(const __grid_constant__ tdm_inverse_rope_quant_params p,
                                    const __grid_constant__ tdm_step_sync sync) {
  tdm::step_begin(sync);
  const int32_t live = tdm::live_rows(p.n_tokens, p.rows), end = (live + 3) / 4 * 4;
  const int64_t blocks = int64_t{p.heads} * p.head_blocks, total = blocks * end;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 16);
  /* A warp takes two neighbouring blocks. */
  for (int64_t pair = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32 * 2; pair < total;
       pair += int64_t{gridDim.x} * blockDim.x / 32 * 2) {
    const int64_t item = pair + threadIdx.x % 32 / 16;
    const int32_t row = static_cast<int32_t>(item / blocks), block = static_cast<int32_t>(item % blocks);
    const int32_t head = block / p.head_blocks, part = block % p.head_blocks;
    const int32_t group = head / p.group_heads, column = (head % p.group_heads * p.head_blocks + part) * 128 + lane * 8;
    const bool inside = row < live && item < total;
    float v[8] = {};
    if (inside)
      tdm::load_8(v, p.x, p.x_dtype, row * p.x_stride + head * p.x_head_stride + part * 128 + lane * 8, p.vectors != 0);
    const bool halves = p.style == tdm::kRopeHalves, rotates = inside && part == p.head_blocks - 1 && lane >= 8;
    float partner[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) partner[i] = __shfl_xor_sync(~0u, v[i], 4);
    if (rotates) {
      const int32_t position = p.positions[row];
      const bool known = position >= 0 && position < p.n_positions;
      const float* table = p.cos_sin + (known ? position : 0) * p.cos_sin_stride;
      float turned[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int32_t element = (lane - 8) * 8 + i, index = halves ? element % 32 : element / 2;
        const float other = halves ? partner[i] : v[i ^ 1];
        const float cosine = table[index], sine = halves ? (lane < 12 ? table[32 + index] : -table[32 + index])
                                                         : (i % 2 == 0 ? table[32 + index] : -table[32 + index]);
        turned[i] = __fadd_rn(__fmul_rn(v[i], cosine), __fmul_rn(other, sine));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = known ? turned[i] : __uint_as_float(0x7fc00000u);
    }
    float scale;
    const uint2 bytes = tdm::quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
    if (inside)
      tdm::store_bytes_8(p.out_q + group * p.out_q_group_stride + row * p.out_q_stride + column, bytes, p.vectors != 0);
    if (item < total && lane == 0)
      p.out_scale[group * p.out_scale_group_stride + column / 128 * p.out_scale_stride + row] = inside ? scale : 0.0f;
  }
  tdm::step_end(sync);
}
