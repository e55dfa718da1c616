#include <math.h>

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/common/mla.h"
#include "kernels/mla_kv_write/mla_kv_write.h"
#include "kernels/rope/rope.h"

static void normalise(float values[TDM_MLA_LATENT], const float weight[TDM_MLA_LATENT], float eps) {
  double squares = 0;
  for (int d = 0; d < TDM_MLA_LATENT; d++) squares += (double)values[d] * (double)values[d];
  float inv = (float)(1.0 / sqrt(squares / TDM_MLA_LATENT + (double)eps));
  for (int d = 0; d < TDM_MLA_LATENT; d++) values[d] = values[d] * inv * weight[d];
}

tdm_status tdm_mla_kv_write_check_slots(const char* op, const tdm_view* slots, const tdm_view* cache, int64_t rows) {
  const int32_t* slot = tdm_view_data(slots);
  int64_t n_slots = cache->shape[0] * TDM_PAGE_TOKENS;
  for (int64_t m = 0; m < rows; m++) {
    if (slot[m] < -1 || slot[m] >= n_slots) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: slot %d of row %lld is neither -1 nor in [0, %lld)", op, slot[m],
                      (long long)m, (long long)n_slots);
    }
  }
  return TDM_OK;
}

tdm_status tdm_mla_kv_write_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_mla_kv_write_args* args = void_args;
  (void)plan, (void)scratch;
  int64_t rows;
  TDM_TRY(tdm_live_rows("mla_kv_write", &args->n_tokens, args->kv.shape[0], &rows));
  TDM_TRY(tdm_rope_check_positions("mla_kv_write", &args->positions, &args->cos_sin, rows));
  TDM_TRY(tdm_mla_kv_write_check_slots("mla_kv_write", &args->slots, &args->cache, rows));
  const void* kv = tdm_view_data(&args->kv);
  const int32_t* positions = tdm_view_data(&args->positions);
  const float* cos_sin = tdm_view_data(&args->cos_sin);
  const int32_t* slots = tdm_view_data(&args->slots);
  void* cache = tdm_view_data(&args->cache);
  void* out = tdm_view_data_or_null(&args->out);
  float weight[TDM_MLA_LATENT];
  tdm_load_f32_row(tdm_view_data(&args->norm_weight), args->norm_weight.dtype, 0, 1, TDM_MLA_LATENT, weight);

  for (int64_t m = 0; m < rows; m++) {
    float values[TDM_MLA_CACHED];
    tdm_load_f32_row(kv, args->kv.dtype, m * args->kv.stride[0], 1, TDM_MLA_CACHED, values);
    normalise(values, weight, args->eps);
    tdm_rope_rotate(values + TDM_MLA_LATENT, cos_sin + positions[m] * args->cos_sin.stride[0], args->style, false,
                    values + TDM_MLA_LATENT);
    if (slots[m] >= 0) {
      int64_t page = slots[m] / TDM_PAGE_TOKENS, place = slots[m] % TDM_PAGE_TOKENS;
      int64_t start = page * args->cache.stride[0] + place * args->cache.stride[1];
      tdm_store_f32_row(cache, args->cache.dtype, start, TDM_MLA_CACHED, values);
    }
    if (out != NULL) tdm_store_f32_row(out, args->out.dtype, m * args->out.stride[0], TDM_MLA_CACHED, values);
  }
  return TDM_OK;
}
