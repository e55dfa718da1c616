#ifndef KERNELS_COMMON_SEQUENCE_H
#define KERNELS_COMMON_SEQUENCE_H

/* The sequences of an attention batch, as its references read them. */

#include "runtime/op.h"
#include "runtime/status.h"

/* seq_start [S + 1] and seq_kind [S], both i32, agree with n_seqs (i32 [1]). Answers S. */
tdm_status tdm_check_sequences(const char* op, const tdm_view* n_seqs, const tdm_view* seq_start,
                               const tdm_view* seq_kind, int64_t* out_seqs);

/* A softmax scale is finite and above 0. */
tdm_status tdm_check_softmax_scale(const char* op, float scale);

/* At run time: the count of live sequences, after checking that it is in [0, S], that their starts ascend from 0 or
 * more to `rows` or less, and that every kind is a tdm_seq_kind. */
tdm_status tdm_live_sequences(const char* op, const tdm_view* n_seqs, const tdm_view* seq_start,
                              const tdm_view* seq_kind, int64_t rows, int64_t* out_seqs);

#endif
