#ifndef KERNELS_MOE_FC1_MOE_FC1_CUH
#define KERNELS_MOE_FC1_MOE_FC1_CUH

/* What the forms of the FP8 FC1 share. */

#include "kernels/device/gemm.cuh"
#include "kernels/moe_fc1/moe_fc1_params.h"

namespace tdm {

/* Tiles that are walked: those of the experts that were hit, where a list says so. */
__device__ __forceinline__ int32_t listed_tiles(const tdm_moe_fc1_params& p, const Hits& hits) {
  return hits.listed ? hits.count * p.expert_tiles : p.n_tiles;
}

__device__ __forceinline__ Unit listed_unit(const tdm_moe_fc1_params& p, const Hits& hits, Unit unit) {
  if (hits.listed)
    unit.n_tile = hits.expert(unit.n_tile / p.expert_tiles) * p.expert_tiles + unit.n_tile % p.expert_tiles;
  return unit;
}

/* silu(gate) * up with the quick exponential and division; NaN passes the limit. */
__device__ __forceinline__ float swiglu_quick(float gate, float up, float limit) {
  if (limit > 0.0f) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/* Largest magnitude as bits: order of floats, infinity above all numbers, NaN above infinity. */
__device__ __forceinline__ uint32_t magnitude(float v) {
  return __float_as_uint(v) & 0x7fffffffu;
}

/* The scale of a block of 128 and how to divide by it: rounded to nearest as a division is, in three instructions. */
struct Quantiser {
  float scale, inverse;

  __device__ __forceinline__ Quantiser(uint32_t largest, float eps, bool pow2) {
    const bool broken = largest >= 0x7f800000u;
    scale = quant_scale(__uint_as_float(largest), broken, eps, pow2);
    inverse = __frcp_rn(scale);
  }
  __device__ __forceinline__ Quantiser(const tdm_moe_fc1_params& p, uint32_t largest)
      : Quantiser(largest, p.quant_eps, p.pow2_scale != 0) {
  }
  __device__ __forceinline__ float divide(float v) const {
    const float q = v * inverse;
    return fmaf(fmaf(-q, scale, v), inverse, q);
  }
  __device__ __forceinline__ uint16_t pair(float v0, float v1) const {
    return e4m3x2(divide(v0), divide(v1));
  }
};

} // namespace tdm

#endif
