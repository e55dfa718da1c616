#include <string.h>

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/rope/rope.h"

tdm_status tdm_rope_check_positions(const char* op, const tdm_view* positions, const tdm_view* cos_sin, int64_t rows) {
  const int32_t* position = tdm_view_data(positions);
  for (int64_t m = 0; m < rows; m++) {
    if (position[m] < 0 || position[m] >= cos_sin->shape[0]) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: position %d of row %lld is outside [0, %lld)", op, position[m],
                      (long long)m, (long long)cos_sin->shape[0]);
    }
  }
  return TDM_OK;
}

void tdm_rope_rotate(const float values[TDM_ROPE_DIM], const float cos_sin[TDM_ROPE_DIM], tdm_rope_style style,
                     bool inverse, float out[TDM_ROPE_DIM]) {
  enum { HALF = TDM_ROPE_DIM / 2 };
  float rotated[TDM_ROPE_DIM];
  for (int i = 0; i < HALF; i++) {
    int even_in = style == TDM_ROPE_HALVES ? i : 2 * i;
    int odd_in = style == TDM_ROPE_HALVES ? i + HALF : 2 * i + 1;
    int even_out = style == TDM_ROPE_INTERLEAVED ? 2 * i : i;
    int odd_out = style == TDM_ROPE_INTERLEAVED ? 2 * i + 1 : i + HALF;
    float even = values[even_in], odd = values[odd_in];
    float c = cos_sin[i], s = inverse ? -cos_sin[HALF + i] : cos_sin[HALF + i];
    rotated[even_out] = even * c - odd * s;
    rotated[odd_out] = odd * c + even * s;
  }
  memcpy(out, rotated, sizeof rotated);
}

tdm_status tdm_rope_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_rope_args* args = void_args;
  (void)plan, (void)scratch;
  int64_t rows;
  TDM_TRY(tdm_live_rows("rope", &args->n_tokens, args->x.shape[0], &rows));
  TDM_TRY(tdm_rope_check_positions("rope", &args->positions, &args->cos_sin, rows));
  const void* x = tdm_view_data(&args->x);
  const int32_t* positions = tdm_view_data(&args->positions);
  const float* cos_sin = tdm_view_data(&args->cos_sin);
  void* out = tdm_view_data(&args->out);
  for (int64_t m = 0; m < rows; m++) {
    const float* angles = cos_sin + positions[m] * args->cos_sin.stride[0];
    for (int64_t h = 0; h < args->x.shape[1]; h++) {
      float values[TDM_ROPE_DIM];
      tdm_load_f32_row(x, args->x.dtype, m * args->x.stride[0] + h * args->x.stride[1], 1, TDM_ROPE_DIM, values);
      tdm_rope_rotate(values, angles, args->style, args->inverse, values);
      tdm_store_f32_row(out, args->out.dtype, m * args->out.stride[0] + h * args->out.stride[1], TDM_ROPE_DIM, values);
    }
  }
  return TDM_OK;
}
