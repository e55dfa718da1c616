#include <string.h>

#include "kernels/common/block_dot.h"
#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_fc2/moe_fc2.h"

enum { PANEL = TDM_QUANT_BLOCK }; /* output columns that share a weight scale */

/* The live rows of one panel of output columns; carved out of the scratch. */
typedef struct panel {
  double* total;   /* [rows][128] */
  double* partial; /* [rows][128] */
  float* x;        /* [rows][128]: the current block along K */
  int64_t rows;
  int64_t first, columns; /* columns first .. first + columns - 1 of the output */
  tdm_chosen chosen;      /* no more than these are summed */
} panel;

size_t tdm_moe_fc2_ref_scratch_bytes(const tdm_moe_fc2_args* args) {
  size_t row_bytes = 2 * PANEL * sizeof(double) + TDM_TILE_COLS * sizeof(float);
  return ((size_t)args->x.shape[0] * row_bytes + 255) / 256 * 256;
}

static float routing_weight(const tdm_moe_fc2_args* args, int64_t row, int64_t expert) {
  if (!tdm_view_present(&args->alpha)) return 1.0f;
  const float* alpha = tdm_view_data(&args->alpha);
  return alpha[row * args->alpha.stride[0] + expert];
}

/* Whether the expert is in the row's sum. */
static bool takes(const tdm_moe_fc2_args* args, const panel* p, int64_t row, int64_t expert) {
  return tdm_chose(&p->chosen, row, expert) && routing_weight(args, row, expert) != 0.0f;
}

/* Factor of a row's block kb, which belongs to `expert`: folded activation scale times weight scale. */
static double block_scale(const tdm_moe_fc2_args* args, int64_t row, int64_t expert, int64_t column, int64_t kb) {
  float alpha = routing_weight(args, row, expert);
  const float* w2_scale = tdm_view_data_or_null(&args->w2_scale);
  float weight = w2_scale != NULL ? w2_scale[column / PANEL * args->w2_scale.stride[0] + kb] : 1.0f;
  if (args->x.dtype == TDM_F32) return (double)alpha * (double)weight;
  if (!tdm_view_present(&args->x_scale)) return (double)(alpha * weight);
  const float* x_scale = tdm_view_data(&args->x_scale);
  float folded = x_scale[kb * args->x_scale.stride[0] + row] * alpha;
  return (double)(folded * weight);
}

/* Adds block kb, which belongs to `expert`, to the partials of the rows that chose it. */
static void add_block(const tdm_moe_fc2_args* args, const panel* p, int64_t expert, int64_t kb) {
  const void* x = tdm_view_data(&args->x);
  const void* w = tdm_view_data(&args->w2);
  bool round = args->x.dtype != TDM_F32;
  bool any = false;
  for (int64_t m = 0; m < p->rows; m++) {
    if (!takes(args, p, m, expert)) continue;
    any = true;
    tdm_load_f32_row(x, args->x.dtype, m * args->x.stride[0] + kb * TDM_TILE_COLS, 1, TDM_TILE_COLS,
                     p->x + m * TDM_TILE_COLS);
  }
  if (!any) return;
  for (int64_t n = 0; n < p->columns; n += TDM_TILE_ROWS) {
    int64_t columns = p->columns - n < TDM_TILE_ROWS ? p->columns - n : TDM_TILE_ROWS;
    tdm_tile tile;
    tdm_tile_load(&tile, w, args->w2.dtype, (p->first + n) * args->w2.stride[0] + kb * TDM_TILE_COLS,
                  args->w2.stride[0], 1, columns, TDM_TILE_COLS);
    for (int64_t m = 0; m < p->rows; m++) {
      if (!takes(args, p, m, expert)) continue;
      double sums[TDM_TILE_ROWS];
      tdm_tile_dot(&tile, p->x + m * TDM_TILE_COLS, sums);
      tdm_tile_promote(p->partial + m * PANEL + n, sums, block_scale(args, m, expert, p->first, kb), round);
    }
  }
}

static void multiply(const tdm_moe_fc2_args* args, const tdm_hits* hits, int32_t splits, const panel* p) {
  int64_t blocks = args->x.shape[1] / args->n_experts / TDM_TILE_COLS; /* of an expert */
  bool round = args->x.dtype != TDM_F32;
  int64_t hit = 0;
  memset(p->total, 0, (size_t)(p->rows * PANEL) * sizeof *p->total);
  for (int32_t s = 0; s < splits; s++) {
    memset(p->partial, 0, (size_t)(p->rows * PANEL) * sizeof *p->partial);
    int64_t end = tdm_moe_fc2_split_begin(args->n_experts, splits, s + 1);
    for (; hit < hits->n && tdm_hit(hits, hit) < end; hit++) {
      const int64_t expert = tdm_hit(hits, hit);
      for (int64_t b = 0; b < blocks; b++) add_block(args, p, expert, expert * blocks + b);
    }
    for (int64_t i = 0; i < p->rows * PANEL; i++) {
      p->total[i] = round ? (double)((float)p->total[i] + (float)p->partial[i]) : p->total[i] + p->partial[i];
    }
  }
}

static void store(const tdm_moe_fc2_args* args, const panel* p) {
  void* out = tdm_view_data(&args->out);
  const void* addend = tdm_view_data_or_null(&args->addend);
  bool round = args->x.dtype != TDM_F32;
  for (int64_t m = 0; m < p->rows; m++) {
    const double* total = p->total + m * PANEL;
    float values[PANEL], added[PANEL] = {0};
    if (addend != NULL) {
      tdm_load_f32_row(addend, args->addend.dtype, m * args->addend.stride[0] + p->first, 1, p->columns, added);
    }
    for (int64_t n = 0; n < p->columns; n++) {
      values[n] = round ? (float)total[n] + added[n] : (float)(total[n] + (double)added[n]);
    }
    tdm_store_f32_row(out, args->out.dtype, m * args->out.stride[0] + p->first, p->columns, values);
  }
}

tdm_status tdm_moe_fc2_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_fc2_args* args = void_args;
  panel p;
  TDM_TRY(tdm_live_rows("moe_fc2", &args->n_tokens, args->x.shape[0], &p.rows));
  p.total = scratch;
  p.partial = p.total + p.rows * PANEL;
  p.x = (float*)(p.partial + p.rows * PANEL);
  int64_t hidden = args->w2.shape[0];
  tdm_hits hits;
  TDM_TRY(tdm_read_hits("moe_fc2", &args->hits, args->n_experts, &hits));
  TDM_TRY(tdm_read_chosen("moe_fc2", &args->chosen, p.rows, args->n_experts, &p.chosen));
  for (p.first = 0; p.first < hidden; p.first += PANEL) {
    p.columns = hidden - p.first < PANEL ? hidden - p.first : PANEL;
    multiply(args, &hits, plan->splits, &p);
    store(args, &p);
  }
  return TDM_OK;
}
