#ifndef KERNELS_MOE_FC1_SWIGLU_CUH
#define KERNELS_MOE_FC1_SWIGLU_CUH

#include <cstdint>

namespace tdm {

/* silu(gate) * up; gate at most `limit` and up within +-limit unless that is 0. NaN passes the limit. */
__device__ __forceinline__ float swiglu(float gate, float up, float limit) {
  if (limit > 0.0f) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return __fdiv_rn(gate, 1.0f + expf(-gate)) * up;
}

} // namespace tdm

#endif
