#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"
#include "kernels/sample/philox.h"
#include "kernels/sample/sample.h"
#include "tests/support/rig.h"

/* The known answers published with the generator. */
static const struct {
  uint32_t counter[4], key[2], expected[4];
} known_answers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

Test(sample, philox_known_answers) {
  for (size_t i = 0; i < sizeof known_answers / sizeof known_answers[0]; i++) {
    uint32_t words[4];
    tdm_philox4x32(known_answers[i].counter, known_answers[i].key, words);
    for (int j = 0; j < 4; j++) cr_expect_eq(words[j], known_answers[i].expected[j], "vector %zu word %d", i, j);
  }
}

Test(sample, uniform) {
  cr_expect_eq(tdm_sample_uniform(0, 0), ((double)0x6627e8d5 + 0.5) / 4294967296.0);
  cr_expect_neq(tdm_sample_uniform(0, 1), tdm_sample_uniform(1, 0));
  const uint32_t counter[4] = {7, 0, 0, 0};
  uint32_t words[4];
  tdm_philox4x32(counter, known_answers[2].key, words);
  cr_expect_eq(tdm_sample_uniform(0x299f31d0a4093822, 7), ((double)words[0] + 0.5) / 4294967296.0);
  double mean = 0.0;
  for (int32_t position = 0; position < 100000; position++) {
    double u = tdm_sample_uniform(-12345, position);
    cr_assert(u > 0.0 && u < 1.0);
    mean += u / 100000;
  }
  cr_expect_float_eq(mean, 0.5, 0.004, "%g", mean);
}

typedef struct sample {
  test_rig rig;
  test_tensor *logits, *temperature, *top_p, *seeds, *positions, *out;
  tdm_sample_args args;
} sample;

/* Rows of random logits with seeds 1000, 1001, ... and the position 5. */
static void open_sample(sample* s, int64_t l, int64_t v, float temperature, float top_p) {
  test_rig* rig = &s->rig;
  test_rig_open(rig);
  test_rig_label(rig, "sample l %lld v %lld temperature %g top_p %g", (long long)l, (long long)v, (double)temperature,
                 (double)top_p);
  s->logits = test_rig_strided(rig, "logits", TDM_F32, 2, (int64_t[]){l, v}, (int64_t[]){v + 5, 1});
  s->temperature = test_rig_tensor(rig, "temperature", TDM_F32, 1, &l);
  s->top_p = test_rig_tensor(rig, "top_p", TDM_F32, 1, &l);
  s->seeds = test_rig_tensor(rig, "seeds", TDM_I64, 1, &l);
  s->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, &l);
  s->out = test_rig_tensor(rig, "out", TDM_I32, 1, &l);
  test_view_set_normal(&s->logits->view, &rig->random, 2.0f);
  for (int64_t i = 0; i < l; i++) {
    *(float*)test_view_at(&s->temperature->view, i) = temperature;
    *(float*)test_view_at(&s->top_p->view, i) = top_p;
    *(int64_t*)test_view_at(&s->seeds->view, i) = 1000 + i;
    *(int32_t*)test_view_at(&s->positions->view, i) = 5;
  }
  s->args = (tdm_sample_args){.size = sizeof s->args};
  s->args.logits = s->logits->view;
  s->args.temperature = s->temperature->view;
  s->args.top_p = s->top_p->view;
  s->args.seeds = s->seeds->view;
  s->args.positions = s->positions->view;
  s->args.out = s->out->view;
  test_tensor_allow(s->out, &s->out->view);
}

static int32_t token_at(const sample* s, int64_t row) {
  return *(int32_t*)test_view_at(&s->out->view, row);
}

typedef struct ranked {
  double weight;
  int32_t token;
} ranked;

static int by_rank(const void* a_, const void* b_) {
  const ranked* a = a_;
  const ranked* b = b_;
  if (a->weight != b->weight) return a->weight > b->weight ? -1 : 1;
  return (a->token > b->token) - (a->token < b->token);
}

static int by_token(const void* a_, const void* b_) {
  const ranked* a = a_;
  const ranked* b = b_;
  return (a->token > b->token) - (a->token < b->token);
}

/* The contract by sorting all probabilities. */
static int32_t draw(const float* logits, int32_t vocab, double temperature, double top_p, double u) {
  ranked* tokens = malloc((size_t)vocab * sizeof *tokens);
  double top = -INFINITY;
  double total = 0.0;
  for (int32_t i = 0; i < vocab; i++) top = fmax(top, (double)logits[i]);
  for (int32_t i = 0; i < vocab; i++) {
    tokens[i].token = i;
    tokens[i].weight = isnan(logits[i]) ? 0.0 : exp(((double)logits[i] - top) / temperature);
    total += tokens[i].weight;
  }
  qsort(tokens, (size_t)vocab, sizeof *tokens, by_rank);
  int32_t kept = 0;
  double mass = 0.0;
  while (kept < vocab && (kept == 0 || mass < top_p * total)) mass += tokens[kept++].weight;
  qsort(tokens, (size_t)kept, sizeof *tokens, by_token);
  double sum = 0.0;
  int32_t result = -1;
  for (int32_t i = 0; i < kept && result < 0; i++) {
    sum += tokens[i].weight;
    if (sum > u * mass) result = tokens[i].token;
  }
  free(tokens);
  return result;
}

static const struct {
  int64_t l, v;
  float temperature, top_p;
} cases[] = {
    {1, 1, 1.0f, 1.0f},      {3, 2, 0.7f, 0.9f},      {17, 129, 1.0f, 1.0f},  {64, 1000, 0.6f, 0.95f},
    {65, 7, 2.5f, 0.5f},     {5, 129280, 1.0f, 0.9f}, {129, 40, 0.1f, 0.99f}, {37, 300, 1e-3f, 0.3f},
    {40, 64, 100.0f, 0.01f}, {257, 33, 1.3f, 0.8f},
};

Test(sample, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    sample s;
    open_sample(&s, cases[i].l, cases[i].v, cases[i].temperature, cases[i].top_p);
    cr_assert_eq(TEST_RUN(&s.rig, sample, &s.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t l = 0; l < cases[i].l; l++) {
      int32_t expected = draw(test_view_at(&s.logits->view, l * cases[i].v), (int32_t)cases[i].v,
                              (double)cases[i].temperature, (double)cases[i].top_p, tdm_sample_uniform(1000 + l, 5));
      cr_expect_eq(token_at(&s, l), expected, "%s: row %lld gives %d, expected %d", s.rig.label, (long long)l,
                   token_at(&s, l), expected);
    }
    cr_expect_eq(test_rig_run_direct(&s.rig, &tdm_op_sample, &s.args), TDM_OK);
    test_rig_close(&s.rig);
  }
}

/* Frequencies over positions against the probabilities, and against those of the kept tokens with top_p. */
Test(sample, frequencies) {
  static const float logits[6] = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 2.0f};
  for (int cut = 0; cut < 2; cut++) {
    /* Weights at temperature 2, and those left by top_p 0.7: tokens 3 and 5 have 0.55 of the mass, 1 makes it 0.72. */
    double weights[6];
    double total = 0.0;
    for (int i = 0; i < 6; i++) {
      weights[i] = exp((double)logits[i] / 2.0);
      if (cut && (i == 0 || i == 2 || i == 4)) weights[i] = 0.0;
      total += weights[i];
    }
    enum { ROWS = 1000, ROUNDS = 30 };
    sample s;
    open_sample(&s, ROWS, 6, 2.0f, cut ? 0.7f : 1.0f);
    int64_t counts[6] = {0};
    for (int64_t i = 0; i < ROWS * 6; i++) *(float*)test_view_at(&s.logits->view, i) = logits[i % 6];
    for (int32_t round = 0; round < ROUNDS; round++) {
      for (int64_t l = 0; l < ROWS; l++) *(int32_t*)test_view_at(&s.positions->view, l) = round;
      cr_assert_eq(TEST_RUN(&s.rig, sample, &s.args), TDM_OK, "%s", tdm_last_error()->message);
      for (int64_t l = 0; l < ROWS; l++) counts[token_at(&s, l)]++;
    }
    double chi_square = 0.0;
    for (int i = 0; i < 6; i++) {
      double expected = weights[i] / total * ROWS * ROUNDS;
      if (expected == 0.0) cr_expect_eq(counts[i], 0, "token %d is outside of top_p", i);
      if (expected > 0.0) chi_square += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
    }
    cr_expect_lt(chi_square, 20.5, "%g: one in a thousand at five degrees of freedom", chi_square);
    test_rig_close(&s.rig);
  }
}

static const struct {
  const char* name;
  float logits[5];
  float temperature, top_p;
  unsigned allowed; /* bit i: token i may come */
} edges[] = {
    {"temperature 0 is argmax", {1.0f, 5.0f, 5.0f, 4.9f, 0.0f}, 0.0f, 1.0f, 1u << 1},
    {"temperature 0 and NaN", {NAN, 5.0f, 6.0f, NAN, 0.0f}, 0.0f, 0.5f, 1u << 2},
    {"a small top_p leaves one", {1.0f, 1.2f, 1.1f, 1.0f, 1.2f}, 1.0f, 0.01f, 1u << 1},
    {"of equals the lower index is kept", {2.0f, 2.0f, 2.0f, 2.0f, 2.0f}, 1.0f, 0.39f, 3u},
    {"a smallest temperature", {1.0f, 1.5f, 1.4f, 1.0f, 1.5f}, 1e-45f, 1.0f, 1u << 1 | 1u << 4},
    {"NaN is never drawn", {NAN, 0.0f, NAN, 0.0f, NAN}, 1.0f, 1.0f, 1u << 1 | 1u << 3},
    {"minus infinity is never drawn",
     {-INFINITY, 0.0f, 0.0f, -INFINITY, 0.0f},
     10.0f,
     1.0f,
     1u << 1 | 1u << 2 | 1u << 4},
    {"infinities share", {INFINITY, 3e38f, INFINITY, 0.0f, -INFINITY}, 1.0f, 1.0f, 1u | 1u << 2},
    {"nothing but NaN", {NAN, NAN, NAN, NAN, NAN}, 1.0f, 0.9f, 1u},
    {"nothing but minus infinity", {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}, 1.0f, 1.0f, 31u},
    {"a distance beyond f32", {3e38f, -3e38f, 3e38f, 0.0f, 3e38f}, 1.0f, 1.0f, 1u | 1u << 2 | 1u << 4},
};

Test(sample, edges) {
  for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
    sample s;
    unsigned seen = 0;
    open_sample(&s, 400, 5, edges[i].temperature, edges[i].top_p);
    for (int64_t j = 0; j < 400 * 5; j++) *(float*)test_view_at(&s.logits->view, j) = edges[i].logits[j % 5];
    cr_assert_eq(TEST_RUN(&s.rig, sample, &s.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t l = 0; l < 400; l++) seen |= 1u << token_at(&s, l);
    cr_expect_eq(seen, edges[i].allowed, "%s: tokens 0x%x, expected 0x%x", edges[i].name, seen, edges[i].allowed);
    test_rig_close(&s.rig);
  }
}

Test(sample, a_row_does_not_depend_on_the_batch) {
  sample s;
  open_sample(&s, 40, 100, 1.0f, 0.9f);
  int32_t tokens[40];
  cr_assert_eq(TEST_RUN(&s.rig, sample, &s.args), TDM_OK, "%s", tdm_last_error()->message);
  for (int64_t l = 0; l < 40; l++) tokens[l] = token_at(&s, l);
  /* The same row in the first place of a batch of one live row; rows are moved there, as slices would be misaligned. */
  tdm_sample_args args = s.args;
  test_tensor* n_rows = test_rig_count(&s.rig, "n_rows", 1);
  args.n_rows = n_rows->view;
  for (int64_t l = 1; l < 40; l++) {
    for (int64_t i = 0; i < 100; i++) {
      *(float*)test_view_at(&s.logits->view, i) = *(float*)test_view_at(&s.logits->view, l * 100 + i);
    }
    *(int64_t*)test_view_at(&s.seeds->view, 0) = 1000 + l;
    cr_assert_eq(TEST_RUN(&s.rig, sample, &args), TDM_OK, "%s", tdm_last_error()->message);
    cr_expect_eq(token_at(&s, 0), tokens[l], "row %lld", (long long)l);
    cr_expect_eq(token_at(&s, 39), tokens[39], "a dead row was written");
  }
  test_rig_close(&s.rig);
}

static const struct {
  const char* name;
  float temperature, top_p;
  int32_t position;
  const char* words;
} bad_rows[] = {
    {"a negative temperature", -0.5f, 1.0f, 0, "sample|temperature[2]|-0.5"},
    {"a NaN temperature", NAN, 1.0f, 0, "sample|temperature[2]|nan"},
    {"an infinite temperature", INFINITY, 1.0f, 0, "sample|temperature[2]|inf"},
    {"top_p 0", 1.0f, 0.0f, 0, "sample|top_p[2]|0"},
    {"top_p above 1", 1.0f, 1.0001f, 0, "sample|top_p[2]|1.0001"},
    {"a NaN top_p", 0.0f, NAN, 0, "sample|top_p[2]|nan"},
    {"a negative position", 1.0f, 1.0f, -3, "sample|positions[2]|-3"},
};

Test(sample, bad_rows_fail_the_step) {
  for (size_t i = 0; i < sizeof bad_rows / sizeof bad_rows[0]; i++) {
    sample s;
    open_sample(&s, 4, 10, 1.0f, 1.0f);
    *(float*)test_view_at(&s.temperature->view, 2) = bad_rows[i].temperature;
    *(float*)test_view_at(&s.top_p->view, 2) = bad_rows[i].top_p;
    *(int32_t*)test_view_at(&s.positions->view, 2) = bad_rows[i].position;
    test_expect_failure(bad_rows[i].name, TEST_RUN(&s.rig, sample, &s.args), TDM_INVALID_ARGUMENT, bad_rows[i].words);
    /* A dead row may hold anything. */
    s.args.n_rows = test_rig_count(&s.rig, "n_rows", 2)->view;
    cr_expect_eq(TEST_RUN(&s.rig, sample, &s.args), TDM_OK, "%s: %s", bad_rows[i].name, tdm_last_error()->message);
    test_rig_close(&s.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_sample_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_sample_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_sample_args, view)

/* Of a call with logits [5, 64]. */
static const test_refusal refusals[] = {
    {"logits is bf16", "logits is bf16", {SET(logits.dtype, TDM_BF16)}},
    {"logits has rank 1", "logits has rank 1", {SET(logits.rank, 1)}},
    {"logits's rows overlap", "logits has stride 63", {SET(logits.stride[0], 63)}},
    {"temperature has 4 elements", "temperature is [4], not [5]", {SET(temperature.shape[0], 4)}},
    {"temperature is absent", "temperature", {ABSENT(temperature)}},
    {"top_p is f64", "top_p is f64", {SET(top_p.dtype, TDM_F64), SET(top_p.shape[0], 2)}},
    {"top_p is absent", "top_p", {ABSENT(top_p)}},
    {"seeds is i32", "seeds is i32, not i64", {SET(seeds.dtype, TDM_I32)}},
    {"seeds has rank 2", "seeds has rank 2", {SET(seeds.rank, 2), SET(seeds.shape[1], 1), SET(seeds.stride[1], 1)}},
    {"positions is i64", "positions is i64", {SET(positions.dtype, TDM_I64), SET(positions.shape[0], 2)}},
    {"positions starts at byte 260", "positions starts at byte 260", {SET(positions.offset_bytes, 260)}},
    {"out is f32", "out is f32, not i32", {SET(out.dtype, TDM_F32)}},
    {"out has 6 elements", "out is [4], not [5]", {SET(out.shape[0], 4)}},
    {"out is positions", "out|overlaps positions", {COPY(out, positions)}},
    {"n_rows is f32", "n_rows is f32", {COPY(n_rows, top_p), SET(n_rows.shape[0], 1)}},
};

Test(sample, refusals) {
  sample s;
  open_sample(&s, 5, 64, 1.0f, 1.0f);
  test_rig_refusals(&s.rig, &tdm_op_sample, &s.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&s.rig);
}
