#include "kernels/common/sequence.h"

#include <math.h>

#include "kernels/common/check.h"

tdm_status tdm_check_sequences(const char* op, const tdm_view* n_seqs, const tdm_view* seq_start,
                               const tdm_view* seq_kind, int64_t* out_seqs) {
  TDM_TRY(tdm_check_count(op, "n_seqs", n_seqs));
  TDM_TRY(tdm_check_tensor(op, "seq_kind", seq_kind, TDM_DTYPES(TDM_I32), 1, (int64_t[]){TDM_ANY}));
  int64_t n = seq_kind->shape[0];
  TDM_TRY(tdm_check_tensor(op, "seq_start", seq_start, TDM_DTYPES(TDM_I32), 1, (int64_t[]){n + 1}));
  *out_seqs = n;
  return TDM_OK;
}

tdm_status tdm_check_softmax_scale(const char* op, float scale) {
  if (!isfinite(scale) || scale <= 0.0f) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: scale is %g, not finite and above 0", op, (double)scale);
  }
  return TDM_OK;
}

tdm_status tdm_live_sequences(const char* op, const tdm_view* n_seqs, const tdm_view* seq_start,
                              const tdm_view* seq_kind, int64_t rows, int64_t* out_seqs) {
  TDM_TRY(tdm_live_rows(op, n_seqs, seq_kind->shape[0], out_seqs));
  const int32_t* start = tdm_view_data(seq_start);
  const int32_t* kind = tdm_view_data(seq_kind);
  int64_t n = *out_seqs;
  for (int64_t s = 0; s < n; s++) {
    if (start[s] < 0 || start[s + 1] < start[s] || start[s + 1] > rows) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "%s: sequence %lld starts at row %d and the next at %d, not ascending in [0, %lld]", op,
                      (long long)s, start[s], start[s + 1], (long long)rows);
    }
    if (kind[s] != TDM_SEQ_ABSORBED && kind[s] != TDM_SEQ_EXPANDED) {
      return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: sequence %lld has seq_kind %d, not %d (absorbed) or %d (expanded)", op,
                      (long long)s, kind[s], TDM_SEQ_ABSORBED, TDM_SEQ_EXPANDED);
    }
  }
  return TDM_OK;
}
