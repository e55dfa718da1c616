#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/gemm_bf16/gemm_bf16_short_sm90.h"
#include "kernels/mla_absorb/mla_absorb.h"
#include "kernels/mla_absorb/mla_absorb_sm90.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

enum { NOPE = 128, LATENT = 512, HEAD_Q = 192, CACHED = 576, POSITIONS = 97 };

typedef struct absorb_case {
  int64_t m, h, live; /* live -1: no count */
  tdm_dtype in, out;
  int64_t gap; /* elements between tokens */
  tdm_rope_style style;
} absorb_case;

static const absorb_case cases[] = {
    {1, 1, -1, TDM_BF16, TDM_BF16, 0, TDM_ROPE_DEINTERLEAVE}, {2, 3, -1, TDM_F32, TDM_F32, 8, TDM_ROPE_INTERLEAVED},
    {3, 16, 2, TDM_BF16, TDM_BF16, 0, TDM_ROPE_DEINTERLEAVE}, {7, 2, 0, TDM_BF16, TDM_F32, 0, TDM_ROPE_HALVES},
    {37, 2, 33, TDM_BF16, TDM_BF16, 16, TDM_ROPE_HALVES},     {65, 1, 65, TDM_F32, TDM_BF16, 0, TDM_ROPE_DEINTERLEAVE},
};

typedef struct bench {
  test_rig rig;
  test_tensor *q, *positions, *fused, *apart;
  tdm_mla_absorb_args args;
} bench;

/* w is the key half of kv_b: heads of 256 rows. */
static void open_bench(bench* b, const absorb_case* c) {
  test_rig* rig = &b->rig;
  const int64_t live = c->live < 0 ? c->m : c->live, h = c->h;
  test_rig_open(rig);
  test_rig_label(rig, "%lld rows, %lld heads, live %lld, %s to %s, style %d", (long long)c->m, (long long)h,
                 (long long)c->live, tdm_dtype_name(c->in), tdm_dtype_name(c->out), (int)c->style);
  const int64_t q[] = {c->m, h, HEAD_Q}, q_stride[] = {h * HEAD_Q + c->gap, HEAD_Q, 1};
  const int64_t out[] = {c->m, h, CACHED}, out_stride[] = {h * CACHED + c->gap, CACHED, 1};
  b->q = test_rig_strided(rig, "q", c->in, 3, q, q_stride);
  test_tensor* kv_b = test_rig_tensor(rig, "w", c->in, 3, (int64_t[]){h, 256, LATENT});
  test_tensor* table = test_rig_tensor(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  b->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, &c->m);
  b->fused = test_rig_strided(rig, "out", c->out, 3, out, out_stride);
  b->apart = test_rig_strided(rig, "apart", c->out, 3, out, out_stride);
  if (live > 0) {
    const tdm_view read = tdm_view_slice(b->q->view, 0, 0, live);
    test_view_set_normal(&read, &rig->random, 1.0f);
    const tdm_view fused = tdm_view_slice(b->fused->view, 0, 0, live),
                   apart = tdm_view_slice(b->apart->view, 0, 0, live);
    test_tensor_allow(b->fused, &fused);
    test_tensor_allow(b->apart, &apart);
  }
  test_view_set_normal(&kv_b->view, &rig->random, 0.1f);
  oracle_fill_uniform(&table->view, &rig->random, -1.0f, 1.0f);
  for (int64_t i = 0; i < c->m; i++)
    *(int32_t*)test_view_at(&b->positions->view, i) = i < live ? (int32_t)((i * 29 + 96) % POSITIONS) : -7;
  b->args = (tdm_mla_absorb_args){.size = sizeof b->args,
                                  .q = b->q->view,
                                  .w = tdm_view_slice(kv_b->view, 1, 0, NOPE),
                                  .positions = b->positions->view,
                                  .cos_sin = table->view,
                                  .out = b->fused->view,
                                  .style = c->style};
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

Test(mla_absorb, has_the_bits_of_gemm_bf16_and_rope) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    bench b;
    open_bench(&b, &cases[i]);
    const tdm_gemm_bf16_args gemm = {.size = sizeof gemm,
                                     .n_tokens = b.args.n_tokens,
                                     .a = tdm_view_transpose(tdm_view_slice(b.q->view, 2, 0, NOPE), 0, 1),
                                     .w = tdm_view_transpose(b.args.w, 1, 2),
                                     .out = tdm_view_transpose(tdm_view_slice(b.apart->view, 2, 0, LATENT), 0, 1)};
    const tdm_rope_args rope = {.size = sizeof rope,
                                .n_tokens = b.args.n_tokens,
                                .x = tdm_view_slice(b.q->view, 2, NOPE, 64),
                                .positions = b.args.positions,
                                .cos_sin = b.args.cos_sin,
                                .out = tdm_view_slice(b.apart->view, 2, LATENT, 64),
                                .style = b.args.style};
    cr_assert_eq(TEST_RUN(&b.rig, mla_absorb, &b.args), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&b.rig, gemm_bf16, &gemm), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&b.rig, rope, &rope), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    test_expect_bits(b.rig.label, b.fused->memory, b.apart->memory, (int64_t)b.fused->bytes);
    cr_expect_eq(test_rig_run_direct(&b.rig, &tdm_op_mla_absorb, &b.args), TDM_OK);
    test_rig_close(&b.rig);
  }
}

Test(mla_absorb, nan_stays_in_its_row) {
  const absorb_case c = {5, 2, -1, TDM_BF16, TDM_BF16, 0, TDM_ROPE_HALVES};
  bench b;
  open_bench(&b, &c);
  oracle_set(&b.q->view, 2 * 2 * HEAD_Q + 7, NAN);         /* row 2, head 0: all of its latent */
  oracle_set(&b.q->view, 3 * 2 * HEAD_Q + NOPE, INFINITY); /* row 3, head 0: one pair */
  cr_assert_eq(TEST_RUN(&b.rig, mla_absorb, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  float* out = test_view_values(&b.fused->view);
  for (int64_t i = 0; i < 5 * 2 * CACHED; i++) {
    const int64_t row = i / CACHED, column = i % CACHED;
    const bool bad = (row == 4 && column < LATENT) || (row == 6 && (column == LATENT || column == LATENT + 32));
    cr_expect_eq(!isfinite(out[i]), bad, "row %lld column %lld", (long long)row, (long long)column);
  }
  free(out);
  test_rig_close(&b.rig);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

#define SET(member, value)  TEST_SET(tdm_mla_absorb_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_absorb_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_absorb_args, member)

/* Of a call with 5 tokens of 4 heads. */
static const test_refusal refusals[] = {
    {"q in e4m3", "q is e4m3", {SET(q.dtype, TDM_E4M3)}},
    {"q of rank 2", "q has rank 2, not 3", {SET(q.rank, 2)}},
    {"heads of 128", "q is [5, 4, 128], not", {SET(q.shape[2], 128)}},
    {"q misaligned", "q starts at byte", {SET(q.offset_bytes, 264), SET(q.shape[0], 4)}},
    {"values of q apart", "q has last stride 2, not 1", {SET(q.stride[2], 2), SET(q.shape[0], 2)}},
    {"three heads of w", "w is [3, 128, 512], not [4, 128, 512]", {SET(w.shape[0], 3)}},
    {"values of w apart", "w has last stride 2, not 1", {SET(w.stride[2], 2), SET(w.stride[1], 512)}},
    {"no w", "w is absent", {ABSENT(w)}},
    {"four rows of out", "out is [4, 4, 576], not [5, 4, 576]", {SET(out.shape[0], 4)}},
    {"out of 512", "out is [5, 4, 512], not [5, 4, 576]", {SET(out.shape[2], 512)}},
    {"heads of out overlap", "out has stride 512", {SET(out.stride[1], 512)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"positions in f32", "positions|f32", {SET(positions.dtype, TDM_F32)}},
    {"table of 32", "cos_sin|32", {SET(cos_sin.shape[1], 32)}},
    {"style left out", "style|0", {SET(style, 0)}},
    {"out in q", "out|overlaps|q", {COPY(q.buffer, out.buffer)}},
    {"a count of five", "n_tokens", {COPY(n_tokens, positions)}},
};

Test(mla_absorb, refuses_bad_arguments) {
  const absorb_case c = {5, 4, -1, TDM_BF16, TDM_BF16, 0, TDM_ROPE_DEINTERLEAVE};
  bench b;
  open_bench(&b, &c);
  test_rig_refusals(&b.rig, &tdm_op_mla_absorb, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&b.rig);
}

Test(mla_absorb, refuses_bad_data_and_writes_nothing) {
  static const struct {
    int64_t row;
    int32_t position, count;
    const char* words;
  } bad_data[] = {
      {3, POSITIONS, 5, "mla_absorb|position 97|row 3|[0, 97)"},
      {4, -1, 5, "mla_absorb|position -1|row 4"},
      {0, 0, 6, "mla_absorb|6|5"},
  };
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    const absorb_case c = {5, 4, 0, TDM_F32, TDM_F32, 0, TDM_ROPE_DEINTERLEAVE};
    bench b;
    open_bench(&b, &c);
    test_rig_label(&b.rig, "bad data %zu", i);
    for (int64_t m = 0; m < 5; m++)
      *(int32_t*)test_view_at(&b.positions->view, m) = m == bad_data[i].row ? bad_data[i].position : 0;
    b.args.n_tokens = test_rig_count(&b.rig, "n_tokens", bad_data[i].count)->view;
    test_expect_failure(b.rig.label, TEST_RUN(&b.rig, mla_absorb, &b.args), TDM_INVALID_ARGUMENT, bad_data[i].words);
    test_rig_close(&b.rig);
  }
}

/* The GEMM's plan, whatever the lane; f32 has no kernel. */
Test(mla_absorb, plan) {
  static const int32_t sms[] = {5, 132};
  static const struct {
    int64_t m;
    const char* kernel[2]; /* on 5 SMs, on 132 */
  } kernels[] = {{1, {"tdm_mla_absorb_short_n256t8_sm90", "tdm_mla_absorb_short_n128t8_sm90"}},
                 {64, {"tdm_mla_absorb_short_n256t64_sm90", "tdm_mla_absorb_short_n128t64_sm90"}},
                 {129, {"tdm_mla_absorb_n128t128_sm90", "tdm_mla_absorb_n128t128_sm90"}}};
  for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
    const absorb_case c = {kernels[i].m, 16, 0, TDM_BF16, TDM_BF16, 0, TDM_ROPE_DEINTERLEAVE};
    bench b;
    open_bench(&b, &c);
    for (size_t j = 0; j < sizeof sms / sizeof sms[0]; j++) {
      tdm_gemm_bf16_sm90_plan fused, gemm;
      tdm_mla_absorb_sm90_plan(&b.args, sms[j], &fused);
      const tdm_gemm_bf16_args product = tdm_mla_absorb_gemm(&b.args);
      const bool short_k = tdm_gemm_bf16_short_sm90_make_plan(&product, sms[j], &gemm);
      if (!short_k) tdm_gemm_bf16_sm90_make_plan(16, c.m, LATENT, NOPE, true, sms[j], &gemm);
      cr_expect_str_eq(fused.launch.kernel, kernels[i].kernel[j]);
      cr_expect_eq(fused.short_k, short_k);
      cr_expect_eq(fused.launch.grid, gemm.launch.grid);
      cr_expect_eq(fused.launch.shared_bytes, gemm.launch.shared_bytes + (short_k ? 0 : 1024));
      cr_expect_eq(fused.segments, gemm.segments);
    }
    test_rig_close(&b.rig);
  }
  const absorb_case c = {5, 4, -1, TDM_F32, TDM_F32, 0, TDM_ROPE_DEINTERLEAVE};
  bench b;
  open_bench(&b, &c);
  tdm_plan plan = {.splits = 1};
  tdm_encoded_step* step = calloc(1, sizeof *step);
  const tdm_encode_env env = {.sms = 132};
  test_expect_failure("f32", tdm_op_mla_absorb.encode(&b.args, &plan, &env, step), TDM_UNSUPPORTED,
                      "mla_absorb|f32 times f32 needs the host device");
  free(step);
  test_rig_close(&b.rig);
}
