#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mla_decode/mla_decode_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"

enum { LATENT = 512, CACHED = 576, PAGE = 64, MAX_SEQS = 8 };

#define SCALE 0.13523378f

typedef struct sequence {
  int32_t kind, n_new, kv_len;
} sequence;

/* The rows of the sequences one after the other, behind `first_row` spare ones and before three more; pages dealt out
 * of order. What no sequence uses stays 0xff: NaN, and -1 as an integer. */
typedef struct batch {
  int32_t n;
  sequence seqs[MAX_SEQS];
  int32_t start[MAX_SEQS + 1];
  int64_t rows, heads;
  test_tensor *n_seqs, *q, *cache, *table, *seq_start, *kv_len, *seq_kind, *out;
  tdm_mla_decode_args args;
} batch;

typedef struct batch_case {
  const char* what;
  int64_t heads;
  tdm_dtype q, cache, out;
  int32_t first_row;
  sequence seqs[MAX_SEQS]; /* up to the first without a kind */
} batch_case;

static int64_t pages_of(const sequence* s) {
  return s->kind == TDM_SEQ_ABSORBED ? (s->kv_len + PAGE - 1) / PAGE : 0;
}

static int32_t* i32_at(const test_tensor* tensor, int64_t index) {
  return test_view_at(&tensor->view, index);
}

/* Rows of one sequence of a [rows, ..] view. */
static tdm_view rows_of(const batch* b, const tdm_view* view, int32_t s) {
  return tdm_view_slice(*view, 0, b->start[s], b->seqs[s].n_new);
}

/* Row-major index in the cache of value d of a sequence's token. */
static int64_t cached(const batch* b, int32_t s, int64_t token, int64_t d) {
  int32_t page = *i32_at(b->table, s * b->table->view.shape[1] + token / PAGE);
  return (page * PAGE + token % PAGE) * CACHED + d;
}

static void fill_sequence(test_rig* rig, batch* b, int32_t s, int64_t n_pages, int64_t* next_page) {
  *i32_at(b->seq_start, s) = b->start[s];
  *i32_at(b->seq_start, s + 1) = b->start[s + 1];
  *i32_at(b->kv_len, s) = b->seqs[s].kv_len;
  *i32_at(b->seq_kind, s) = b->seqs[s].kind;
  for (int64_t j = 0; j < pages_of(&b->seqs[s]); j++) {
    *i32_at(b->table, s * b->table->view.shape[1] + j) = (int32_t)(((*next_page)++ * 7 + 3) % n_pages);
  }
  if (b->seqs[s].n_new == 0) return;
  tdm_view out = rows_of(b, &b->out->view, s);
  test_tensor_allow(b->out, &out);
  if (b->seqs[s].kind != TDM_SEQ_ABSORBED) return;
  tdm_view q = rows_of(b, &b->q->view, s);
  test_view_set_normal(&q, &rig->random, 1.0f);
  for (int64_t token = 0; token < b->seqs[s].kv_len; token++) {
    for (int64_t d = 0; d < CACHED; d++) {
      oracle_set(&b->cache->view, cached(b, s, token, d), test_random_normal(&rig->random));
    }
  }
}

static void make_batch(test_rig* rig, batch* b, const batch_case* c) {
  int64_t n_pages = 3, max_pages = 1, table_rows;
  b->n = 0;
  b->start[0] = c->first_row;
  while (b->n < MAX_SEQS && c->seqs[b->n].kind != 0) {
    const sequence* s = &c->seqs[b->n];
    b->seqs[b->n] = *s;
    b->start[b->n + 1] = b->start[b->n] + s->n_new;
    n_pages += pages_of(s);
    if (pages_of(s) > max_pages) max_pages = pages_of(s);
    b->n++;
  }
  while (n_pages % 7 == 0) n_pages++;
  table_rows = b->n + 2; /* two that are not live */
  b->rows = b->start[b->n] + 3;
  b->heads = c->heads;
  b->n_seqs = test_rig_count(rig, "n_seqs", b->n);
  b->q = test_rig_strided(rig, "q", c->q, 3, (int64_t[]){b->rows, c->heads, CACHED},
                          (int64_t[]){c->heads * 584 + 16, 584, 1});
  b->cache = test_rig_strided(rig, "cache", c->cache, 3, (int64_t[]){n_pages, PAGE, CACHED},
                              (int64_t[]){PAGE * CACHED + 32, CACHED, 1});
  b->table = test_rig_strided(rig, "block_table", TDM_I32, 2, (int64_t[]){table_rows, max_pages},
                              (int64_t[]){max_pages + 1, 1});
  b->seq_start = test_rig_tensor(rig, "seq_start", TDM_I32, 1, (int64_t[]){table_rows + 1});
  b->kv_len = test_rig_tensor(rig, "kv_len", TDM_I32, 1, (int64_t[]){table_rows});
  b->seq_kind = test_rig_tensor(rig, "seq_kind", TDM_I32, 1, (int64_t[]){table_rows});
  b->out = test_rig_strided(rig, "out", c->out, 3, (int64_t[]){b->rows, c->heads, LATENT},
                            (int64_t[]){c->heads * LATENT + 8, LATENT, 1});
  *i32_at(b->seq_start, 0) = b->start[0];
  int64_t next_page = 0;
  for (int32_t s = 0; s < b->n; s++) fill_sequence(rig, b, s, n_pages, &next_page);
  b->args = (tdm_mla_decode_args){
      .size = sizeof b->args,
      .n_seqs = b->n_seqs->view,
      .q = b->q->view,
      .cache = b->cache->view,
      .block_table = b->table->view,
      .seq_start = b->seq_start->view,
      .kv_len = b->kv_len->view,
      .seq_kind = b->seq_kind->view,
      .out = b->out->view,
      .scale = SCALE,
  };
}

/* One head of one query against `n` keys: f32 scores in units of log2, p against the power of two that is next to the
 * largest, rounded to bf16 when the cache is. */
static void attend(const double* q, const double* cache, const int32_t* pages, int64_t n, bool round, double* out) {
  float* score = malloc((size_t)n * sizeof *score);
  float max = -INFINITY;
  double sum = 0;
  cr_assert_not_null(score);
  for (int64_t j = 0; j < n; j++) {
    const double* key = cache + (pages[j / PAGE] * PAGE + j % PAGE) * CACHED;
    double dot = 0;
    for (int d = CACHED - 1; d >= 0; d--) dot += q[d] * key[d];
    score[j] = (float)dot * (SCALE * 1.4426950408889634f);
    max = fmaxf(max, score[j]);
  }
  for (int d = 0; d < LATENT; d++) out[d] = 0;
  for (int64_t j = 0; j < n; j++) {
    const double* key = cache + (pages[j / PAGE] * PAGE + j % PAGE) * CACHED;
    double p = (double)exp2f(score[j] - ceilf(max));
    if (round) p = oracle_round(p, TDM_BF16);
    sum += p;
    for (int d = 0; d < LATENT; d++) out[d] += p * key[d];
  }
  for (int d = 0; d < LATENT; d++) out[d] /= sum;
  free(score);
}

/* [n_new, heads, 512] of a sequence; free() it. */
static double* expected(const batch* b, int32_t s) {
  int64_t n_new = b->seqs[s].n_new;
  double* y = oracle_zeros(n_new * b->heads * LATENT);
  if (b->seqs[s].kind != TDM_SEQ_ABSORBED) return y;
  tdm_view part = rows_of(b, &b->q->view, s);
  double* q = oracle_values(&part);
  double* cache = oracle_values(&b->cache->view);
  for (int64_t i = 0; i < n_new * b->heads; i++) {
    attend(q + i * CACHED, cache, i32_at(b->table, s * b->table->view.shape[1]),
           b->seqs[s].kv_len - n_new + i / b->heads + 1, b->cache->view.dtype == TDM_BF16, y + i * LATENT);
  }
  free(q);
  free(cache);
  return y;
}

static void expect_batch(const test_rig* rig, const batch* b) {
  for (int32_t s = 0; s < b->n; s++) {
    if (b->seqs[s].n_new == 0) continue;
    double* ref = expected(b, s);
    tdm_view part = rows_of(b, &b->out->view, s);
    oracle_expect_rounded(rig->label, &part, ref, 1e-6);
    free(ref);
  }
}

enum { A = TDM_SEQ_ABSORBED, X = TDM_SEQ_EXPANDED };

static const batch_case cases[] = {
    {"one token of one", 1, TDM_F32, TDM_F32, TDM_F32, 0, {{A, 1, 1}}},
    {"decode at page edges",
     4,
     TDM_F32,
     TDM_F32,
     TDM_F32,
     0,
     {{A, 1, 63}, {A, 1, 64}, {A, 1, 65}, {A, 1, 128}, {A, 1, 129}}},
    {"decode at page edges",
     3,
     TDM_BF16,
     TDM_BF16,
     TDM_BF16,
     1,
     {{A, 1, 65}, {A, 1, 64}, {A, 1, 1}, {A, 1, 2}, {A, 1, 63}, {A, 1, 200}}},
    {"more heads than share a decoding", 17, TDM_BF16, TDM_BF16, TDM_F32, 0, {{A, 2, 70}, {A, 1, 9}}},
    {"33 heads", 33, TDM_F32, TDM_F32, TDM_BF16, 0, {{A, 1, 17}}},
    {"chunks of new tokens", 2, TDM_BF16, TDM_BF16, TDM_BF16, 2, {{A, 5, 5}, {A, 7, 68}, {A, 64, 64}, {A, 3, 130}}},
    {"chunks of new tokens", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{A, 65, 65}, {A, 16, 100}, {A, 37, 129}}},
    {"mixed kinds", 4, TDM_BF16, TDM_BF16, TDM_BF16, 0, {{X, 7, 7}, {A, 1, 33}, {X, 1, 1}, {A, 2, 66}, {X, 3, 3}}},
    {"expanded only", 2, TDM_F32, TDM_F32, TDM_F32, 3, {{X, 16, 16}, {X, 1, 1}}},
    {"sequences without new tokens",
     2,
     TDM_F32,
     TDM_BF16,
     TDM_F32,
     0,
     {{A, 0, 40}, {A, 1, 5}, {A, 0, 0}, {X, 0, 0}, {A, 1, 64}}},
    {"f32 queries, bf16 cache", 3, TDM_F32, TDM_BF16, TDM_F32, 0, {{A, 1, 2}, {A, 2, 3}, {A, 1, 100}}},
    {"bf16 queries, f32 cache", 3, TDM_BF16, TDM_F32, TDM_F32, 0, {{A, 1, 2}, {A, 2, 3}, {A, 1, 100}}},
    {"nobody", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{0, 0, 0}}},
};

Test(mla_decode, attends_as_the_formula) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    test_rig_label(&rig, "case %zu: %s, q %s, cache %s", i, cases[i].what, tdm_dtype_name(cases[i].q),
                   tdm_dtype_name(cases[i].cache));
    make_batch(&rig, &b, &cases[i]);
    cr_assert_eq(TEST_RUN(&rig, mla_decode, &b.args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
    expect_batch(&rig, &b);
    cr_assert_eq(test_rig_run_direct(&rig, &tdm_op_mla_decode, &b.args), TDM_OK, "%s", rig.label);
    test_rig_close(&rig);
  }
}

Test(mla_decode, a_row_alone_has_the_same_bits) {
  static const batch_case mixed[] = {
      {"f32", 3, TDM_F32, TDM_F32, TDM_F32, 1, {{A, 5, 69}, {X, 4, 4}, {A, 1, 64}, {A, 3, 3}, {A, 2, 129}}},
      {"bf16", 3, TDM_BF16, TDM_BF16, TDM_BF16, 1, {{A, 5, 69}, {X, 4, 4}, {A, 1, 64}, {A, 3, 3}, {A, 2, 129}}},
  };
  for (size_t n = 0; n < sizeof mixed / sizeof mixed[0]; n++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    make_batch(&rig, &b, &mixed[n]);
    cr_assert_eq(TEST_RUN(&rig, mla_decode, &b.args), TDM_OK, "%s", tdm_last_error()->message);
    int64_t max_pages = b.table->view.shape[1];
    tdm_mla_decode_args args = b.args;
    test_tensor* table = test_rig_tensor(&rig, "table", TDM_I32, 2, (int64_t[]){1, max_pages});
    test_tensor* start = test_rig_tensor(&rig, "start", TDM_I32, 1, (int64_t[]){2});
    test_tensor* len = test_rig_count(&rig, "len", 0);
    test_tensor* out = test_rig_tensor(&rig, "alone", b.out->view.dtype, 3, (int64_t[]){1, b.heads, LATENT});
    test_tensor_allow(out, &out->view);
    args.n_seqs = test_rig_count(&rig, "one", 1)->view;
    args.seq_kind = test_rig_count(&rig, "kind", A)->view;
    args.block_table = table->view;
    args.seq_start = start->view;
    args.kv_len = len->view;
    args.out = out->view;
    oracle_fill_i32(&start->view, (int32_t[]){0, 1});
    for (int32_t s = 0; s < b.n; s++) {
      if (b.seqs[s].kind != A) continue;
      for (int64_t j = 0; j < max_pages; j++) *i32_at(table, j) = *i32_at(b.table, s * max_pages + j);
      for (int32_t i = 0; i < b.seqs[s].n_new; i++) {
        test_rig_label(&rig, "%s: row %d of sequence %d", mixed[n].what, i, s);
        *i32_at(len, 0) = b.seqs[s].kv_len - b.seqs[s].n_new + i + 1;
        args.q = tdm_view_slice(b.q->view, 0, b.start[s] + i, 1);
        cr_assert_eq(TEST_RUN(&rig, mla_decode, &args), TDM_OK, "%s: %s", rig.label, tdm_last_error()->message);
        tdm_view row = tdm_view_slice(b.out->view, 0, b.start[s] + i, 1);
        oracle_expect_same_bits(rig.label, &out->view, &row);
      }
    }
    test_rig_close(&rig);
  }
}

Test(mla_decode, nan_reaches_only_who_looks_at_it) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  test_rig_label(&rig, "NaN");
  make_batch(&rig, &b, &(batch_case){"", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{A, 4, 67}, {A, 1, 64}, {A, 2, 9}}});
  /* In token 65 of sequence 0, which its last two rows see; in one head of the last row of sequence 2. */
  oracle_set(&b.cache->view, cached(&b, 0, 65, 300), NAN);
  tdm_view q = rows_of(&b, &b.q->view, 2);
  oracle_set(&q, (1 * 2 + 1) * CACHED + 570, NAN);
  cr_assert_eq(TEST_RUN(&rig, mla_decode, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  double* y = oracle_values(&b.out->view);
  for (int64_t i = 0; i < 7 * 2; i++) {
    bool nan = i / 2 == 2 || i / 2 == 3 || i == 6 * 2 + 1;
    for (int64_t d = 0; d < LATENT; d++) {
      cr_assert_eq(isnan(y[i * LATENT + d]) != 0, nan, "row %lld, head %lld, element %lld is %g", (long long)(i / 2),
                   (long long)(i % 2), (long long)d, y[i * LATENT + d]);
    }
  }
  free(y);
  test_rig_close(&rig);
}

Test(mla_decode, one_key_gives_its_value_and_equal_keys_their_mean) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &(batch_case){"", 1, TDM_F32, TDM_BF16, TDM_F32, 0, {{A, 1, 1}, {A, 1, 4}}});
  for (int64_t j = 0; j < 4; j++) {
    for (int64_t d = 0; d < CACHED; d++) {
      oracle_set(&b.cache->view, cached(&b, 1, j, d), d == j ? 8.0f : 0.0f);
    }
  }
  tdm_view q = rows_of(&b, &b.q->view, 1);
  for (int64_t d = 0; d < CACHED; d++) oracle_set(&q, d, 1.0f);
  cr_assert_eq(TEST_RUN(&rig, mla_decode, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  double* y = oracle_values(&b.out->view);
  double* cache = oracle_values(&b.cache->view);
  for (int64_t d = 0; d < LATENT; d++) {
    cr_assert_eq(y[d], cache[cached(&b, 0, 0, d)], "element %lld", (long long)d);
    cr_assert_eq(y[LATENT + d], d < 4 ? 2.0 : 0.0, "element %lld of the mean is %g", (long long)d, y[LATENT + d]);
  }
  free(y);
  free(cache);
  test_rig_close(&rig);
}

Test(mla_decode, leaves_follow_from_heads_and_reach_alone) {
  static const int64_t shapes[][2] = {{1, 1}, {16, 64}, {16, 4096}, {17, 64}, {64, 10}, {128, 64}, {128, 2048}};
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    int64_t heads = shapes[i][0], pages = shapes[i][1];
    const bool few = heads <= 16; /* leaves are pages, branches so many of them; else branches are leaves */
    int32_t branch = 0, cuts[3] = {0, 0, 0}, branches = few ? 8 : 4; /* of a group */
    for (int64_t rows = 1; rows <= 257; rows *= 2) {
      for (int32_t sms = 1; sms <= 132; sms = sms * 3 + 1) {
        tdm_mla_decode_args args = {.q = {.shape = {rows, heads, CACHED}}, .block_table = {.shape = {rows, pages}}};
        tdm_mla_decode_plan plan;
        tdm_mla_decode_sm90_make_plan(&args, sms, &plan);
        if (branch == 0) branch = plan.branch_keys;
        cr_expect_eq(plan.branch_keys, branch, "%lld heads, %lld rows, %d SMs", (long long)heads, (long long)rows, sms);
        cr_expect_eq(plan.leaf_keys, few ? PAGE : branch);
        const int cut = plan.split_keys < branch ? 0 : plan.split_keys == branch ? 1 : 2;
        cr_expect_eq(plan.split_keys, cut == 0 ? PAGE : cut == 1 ? branch : branches * branch);
        cr_expect_eq(plan.branch_splits, cut == 0 ? branch / PAGE : 1);
        cr_expect_eq(plan.group_branches, cut == 2 ? 1 : branches);
        cr_expect(plan.max_splits * (int64_t)plan.split_keys >= pages * PAGE);
        cr_expect(plan.attend.grid <= (uint32_t)sms);
        cuts[cut]++;
      }
    }
    cr_expect((cuts[1] > 0 || pages == 1) && cuts[2] > 0, "%lld heads: %d plans cut into branches, %d into groups",
              (long long)heads, cuts[1], cuts[2]);
    cr_expect_eq(cuts[0] > 0, few && pages < 4096, "%lld heads: %d plans cut into pages", (long long)heads, cuts[0]);
  }
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_mla_decode_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_decode_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_decode_args, member)
#define SCALED(value)       TEST_SET_FLOAT(tdm_mla_decode_args, scale, value)

static const batch_case small = {"", 2, TDM_F32, TDM_F32, TDM_F32, 0, {{A, 1, 64}, {A, 2, 70}, {X, 2, 2}}};

static const test_refusal refusals[] = {
    {"no count", "n_seqs|absent", {ABSENT(n_seqs)}},
    {"a count of five", "n_seqs", {COPY(n_seqs, kv_len)}},
    {"fp8 queries", "q|e4m3", {SET(q.dtype, TDM_E4M3)}},
    {"queries of 512", "q|512|576", {SET(q.shape[2], 512)}},
    {"queries of rank 2", "q|rank 2", {SET(q.rank, 2)}},
    {"fp8 cache", "cache|e4m3", {SET(cache.dtype, TDM_E4M3)}},
    {"pages of 32", "cache|32|64", {SET(cache.shape[1], 32)}},
    {"cached 512", "cache|512|576", {SET(cache.shape[2], 512)}},
    {"pages overlap", "cache|stride 576", {SET(cache.stride[0], 576)}},
    {"table of 4 sequences", "block_table|4|5", {SET(block_table.shape[0], 4)}},
    {"float table", "block_table|f32", {SET(block_table.dtype, TDM_F32)}},
    {"5 starts for 5", "seq_start|5|6", {SET(seq_start.shape[0], 5)}},
    {"4 lengths", "kv_len|4|5", {SET(kv_len.shape[0], 4)}},
    {"float lengths", "kv_len|f32", {SET(kv_len.dtype, TDM_F32)}},
    {"byte kinds", "seq_kind|i8", {SET(seq_kind.dtype, TDM_I8)}},
    {"out of one head", "out|1|2", {SET(out.shape[1], 1)}},
    {"out of 3 rows", "out|3|8", {SET(out.shape[0], 3)}},
    {"out of 128", "out|128|512", {SET(out.shape[2], 128)}},
    {"scale left out", "scale|0", {SCALED(0.0f)}},
    {"negative scale", "scale|-0.5", {SCALED(-0.5f)}},
    {"infinite scale", "scale|inf", {SCALED(INFINITY)}},
    {"NaN scale", "scale|nan", {SCALED(NAN)}},
    {"out is q", "out|overlaps|q", {COPY(out.buffer, q.buffer)}},
};

Test(mla_decode, refuses_bad_arguments) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &small);
  test_rig_refusals(&rig, &tdm_op_mla_decode, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&rig);
}

Test(mla_decode, refuses_bad_data_and_writes_nothing) {
  enum which { COUNT, START, LENGTH, KIND, TABLE };
  static const struct {
    enum which tensor;
    int64_t index;
    int32_t value;
    const char* words;
  } bad_data[] = {
      {COUNT, 0, -1, "mla_decode|-1|5"},
      {COUNT, 0, 6, "mla_decode|6|5"},
      {COUNT, 0, 4, "mla_decode|sequence 3"}, /* whose start and kind were never set */
      {START, 0, -1, "mla_decode|sequence 0|row -1"},
      {START, 1, 4, "mla_decode|sequence 1|row 4|3"},
      {START, 3, 9, "mla_decode|sequence 2|9|[0, 8]"},
      {LENGTH, 1, 1, "mla_decode|sequence 1|kv_len 1|2 new"},
      {LENGTH, 0, 0, "mla_decode|sequence 0|kv_len 0|1 new"},
      {LENGTH, 0, -64, "mla_decode|sequence 0|kv_len -64"},
      {LENGTH, 1, 129, "mla_decode|sequence 1|kv_len 129|128"},
      {LENGTH, 0, INT32_MAX, "mla_decode|sequence 0|kv_len 2147483647"},
      {LENGTH, 0, 65, "mla_decode|entry 1|sequence 0|page -1"}, /* the next page was never dealt */
      {KIND, 2, 0, "mla_decode|sequence 2|seq_kind 0"},
      {KIND, 0, 3, "mla_decode|sequence 0|seq_kind 3"},
      {TABLE, 3, -1, "mla_decode|entry 1|sequence 1|page -1|[0, 6)"},
      {TABLE, 0, 6, "mla_decode|entry 0|sequence 0|page 6|[0, 6)"},
  };
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    test_rig rig;
    batch b;
    test_rig_open(&rig);
    test_rig_label(&rig, "bad data %zu", i);
    make_batch(&rig, &b, &small);
    test_tensor* const tensors[] = {b.n_seqs, b.seq_start, b.kv_len, b.seq_kind, b.table};
    *i32_at(tensors[bad_data[i].tensor], bad_data[i].index) = bad_data[i].value;
    memset(b.out->writable, 0, b.out->bytes);
    test_expect_failure(rig.label, TEST_RUN(&rig, mla_decode, &b.args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&rig);
  }
}

Test(mla_decode, lengths_and_pages_of_expanded_sequences_do_not_matter) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &small);
  *i32_at(b.kv_len, 2) = -5;
  cr_assert_eq(TEST_RUN(&rig, mla_decode, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  expect_batch(&rig, &b);
  test_rig_close(&rig);
}

Test(mla_decode, plan_counts_full_block_tables) {
  test_rig rig;
  batch b;
  test_rig_open(&rig);
  make_batch(&rig, &b, &small);
  tdm_plan on_host = {.splits = 1}, on_gpu = {.splits = 1};
  tdm_op_mla_decode.plan(&b.args, 0, &on_host);
  tdm_op_mla_decode.plan(&b.args, 132, &on_gpu);
  cr_expect_eq(on_host.flops, 2.0 * 8 * 2 * 128 * (576 + 512), "%g", on_host.flops);
  cr_expect_eq(on_host.bytes, on_gpu.bytes);
  cr_expect_eq(on_host.scratch_bytes % 256, 0);
  cr_expect_gt(on_host.scratch_bytes, 0);
  test_rig_close(&rig);
}
