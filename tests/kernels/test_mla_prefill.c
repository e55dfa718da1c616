#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { NOPE = 128, ROPE = 64, VALUE = 128, LATENT = 512, MAX_SEQS = 8 };

#define SCALE 0.13523378f

typedef struct sequence {
  int32_t kind, n;
} sequence;

/* The rows of the sequences one after the other, behind `first_row` spare ones and before three more. What no sequence
 * of the expanded kind uses stays 0xff: NaN. */
typedef struct batch {
  int32_t n;
  sequence seqs[MAX_SEQS];
  int32_t start[MAX_SEQS + 1];
  int64_t rows, heads;
  test_tensor *n_seqs, *q, *kv, *k_rope, *seq_start, *seq_kind, *out;
  tdm_mla_prefill_args args;
} batch;

typedef struct batch_case {
  const char* what;
  int64_t heads;
  tdm_dtype q, kv, out;
  int32_t first_row;
  sequence seqs[MAX_SEQS]; /* up to the first without a kind */
} batch_case;

static int32_t* i32_at(const test_tensor* tensor, int64_t index) {
  return test_view_at(&tensor->view, index);
}

static tdm_view rows_of(const batch* b, const tdm_view* view, int32_t s) {
  return tdm_view_slice(*view, 0, b->start[s], b->seqs[s].n);
}

static void make_batch(test_rig* rig, batch* b, const batch_case* c) {
  b->n = 0;
  b->start[0] = c->first_row;
  while (b->n < MAX_SEQS && c->seqs[b->n].kind != 0) {
    b->seqs[b->n] = c->seqs[b->n];
    b->start[b->n + 1] = b->start[b->n] + c->seqs[b->n].n;
    b->n++;
  }
  int64_t table_rows = b->n + 2; /* two that are not live */
  int64_t rows = b->rows = b->start[b->n] + 3, h = b->heads = c->heads;
  b->n_seqs = test_rig_count(rig, "n_seqs", b->n);
  /* As the projections leave them: a head's q is nope, then rope; k_rope is the end of a row of 576. Out is head-major.
   */
  b->q = test_rig_strided(rig, "q", c->q, 3, (int64_t[]){rows, h, NOPE + ROPE}, (int64_t[]){h * 192 + 8, 192, 1});
  b->kv = test_rig_strided(rig, "kv", c->kv, 3, (int64_t[]){rows, h, 256}, (int64_t[]){h * 264 + 16, 264, 1});
  b->k_rope = test_rig_strided(rig, "k_rope", c->kv, 2, (int64_t[]){rows, ROPE}, (int64_t[]){576, 1});
  b->seq_start = test_rig_tensor(rig, "seq_start", TDM_I32, 1, (int64_t[]){table_rows + 1});
  b->seq_kind = test_rig_tensor(rig, "seq_kind", TDM_I32, 1, (int64_t[]){table_rows});
  b->out = test_rig_strided(rig, "out", c->out, 3, (int64_t[]){rows, h, VALUE}, (int64_t[]){VALUE, rows * VALUE, 1});
  *i32_at(b->seq_start, 0) = b->start[0];
  for (int32_t s = 0; s < b->n; s++) {
    *i32_at(b->seq_start, s + 1) = b->start[s + 1];
    *i32_at(b->seq_kind, s) = b->seqs[s].kind;
    if (b->seqs[s].kind != TDM_SEQ_EXPANDED || b->seqs[s].n == 0) continue;
    tdm_view q = rows_of(b, &b->q->view, s), kv = rows_of(b, &b->kv->view, s);
    tdm_view k_rope = rows_of(b, &b->k_rope->view, s), out = rows_of(b, &b->out->view, s);
    test_view_set_normal(&q, &rig->random, 1.5f);
    test_view_set_normal(&kv, &rig->random, 1.5f);
    test_view_set_normal(&k_rope, &rig->random, 1.5f);
    test_tensor_allow(b->out, &out);
  }
  b->args = (tdm_mla_prefill_args){
      .size = sizeof b->args,
      .n_seqs = b->n_seqs->view,
      .q_nope = tdm_view_slice(b->q->view, 2, 0, NOPE),
      .q_rope = tdm_view_slice(b->q->view, 2, NOPE, ROPE),
      .kv = b->kv->view,
      .k_rope = b->k_rope->view,
      .seq_start = b->seq_start->view,
      .seq_kind = b->seq_kind->view,
      .out = b->out->view,
      .scale = SCALE,
  };
}

/* One head of the query at position i: q [192], kv [n][heads][256], k_rope [n][64]. f32 scores, and p rounded to bf16
 * when kv is. */
static void attend(const batch* b, const double* q, const double* kv, const double* k_rope, int64_t i, bool round,
                   double* out) {
  float* score = malloc((size_t)(i + 1) * sizeof *score);
  float max = -INFINITY;
  double sum = 0;
  cr_assert_not_null(score);
  for (int64_t j = 0; j <= i; j++) {
    double dot = 0;
    for (int d = ROPE - 1; d >= 0; d--) dot += q[NOPE + d] * k_rope[j * ROPE + d];
    for (int d = NOPE - 1; d >= 0; d--) dot += q[d] * kv[j * b->heads * 256 + d];
    score[j] = (float)dot * (SCALE * 1.4426950408889634f);
    max = fmaxf(max, score[j]);
  }
  for (int d = 0; d < VALUE; d++) out[d] = 0;
  for (int64_t j = 0; j <= i; j++) {
    double p = (double)exp2f(score[j] - ceilf(max));
    if (round) p = oracle_round(p, TDM_BF16);
    sum += p;
    for (int d = 0; d < VALUE; d++) out[d] += p * kv[j * b->heads * 256 + NOPE + d];
  }
  for (int d = 0; d < VALUE; d++) out[d] /= sum;
  free(score);
}

/* [n, heads, 128] of a sequence; free() it. */
static double* expected(const batch* b, int32_t s) {
  tdm_view views[] = {rows_of(b, &b->q->view, s), rows_of(b, &b->kv->view, s), rows_of(b, &b->k_rope->view, s)};
  double *q = oracle_values(&views[0]), *kv = oracle_values(&views[1]), *k_rope = oracle_values(&views[2]);
  int64_t n = b->seqs[s].n, h = b->heads;
  double* y = oracle_zeros(n * h * VALUE);
  for (int64_t i = 0; i < n * h; i++) {
    attend(b, q + i * 192, kv + i % h * 256, k_rope, i / h, b->kv->view.dtype == TDM_BF16, y + i * VALUE);
  }
  free(q);
  free(kv);
  free(k_rope);
  return y;
}

static void expect_batch(const test_rig* rig, const batch* b) {
  for (int32_t s = 0; s < b->n; s++) {
    if (b->seqs[s].kind != TDM_SEQ_EXPANDED || b->seqs[s].n == 0) continue;
    double* ref = expected(b, s);
    tdm_view part = rows_of(b, &b->out->view, s);
    oracle_expect_rounded(rig->label, &part, ref, 1e-6);
    free(ref);
  }
}

enum { A = TDM_SEQ_ABSORBED, X = TDM_SEQ_EXPANDED };

static const batch_case cases[] = {
    {"one token", 1, TDM_F32, TDM_F32, TDM_F32, 0, {{X, 1}}},
    {"awkward lengths", 4, TDM_F32, TDM_F32, TDM_F32, 0, {{X, 7}, {X, 1}, {X, 2}, {X, 3}, {X, 16}, {X, 17}}},
    {"awkward lengths", 3, TDM_BF16, TDM_BF16, TDM_BF16, 2, {{X, 17}, {X, 3}, {X, 1}, {X, 37}, {X, 8}}},
    {"page edges", 2, TDM_BF16, TDM_BF16, TDM_F32, 1, {{X, 63}, {X, 64}, {X, 65}}},
    {"long", 1, TDM_F32, TDM_F32, TDM_BF16, 0, {{X, 129}, {X, 100}}},
    {"mixed kinds", 2, TDM_BF16, TDM_BF16, TDM_BF16, 0, {{A, 1}, {X, 5}, {A, 3}, {A, 1}, {X, 1}, {A, 2}}},
    {"absorbed only", 2, TDM_F32, TDM_F32, TDM_F32, 1, {{A, 4}, {A, 1}}},
    {"empty sequences", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{X, 0}, {X, 4}, {A, 0}, {X, 0}, {X, 9}}},
    {"f32 queries, bf16 keys", 2, TDM_F32, TDM_BF16, TDM_F32, 0, {{X, 3}, {X, 20}}},
    {"bf16 queries, f32 keys", 2, TDM_BF16, TDM_F32, TDM_F32, 0, {{X, 3}, {X, 20}}},
    {"nobody", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{0, 0}}},
};

Test(mla_prefill, attends_as_the_formula) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    test_rig_label(&rig, "case %zu: %s, q %s, kv %s", i, cases[i].what, tdm_dtype_name(cases[i].q),
                   tdm_dtype_name(cases[i].kv));
    make_batch(&rig, &b, &cases[i]);
    cr_assert_eq(TEST_RUN(&rig, mla_prefill, &b.args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
    expect_batch(&rig, &b);
    cr_assert_eq(test_rig_run_direct(&rig, &tdm_op_mla_prefill, &b.args), TDM_OK, "%s", rig.label);
    test_rig_close(&rig);
  }
}

Test(mla_prefill, a_sequence_or_its_beginning_alone_has_the_same_bits) {
  static const tdm_dtype dtypes[] = {TDM_F32, TDM_BF16};
  for (size_t n = 0; n < 2; n++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    make_batch(&rig, &b, &(batch_case){"", 3, dtypes[n], dtypes[n], dtypes[n], 1, {{X, 20}, {A, 4}, {X, 1}, {X, 70}}});
    cr_assert_eq(TEST_RUN(&rig, mla_prefill, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    tdm_mla_prefill_args args = b.args;
    test_tensor* start = test_rig_tensor(&rig, "start", TDM_I32, 1, (int64_t[]){2});
    test_tensor* out = test_rig_tensor(&rig, "alone", dtypes[n], 3, (int64_t[]){70, b.heads, VALUE});
    test_tensor_allow(out, &out->view);
    args.n_seqs = test_rig_count(&rig, "one", 1)->view;
    args.seq_kind = test_rig_count(&rig, "kind", X)->view;
    args.seq_start = start->view;
    for (int32_t s = 0; s < b.n; s++) {
      if (b.seqs[s].kind != X) continue;
      for (int32_t length = 1; length <= b.seqs[s].n; length += length < 3 ? 1 : 13) {
        test_rig_label(&rig, "%s: %d rows of sequence %d", tdm_dtype_name(dtypes[n]), length, s);
        oracle_fill_i32(&start->view, (int32_t[]){0, length});
        args.q_nope = tdm_view_slice(b.args.q_nope, 0, b.start[s], length);
        args.q_rope = tdm_view_slice(b.args.q_rope, 0, b.start[s], length);
        args.kv = tdm_view_slice(b.args.kv, 0, b.start[s], length);
        args.k_rope = tdm_view_slice(b.args.k_rope, 0, b.start[s], length);
        args.out = tdm_view_slice(out->view, 0, 0, length);
        cr_assert_eq(TEST_RUN(&rig, mla_prefill, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
        tdm_view rows = tdm_view_slice(b.out->view, 0, b.start[s], length);
        oracle_expect_same_bits(rig.label, &args.out, &rows);
      }
    }
    test_rig_close(&rig);
  }
}

Test(mla_prefill, nan_reaches_only_later_rows_of_its_sequence) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  test_rig_label(&rig, "NaN");
  make_batch(&rig, &b, &(batch_case){"", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{X, 5}, {X, 12}, {X, 4}}});
  tdm_view kv = rows_of(&b, &b.kv->view, 1), q = rows_of(&b, &b.q->view, 2);
  oracle_set(&kv, (9 * 2 + 1) * 256 + 3, NAN);  /* head 1 of key 9: rows 9 to 11 */
  oracle_set(&q, (2 * 2 + 0) * 192 + 150, NAN); /* head 0 of query 2 */
  cr_assert_eq(TEST_RUN(&rig, mla_prefill, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int32_t s = 0; s < b.n; s++) {
    tdm_view part = rows_of(&b, &b.out->view, s);
    double* y = oracle_values(&part);
    for (int64_t i = 0; i < b.seqs[s].n * 2; i++) {
      bool nan = (s == 1 && i / 2 >= 9 && i % 2 == 1) || (s == 2 && i == 4);
      for (int64_t d = 0; d < VALUE; d++) {
        cr_assert_eq(isnan(y[i * VALUE + d]) != 0, nan, "sequence %d, row %lld, head %lld, element %lld is %g", s,
                     (long long)(i / 2), (long long)(i % 2), (long long)d, y[i * VALUE + d]);
      }
    }
    free(y);
  }
  test_rig_close(&rig);
}

/* ---- the two forms of one attention ----------------------------------------------------------------------------- */

/* out[n] = sum over k of w[n, k] * x[k], or with `transposed` of w[k, n] * x[k]. */
static void project(const double* w, int64_t n_count, int64_t k_count, bool transposed, const double* x, double* out) {
  for (int64_t n = 0; n < n_count; n++) {
    out[n] = 0;
    for (int64_t k = 0; k < k_count; k++) out[n] += (transposed ? w[k * n_count + n] : w[n * k_count + k]) * x[k];
  }
}

static void set_row(const tdm_view* view, int64_t index, const double* values, int64_t n) {
  for (int64_t i = 0; i < n; i++) oracle_set(view, index + i, (float)values[i]);
}

Test(mla_prefill, expanded_and_absorbed_agree) {
  enum { H = 3, N = 75, PAGES = 2 };
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &(batch_case){"", H, TDM_F32, TDM_F32, TDM_F32, 0, {{X, N}}});
  test_tensor* cache = test_rig_tensor(&rig, "cache", TDM_F32, 3, (int64_t[]){PAGES, 64, 576});
  test_tensor* absorbed_q = test_rig_tensor(&rig, "absorbed q", TDM_F32, 3, (int64_t[]){N, H, 576});
  test_tensor* latent_out = test_rig_tensor(&rig, "latent out", TDM_F32, 3, (int64_t[]){N, H, LATENT});
  test_tensor* kind = test_rig_count(&rig, "kind", A);
  test_tensor* weights = test_rig_tensor(&rig, "weights", TDM_F32, 3, (int64_t[]){H, NOPE + VALUE, LATENT});
  test_view_set_normal(&weights->view, &rig.random, 0.05f);
  test_view_set_normal(&cache->view, &rig.random, 1.0f);
  test_tensor_allow(latent_out, &latent_out->view);
  double *w = oracle_values(&weights->view), *latents = oracle_values(&cache->view), *q = oracle_values(&b.q->view);
  double projected[LATENT];
  for (int64_t j = 0; j < N; j++) {
    set_row(&b.k_rope->view, j * ROPE, latents + j * 576 + LATENT, ROPE);
    for (int64_t h = 0; h < H; h++) {
      const double* wh = w + h * 256 * LATENT;
      project(wh, 256, LATENT, false, latents + j * 576, projected);
      set_row(&b.kv->view, (j * H + h) * 256, projected, 256);
      project(wh, LATENT, NOPE, true, q + (j * H + h) * 192, projected);
      set_row(&absorbed_q->view, (j * H + h) * 576, projected, LATENT);
      set_row(&absorbed_q->view, (j * H + h) * 576 + LATENT, q + (j * H + h) * 192 + NOPE, ROPE);
    }
  }
  cr_assert_eq(TEST_RUN(&rig, mla_prefill, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  test_tensor* table = test_rig_tensor(&rig, "table", TDM_I32, 2, (int64_t[]){1, PAGES});
  oracle_fill_i32(&table->view, (int32_t[]){0, 1});
  tdm_mla_decode_args decode = {
      .size = sizeof decode,
      .n_seqs = b.n_seqs->view,
      .q = absorbed_q->view,
      .cache = cache->view,
      .block_table = table->view,
      .seq_start = tdm_view_slice(b.seq_start->view, 0, 0, 2),
      .kv_len = test_rig_count(&rig, "kv_len", N)->view,
      .seq_kind = kind->view,
      .out = latent_out->view,
      .scale = SCALE,
  };
  cr_assert_eq(TEST_RUN(&rig, mla_decode, &decode), TDM_OK, "%s", tdm_last_error()->message);
  double* latent = oracle_values(&latent_out->view);
  double* ref = oracle_zeros(N * H * VALUE);
  tdm_view rows = rows_of(&b, &b.out->view, 0);
  for (int64_t i = 0; i < N * H; i++) {
    project(w + (i % H * 256 + NOPE) * LATENT, VALUE, LATENT, false, latent + i * LATENT, ref + i * VALUE);
  }
  oracle_expect_rounded("expanded against absorbed", &rows, ref, 1e-5);
  free(w);
  free(latents);
  free(q);
  free(latent);
  free(ref);
  test_rig_close(&rig);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_mla_prefill_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_prefill_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_prefill_args, member)
#define SCALED(value)       TEST_SET_FLOAT(tdm_mla_prefill_args, scale, value)

static const batch_case small = {"", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{X, 3}, {A, 1}, {X, 2}}};

static const test_refusal refusals[] = {
    {"no count", "n_seqs|absent", {ABSENT(n_seqs)}},
    {"a count of five", "n_seqs", {COPY(n_seqs, seq_kind)}},
    {"fp8 queries", "q_nope|e4m3", {SET(q_nope.dtype, TDM_E4M3)}},
    {"queries of 96", "q_nope|96|128", {SET(q_nope.shape[2], 96)}},
    {"queries apart", "q_nope|stride 2", {SET(q_nope.stride[2], 2), SET(q_nope.shape[0], 4)}},
    {"rope of 32", "q_rope|32|64", {SET(q_rope.shape[2], 32)}},
    {"rope of one head", "q_rope|1|2", {SET(q_rope.shape[1], 1)}},
    {"rope of rank 2", "q_rope|rank 2", {SET(q_rope.rank, 2)}},
    {"kv of 128", "kv|128|256", {SET(kv.shape[2], 128)}},
    {"kv of 4 rows", "kv|4|9", {SET(kv.shape[0], 4)}},
    {"kv heads overlap", "kv|stride 128", {SET(kv.stride[1], 128)}},
    {"fp8 kv", "kv|e4m3", {SET(kv.dtype, TDM_E4M3)}},
    {"k_rope of 4 rows", "k_rope|4|9", {SET(k_rope.shape[0], 4)}},
    {"integer k_rope", "k_rope|i32", {SET(k_rope.dtype, TDM_I32)}},
    {"4 starts for 5", "seq_start|4|6", {SET(seq_start.shape[0], 4)}},
    {"float kinds", "seq_kind|f32", {SET(seq_kind.dtype, TDM_F32)}},
    {"out of 64", "out|64|128", {SET(out.shape[2], 64)}},
    {"out's rows overlap", "out|stride", {SET(out.stride[0], 64)}},
    {"out's values apart", "out|last stride", {SET(out.stride[2], 2), SET(out.shape[1], 2), SET(out.stride[1], 512)}},
    {"no out", "out|absent", {ABSENT(out)}},
    {"scale left out", "scale|0", {SCALED(0.0f)}},
    {"negative scale", "scale|-1", {SCALED(-1.0f)}},
    {"infinite scale", "scale|inf", {SCALED(INFINITY)}},
    {"out is in kv", "out|overlaps|kv", {COPY(out.buffer, kv.buffer)}},
};

Test(mla_prefill, refuses_bad_arguments) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &small);
  test_rig_refusals(&rig, &tdm_op_mla_prefill, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(mla_prefill, refuses_bad_data_and_writes_nothing) {
  enum which { COUNT, START, KIND };
  static const struct {
    enum which tensor;
    int64_t index;
    int32_t value;
    const char* words;
  } bad_data[] = {
      {COUNT, 0, -1, "mla_prefill|-1|5"},
      {COUNT, 0, 6, "mla_prefill|6|5"},
      {COUNT, 0, 4, "mla_prefill|sequence 3"}, /* whose start and kind were never set */
      {START, 0, -2, "mla_prefill|sequence 0|row -2"},
      {START, 1, 5, "mla_prefill|sequence 1|row 5|4"},
      {START, 3, 10, "mla_prefill|sequence 2|10|[0, 9]"},
      {KIND, 1, 0, "mla_prefill|sequence 1|seq_kind 0"},
      {KIND, 0, 7, "mla_prefill|sequence 0|seq_kind 7"},
  };
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    test_rig_label(&rig, "bad data %zu", i);
    make_batch(&rig, &b, &small);
    test_tensor* const tensors[] = {b.n_seqs, b.seq_start, b.seq_kind};
    *i32_at(tensors[bad_data[i].tensor], bad_data[i].index) = bad_data[i].value;
    memset(b.out->writable, 0, b.out->bytes);
    test_expect_failure(rig.label, TEST_RUN(&rig, mla_prefill, &b.args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&rig);
  }
}
