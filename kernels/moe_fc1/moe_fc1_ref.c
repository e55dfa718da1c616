#include <math.h>
#include <string.h>

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_fc1/moe_fc1.h"

enum { GATE_UP = 2 * TDM_QUANT_BLOCK }; /* weight rows behind one block of the output */

/* The live rows of one output block; carved out of the scratch. */
typedef struct block {
  double* c; /* [rows][256]: gate, then up columns */
  float* x;  /* [rows][128]: the current block along K */
  int64_t rows;
  tdm_chosen chosen; /* the rest of an expert's rows are passed over */
} block;

size_t tdm_moe_fc1_ref_scratch_bytes(const tdm_moe_fc1_args* args) {
  size_t row_bytes = GATE_UP * sizeof(double) + TDM_TILE_COLS * sizeof(float);
  return ((size_t)args->x.shape[0] * row_bytes + 255) / 256 * 256;
}

/* Weight scale of 128 rows from `row` of an expert, block kb along K. */
static float weight_scale(const tdm_moe_fc1_args* args, int64_t expert, int64_t row, int64_t kb) {
  const tdm_view* scale = &args->w13_scale;
  if (!tdm_view_present(scale)) return 1.0f;
  const float* data = tdm_view_data(scale);
  return data[expert * scale->stride[0] + row / TDM_QUANT_BLOCK * scale->stride[1] + kb];
}

static float row_scale(const tdm_moe_fc1_args* args, int64_t row, int64_t kb) {
  if (!tdm_view_present(&args->x_scale)) return 1.0f;
  const float* data = tdm_view_data(&args->x_scale);
  return data[kb * args->x_scale.stride[0] + row];
}

/* Gate and up columns of output block `i` of an expert, for the rows that chose it. */
static void multiply(const tdm_moe_fc1_args* args, int64_t expert, int64_t i, const block* b) {
  const void* x = tdm_view_data(&args->x);
  const void* w = tdm_view_data(&args->w13);
  bool round = args->x.dtype != TDM_F32;
  memset(b->c, 0, (size_t)(b->rows * GATE_UP) * sizeof *b->c);
  for (int64_t kb = 0; kb < args->x.shape[1] / TDM_TILE_COLS; kb++) {
    for (int64_t m = 0; m < b->rows; m++) {
      if (!tdm_chose(&b->chosen, m, expert)) continue;
      tdm_load_f32_row(x, args->x.dtype, m * args->x.stride[0] + kb * TDM_TILE_COLS, 1, TDM_TILE_COLS,
                       b->x + m * TDM_TILE_COLS);
    }
    for (int64_t n = 0; n < GATE_UP; n += TDM_TILE_ROWS) {
      int64_t row = i * GATE_UP + n;
      tdm_tile tile;
      tdm_tile_load(&tile, w, args->w13.dtype,
                    expert * args->w13.stride[0] + row * args->w13.stride[1] + kb * TDM_TILE_COLS, args->w13.stride[1],
                    1, TDM_TILE_ROWS, TDM_TILE_COLS);
      float scale = weight_scale(args, expert, row, kb);
      for (int64_t m = 0; m < b->rows; m++) {
        if (!tdm_chose(&b->chosen, m, expert)) continue;
        double sums[TDM_TILE_ROWS];
        tdm_tile_dot(&tile, b->x + m * TDM_TILE_COLS, sums);
        tdm_tile_promote(b->c + m * GATE_UP + n, sums, (double)(row_scale(args, m, kb) * scale), round);
      }
    }
  }
}

static float swiglu(float gate, float up, float limit) {
  if (limit > 0.0f) { /* comparisons that leave NaN alone */
    if (gate > limit) gate = limit;
    if (up > limit) up = limit;
    if (up < -limit) up = -limit;
  }
  return gate / (1.0f + expf(-gate)) * up;
}

static void store(const tdm_moe_fc1_args* args, int64_t expert, int64_t column, const block* b) {
  void* out = tdm_view_data(&args->out);
  float* out_scale = tdm_view_data_or_null(&args->out_scale);
  for (int64_t m = 0; m < b->rows; m++) {
    if (!tdm_chose(&b->chosen, m, expert)) continue;
    const double* gate = b->c + m * GATE_UP;
    const double* up = gate + TDM_QUANT_BLOCK;
    float values[TDM_QUANT_BLOCK];
    for (int n = 0; n < TDM_QUANT_BLOCK; n++) values[n] = swiglu((float)gate[n], (float)up[n], args->swiglu_limit);
    int64_t start = m * args->out.stride[0] + column;
    if (out_scale == NULL) {
      tdm_store_f32_row(out, args->out.dtype, start, TDM_QUANT_BLOCK, values);
    } else {
      out_scale[column / TDM_QUANT_BLOCK * args->out_scale.stride[0] + m] =
          tdm_quant_block(values, (uint8_t*)out + start, args->quant_eps, args->pow2_scale);
    }
  }
  if (out_scale == NULL || b->chosen.words != NULL) return;
  float* scales = out_scale + column / TDM_QUANT_BLOCK * args->out_scale.stride[0];
  for (int64_t m = b->rows; m < tdm_scale_stride(b->rows); m++) scales[m] = 0.0f;
}

tdm_status tdm_moe_fc1_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_fc1_args* args = void_args;
  (void)plan;
  block b;
  TDM_TRY(tdm_live_rows("moe_fc1", &args->n_tokens, args->x.shape[0], &b.rows));
  b.c = scratch;
  b.x = (float*)(b.c + b.rows * GATE_UP);
  int64_t blocks = args->w13.shape[1] / GATE_UP; /* of an expert */
  tdm_hits hits;
  TDM_TRY(tdm_read_hits("moe_fc1", &args->hits, args->w13.shape[0], &hits));
  TDM_TRY(tdm_read_chosen("moe_fc1", &args->chosen, b.rows, args->w13.shape[0], &b.chosen));
  for (int64_t hit = 0; hit < hits.n; hit++) {
    const int64_t expert = tdm_hit(&hits, hit);
    if (!tdm_any_chose(&b.chosen, b.rows, expert)) continue;
    for (int64_t i = 0; i < blocks; i++) {
      multiply(args, expert, i, &b);
      store(args, expert, (expert * blocks + i) * TDM_QUANT_BLOCK, &b);
    }
  }
  return TDM_OK;
}
