#include "kernels/inverse_rope_quant/inverse_rope_quant.h"

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/common/matmul.h"
#include "kernels/quant/quant.h"
#include "kernels/rope/rope.h"

tdm_status tdm_inverse_rope_quant_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_inverse_rope_quant_args* args = void_args;
  (void)plan;
  int64_t rows;
  TDM_TRY(tdm_live_rows("inverse_rope_quant", &args->n_tokens, args->x.shape[0], &rows));
  TDM_TRY(tdm_rope_check_positions("inverse_rope_quant", &args->positions, &args->cos_sin, rows));
  const void* x = tdm_view_data(&args->x);
  const int32_t* positions = tdm_view_data(&args->positions);
  const float* cos_sin = tdm_view_data(&args->cos_sin);
  int64_t groups = args->out_q.shape[0], heads = args->x.shape[1] / groups, dim = args->x.shape[2];
  float* values = scratch; /* of a token and a group */
  for (int64_t g = 0; g < groups; g++) {
    tdm_view q = tdm_view_matrix(&args->out_q, g), scale = tdm_view_matrix(&args->out_scale, g);
    for (int64_t m = 0; m < rows; m++) {
      const float* angles = cos_sin + positions[m] * args->cos_sin.stride[0];
      for (int64_t h = 0; h < heads; h++) {
        float* head = values + h * dim;
        tdm_load_f32_row(x, args->x.dtype, m * args->x.stride[0] + (g * heads + h) * args->x.stride[1], 1, dim, head);
        float* rope = head + dim - TDM_ROPE_DIM;
        tdm_rope_rotate(rope, angles, args->style, true, rope);
      }
      tdm_quant_row(values, &q, &scale, m, args->quant_eps, args->pow2_scale);
    }
    tdm_quant_pad(&scale, rows);
  }
  return TDM_OK;
}
