#include <criterion/criterion.h>
#include <math.h>

#include "kernels/common/convert.h"
#include "kernels/ops.h"
#include "tests/support/rig.h"

typedef struct embedding_case {
  int64_t m, vocab, hidden;
  int64_t live; /* -1: no count */
  tdm_dtype table, out;
  int64_t table_spare, out_spare;
} embedding_case;

static const embedding_case cases[] = {
    {1, 1, 1, -1, TDM_BF16, TDM_F32, 0, 0},         {2, 7, 384, -1, TDM_BF16, TDM_BF16, 8, 0},
    {3, 100, 130, 2, TDM_F32, TDM_F32, 0, 6},       {17, 512, 64, 0, TDM_BF16, TDM_BF16, 0, 0},
    {37, 1000, 576, 33, TDM_F32, TDM_BF16, 0, 24},  {65, 11, 129, -1, TDM_BF16, TDM_F32, 3, 3},
    {129, 300, 128, 128, TDM_BF16, TDM_BF16, 0, 0}, {257, 2, 40, 257, TDM_F32, TDM_F32, 0, 0},
};

typedef struct embedding {
  test_rig rig;
  test_tensor *ids, *table, *out;
  tdm_embedding_args args;
} embedding;

static void open_embedding(embedding* e, const embedding_case* c) {
  test_rig* rig = &e->rig;
  test_rig_open(rig);
  test_rig_label(rig, "embedding m %lld vocab %lld hidden %lld live %lld", (long long)c->m, (long long)c->vocab,
                 (long long)c->hidden, (long long)c->live);
  e->ids = test_rig_tensor(rig, "ids", TDM_I32, 1, &c->m);
  e->table = test_rig_strided(rig, "table", c->table, 2, (int64_t[]){c->vocab, c->hidden},
                              (int64_t[]){c->hidden + c->table_spare, 1});
  e->out =
      test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->m, c->hidden}, (int64_t[]){c->hidden + c->out_spare, 1});
  test_view_set_normal(&e->table->view, &rig->random, 1.0f);
  int64_t live = c->live < 0 ? c->m : c->live;
  for (int64_t m = 0; m < live; m++) { /* dead ids stay -1 */
    *(int32_t*)test_view_at(&e->ids->view, m) = (int32_t)test_random_below(&rig->random, c->vocab);
  }
  if (live > 0) {
    tdm_view written = tdm_view_slice(e->out->view, 0, 0, live);
    test_tensor_allow(e->out, &written);
    *(int32_t*)test_view_at(&e->ids->view, 0) = (int32_t)(c->vocab - 1);
  }
  e->args = (tdm_embedding_args){.size = sizeof e->args};
  e->args.ids = e->ids->view;
  e->args.table = e->table->view;
  e->args.out = e->out->view;
  if (c->live >= 0) e->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

Test(embedding, cases) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const embedding_case* c = &cases[i];
    embedding e;
    open_embedding(&e, c);
    cr_assert_eq(TEST_RUN(&e.rig, embedding, &e.args), TDM_OK, "%s", tdm_last_error()->message);
    for (int64_t j = 0; j < (c->live < 0 ? c->m : c->live) * c->hidden; j++) {
      int32_t id = *(int32_t*)test_view_at(&e.ids->view, j / c->hidden);
      float expected = tdm_load_f32(test_view_at(&e.table->view, id * c->hidden + j % c->hidden), c->table, 0);
      if (c->out == TDM_BF16) expected = tdm_bf16_to_f32(tdm_f32_to_bf16(expected));
      float got = tdm_load_f32(test_view_at(&e.out->view, j), c->out, 0);
      cr_assert_eq(got, expected, "%s: element %lld is %g, expected %g", e.rig.label, (long long)j, (double)got,
                   (double)expected);
    }
    test_rig_close(&e.rig);
  }
}

Test(embedding, ids_outside_the_table_fail_the_step) {
  static const struct {
    int32_t id;
    const char* words;
  } bad[] = {{-1, "embedding|ids[2]|-1|7"}, {7, "embedding|ids[2]|7"}, {INT32_MAX, "embedding|ids[2]|2147483647|7"}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    const embedding_case c = {4, 7, 16, -1, TDM_BF16, TDM_BF16, 0, 0};
    embedding e;
    open_embedding(&e, &c);
    *(int32_t*)test_view_at(&e.ids->view, 2) = bad[i].id;
    test_expect_failure("id", TEST_RUN(&e.rig, embedding, &e.args), TDM_INVALID_ARGUMENT, bad[i].words);
    test_rig_close(&e.rig);
  }
}

#define SET(member, value) TEST_SET(tdm_embedding_args, member, value)
#define COPY(member, from) TEST_COPY(tdm_embedding_args, member, from)
#define ABSENT(view)       TEST_ABSENT(tdm_embedding_args, view)

/* Of a call with ids [5], table [9, 64] bf16 and out [5, 64] bf16. */
static const test_refusal refusals[] = {
    {"ids is i64", "ids is i64, not i32", {SET(ids.dtype, TDM_I64), SET(ids.shape[0], 2)}},
    {"ids has rank 2", "ids has rank 2", {SET(ids.rank, 2), SET(ids.shape[1], 1), SET(ids.stride[1], 1)}},
    {"ids is strided", "ids has last stride 2", {SET(ids.stride[0], 2)}},
    {"ids starts at byte 260", "ids starts at byte 260", {SET(ids.offset_bytes, 260), SET(ids.shape[0], 4)}},
    {"ids is absent", "ids", {ABSENT(ids)}},
    {"table is e4m3", "table is e4m3", {SET(table.dtype, TDM_E4M3)}},
    {"table has rank 1", "table has rank 1", {SET(table.rank, 1)}},
    {"out has 4 rows", "out is [4, 64], not [5, 64]", {SET(out.shape[0], 4)}},
    {"out has 32 columns", "out is [5, 32], not [5, 64]", {SET(out.shape[1], 32)}},
    {"out is i32", "out is i32", {SET(out.dtype, TDM_I32), SET(out.shape[0], 2)}},
    {"out's rows overlap", "out has stride 60", {SET(out.stride[0], 60)}},
    {"out overlaps table", "out|overlaps table", {COPY(out.buffer, table.buffer)}},
    {"n_tokens is i64",
     "n_tokens is i64",
     {COPY(n_tokens, ids), SET(n_tokens.dtype, TDM_I64), SET(n_tokens.shape[0], 1)}},
};

Test(embedding, refusals) {
  const embedding_case c = {5, 9, 64, -1, TDM_BF16, TDM_BF16, 0, 0};
  embedding e;
  open_embedding(&e, &c);
  test_rig_refusals(&e.rig, &tdm_op_embedding, &e.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&e.rig);
}

/* The table is not read as a whole. */
Test(embedding, plan) {
  const embedding_case c = {5, 9, 64, -1, TDM_BF16, TDM_F32, 0, 0};
  embedding e;
  open_embedding(&e, &c);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  tdm_op_embedding.plan(&e.args, 0, &plan);
  cr_expect_eq(plan.bytes, 5.0 * 4 + 5.0 * 64 * 2 + 5.0 * 64 * 4);
  test_rig_close(&e.rig);
}
