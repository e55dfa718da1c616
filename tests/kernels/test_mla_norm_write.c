#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/mla_norm_write/mla_norm_write_params.h"
#include "kernels/ops.h"
#include "tests/kernels/oracle.h"
#include "tests/support/compare.h"

enum { LATENT = 512, CACHED = 576, POSITIONS = 150 };

typedef struct norm_case {
  int64_t m, d, live; /* live -1: no count */
  tdm_dtype in, weight, out, cache;
  bool plain, quant, pow2, with_kv;
  tdm_rope_style style;
  float eps;
} norm_case;

static const norm_case cases[] = {
    {1, 1536, -1, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, false, true, false, false, TDM_ROPE_DEINTERLEAVE, 0.0f},
    {2, 384, -1, TDM_F32, TDM_F32, TDM_F32, TDM_F32, true, false, false, true, TDM_ROPE_INTERLEAVED, 0.0f},
    {3, 100, 2, TDM_F32, TDM_BF16, TDM_BF16, TDM_BF16, true, false, false, true, TDM_ROPE_HALVES, 1e-2f},
    {7, 128, 0, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, true, true, false, true, TDM_ROPE_DEINTERLEAVE, 0.0f},
    {17, 256, 16, TDM_BF16, TDM_F32, TDM_F32, TDM_BF16, true, true, true, false, TDM_ROPE_DEINTERLEAVE, 0.0f},
    {37, 1536, 33, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, false, true, true, true, TDM_ROPE_DEINTERLEAVE, 0.0f},
    {65, 513, 65, TDM_BF16, TDM_BF16, TDM_BF16, TDM_F32, true, false, false, true, TDM_ROPE_INTERLEAVED, 10.0f},
    {129, 384, -1, TDM_BF16, TDM_BF16, TDM_BF16, TDM_BF16, false, true, false, true, TDM_ROPE_HALVES, 0.0f},
};

/* What an op writes; the two ops and the fused one have such a set each. */
typedef struct outputs {
  test_tensor *out, *out_q, *out_scale, *cache, *out_kv; /* NULL: absent */
} outputs;

typedef struct bench {
  test_rig rig;
  test_tensor *qkv, *positions, *slots;
  outputs fused, apart;
  tdm_mla_norm_write_args args;
} bench;

static int32_t* int_at(const test_tensor* tensor, int64_t i) {
  return test_view_at(&tensor->view, i);
}

static void allow_rows(test_tensor* tensor, int64_t live) {
  if (live == 0) return;
  const tdm_view part = tdm_view_slice(tensor->view, 0, 0, live);
  test_tensor_allow(tensor, &part);
}

static outputs make_outputs(bench* b, const norm_case* c, int64_t live) {
  test_rig* rig = &b->rig;
  const int64_t pages = (c->m + 63) / 64 + 2;
  outputs o = {0};
  if (c->plain) {
    o.out = test_rig_strided(rig, "out", c->out, 2, (int64_t[]){c->m, c->d}, (int64_t[]){c->d + 8, 1});
    allow_rows(o.out, live);
  }
  if (c->quant) {
    o.out_q = test_rig_strided(rig, "out_q", TDM_E4M3, 2, (int64_t[]){c->m, c->d}, (int64_t[]){c->d + 16, 1});
    o.out_scale = test_rig_scales(rig, "out_scale", c->m, c->d, 4);
    allow_rows(o.out_q, live);
    test_allow_scales(o.out_scale, live);
  }
  o.cache =
      test_rig_strided(rig, "cache", c->cache, 3, (int64_t[]){pages, 64, CACHED}, (int64_t[]){64 * 584 + 32, 584, 1});
  for (int64_t i = 0; i < live; i++) {
    const int32_t slot = *int_at(b->slots, i);
    if (slot < 0) continue;
    const tdm_view row = tdm_view_slice(tdm_view_slice(o.cache->view, 0, slot / 64, 1), 1, slot % 64, 1);
    test_tensor_allow(o.cache, &row);
  }
  if (c->with_kv) {
    o.out_kv = test_rig_strided(rig, "out_kv", c->cache, 2, (int64_t[]){c->m, CACHED}, (int64_t[]){CACHED + 8, 1});
    allow_rows(o.out_kv, live);
  }
  return o;
}

static tdm_view view_of(const test_tensor* tensor) {
  return tensor ? tensor->view : (tdm_view){0};
}

/* Queries and latent are columns of one tensor. Slots are a permutation of the cache's, but for one that is absent. */
static void open_bench(bench* b, const norm_case* c) {
  test_rig* rig = &b->rig;
  const int64_t live = c->live < 0 ? c->m : c->live, pages = (c->m + 63) / 64 + 2, latent = (c->d + 7) / 8 * 8;
  test_rig_open(rig);
  test_rig_label(rig, "%lld rows of %lld, live %lld, %s to %s, style %d", (long long)c->m, (long long)c->d,
                 (long long)c->live, tdm_dtype_name(c->in), tdm_dtype_name(c->cache), (int)c->style);
  b->qkv = test_rig_tensor(rig, "qkv", c->in, 2, (int64_t[]){c->m, latent + CACHED});
  test_tensor* q_weight = test_rig_tensor(rig, "q_weight", c->weight, 1, &c->d);
  test_tensor* kv_weight = test_rig_tensor(rig, "kv_weight", c->weight, 1, (int64_t[]){LATENT});
  test_tensor* table = test_rig_tensor(rig, "cos_sin", TDM_F32, 2, (int64_t[]){POSITIONS, 64});
  b->positions = test_rig_tensor(rig, "positions", TDM_I32, 1, &c->m);
  b->slots = test_rig_tensor(rig, "slots", TDM_I32, 1, &c->m);
  if (live > 0) {
    const tdm_view read = tdm_view_slice(b->qkv->view, 0, 0, live);
    test_view_set_normal(&read, &rig->random, 3.0f);
  }
  test_view_set_normal(&q_weight->view, &rig->random, 1.0f);
  test_view_set_normal(&kv_weight->view, &rig->random, 1.0f);
  oracle_fill_uniform(&table->view, &rig->random, -1.0f, 1.0f);
  for (int64_t i = 0; i < c->m; i++) {
    *int_at(b->positions, i) = (int32_t)((i * 31 + 149) % POSITIONS);
    *int_at(b->slots, i) = i == 1 ? -1 : (int32_t)((i * 37 + 63) % (pages * 64));
  }
  b->fused = make_outputs(b, c, live);
  b->apart = make_outputs(b, c, live);
  b->args = (tdm_mla_norm_write_args){
      .size = sizeof b->args,
      .q = tdm_view_slice(b->qkv->view, 1, 0, c->d),
      .q_weight = q_weight->view,
      .out = view_of(b->fused.out),
      .out_q = view_of(b->fused.out_q),
      .out_scale = view_of(b->fused.out_scale),
      .kv = tdm_view_slice(b->qkv->view, 1, latent, CACHED),
      .kv_weight = kv_weight->view,
      .positions = b->positions->view,
      .cos_sin = table->view,
      .slots = b->slots->view,
      .cache = b->fused.cache->view,
      .out_kv = view_of(b->fused.out_kv),
      .eps = c->eps,
      .pow2_scale = c->pow2,
      .style = c->style,
  };
  if (c->live >= 0) b->args.n_tokens = test_rig_count(rig, "n_tokens", (int32_t)c->live)->view;
}

static void expect_same(const bench* b, const test_tensor* fused, const test_tensor* apart) {
  if (fused) test_expect_bits(b->rig.label, fused->memory, apart->memory, (int64_t)fused->bytes);
}

Test(mla_norm_write, has_the_bits_of_rmsnorm_and_mla_kv_write) {
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    bench b;
    open_bench(&b, &cases[i]);
    const tdm_mla_norm_write_args* args = &b.args;
    const tdm_rmsnorm_args norm = {.size = sizeof norm,
                                   .n_tokens = args->n_tokens,
                                   .x = args->q,
                                   .weight = args->q_weight,
                                   .out = view_of(b.apart.out),
                                   .out_q = view_of(b.apart.out_q),
                                   .out_scale = view_of(b.apart.out_scale),
                                   .eps = args->eps,
                                   .pow2_scale = args->pow2_scale};
    const tdm_mla_kv_write_args write = {.size = sizeof write,
                                         .n_tokens = args->n_tokens,
                                         .kv = args->kv,
                                         .norm_weight = args->kv_weight,
                                         .positions = args->positions,
                                         .cos_sin = args->cos_sin,
                                         .slots = args->slots,
                                         .cache = b.apart.cache->view,
                                         .out = view_of(b.apart.out_kv),
                                         .eps = args->eps,
                                         .style = args->style};
    cr_assert_eq(TEST_RUN(&b.rig, mla_norm_write, args), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&b.rig, rmsnorm, &norm), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    cr_assert_eq(TEST_RUN(&b.rig, mla_kv_write, &write), TDM_OK, "%s: %s", b.rig.label, tdm_last_error()->message);
    expect_same(&b, b.fused.out, b.apart.out);
    expect_same(&b, b.fused.out_q, b.apart.out_q);
    expect_same(&b, b.fused.out_scale, b.apart.out_scale);
    expect_same(&b, b.fused.cache, b.apart.cache);
    expect_same(&b, b.fused.out_kv, b.apart.out_kv);
    cr_expect_eq(test_rig_run_direct(&b.rig, &tdm_op_mla_norm_write, args), TDM_OK);
    test_rig_close(&b.rig);
  }
}

Test(mla_norm_write, nan_stays_in_its_row) {
  const norm_case c = {5, 384, -1, TDM_BF16, TDM_BF16, TDM_F32, TDM_F32, true, false, false, true, TDM_ROPE_HALVES, 0};
  bench b;
  open_bench(&b, &c);
  oracle_set(&b.args.q, 2 * 384 + 7, NAN);
  oracle_set(&b.args.kv, 3 * CACHED + 9, INFINITY);
  cr_assert_eq(TEST_RUN(&b.rig, mla_norm_write, &b.args), TDM_OK, "%s", tdm_last_error()->message);
  float* out = test_view_values(&b.args.out);
  float* out_kv = test_view_values(&b.args.out_kv);
  for (int64_t i = 0; i < 5 * 384; i++) cr_expect_eq(isnan(out[i]), i / 384 == 2, "%lld", (long long)i);
  for (int64_t m = 0; m < 5; m++) cr_expect_eq(isfinite(out_kv[m * CACHED + 9]), m != 3, "row %lld", (long long)m);
  free(out);
  free(out_kv);
  test_rig_close(&b.rig);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static const norm_case good = {
    5, 384, -1, TDM_F32, TDM_F32, TDM_F32, TDM_F32, true, true, false, true, TDM_ROPE_DEINTERLEAVE, 0.0f};

#define SET(member, value)  TEST_SET(tdm_mla_norm_write_args, member, value)
#define COPY(member, other) TEST_COPY(tdm_mla_norm_write_args, member, other)
#define ABSENT(member)      TEST_ABSENT(tdm_mla_norm_write_args, member)

static const test_refusal refusals[] = {
    {"q in e4m3", "q is e4m3", {SET(q.dtype, TDM_E4M3)}},
    {"four rows of q", "out is [5, 384], not [4, 384]", {SET(q.shape[0], 4)}},
    {"short q_weight", "q_weight|383|384", {SET(q_weight.shape[0], 383)}},
    {"no q_weight", "q_weight is absent", {ABSENT(q_weight)}},
    {"narrow out", "out|256|384", {SET(out.shape[1], 256)}},
    {"no outputs", "out and out_q are both absent", {ABSENT(out), ABSENT(out_q), ABSENT(out_scale)}},
    {"out_q in f32", "out_q is f32", {COPY(out_q, out)}},
    {"no scales", "out_scale", {ABSENT(out_scale)}},
    {"scales alone", "out_scale is given but out_q is absent", {ABSENT(out_q)}},
    {"latent of 512", "kv|512|576", {SET(kv.shape[1], 512)}},
    {"four rows of kv", "kv is [4, 576], not [5, 576]", {SET(kv.shape[0], 4)}},
    {"short kv_weight", "kv_weight|500|512", {SET(kv_weight.shape[0], 500)}},
    {"too few positions", "positions|4|5", {SET(positions.shape[0], 4)}},
    {"table of 60", "cos_sin|60", {SET(cos_sin.shape[1], 60)}},
    {"unknown style", "style|9", {SET(style, 9)}},
    {"too few slots", "slots|4|5", {SET(slots.shape[0], 4)}},
    {"pages of 32", "cache|32|64", {SET(cache.shape[1], 32)}},
    {"no cache", "cache|absent", {ABSENT(cache)}},
    {"out_kv in bf16", "out_kv is bf16", {SET(out_kv.dtype, TDM_BF16)}},
    {"negative eps", "eps|-1", {TEST_SET_FLOAT(tdm_mla_norm_write_args, eps, -1.0f)}},
    {"NaN quant_eps", "quant_eps|nan", {TEST_SET_FLOAT(tdm_mla_norm_write_args, quant_eps, NAN)}},
    {"out is q", "out|overlaps|q", {COPY(out, q)}},
    {"out_kv is kv", "out_kv|overlaps|kv", {COPY(out_kv, kv)}},
    {"out in the cache", "overlaps", {COPY(out.buffer, cache.buffer)}},
    {"a count of five", "n_tokens", {COPY(n_tokens, positions)}},
};

Test(mla_norm_write, refuses_bad_arguments) {
  bench b;
  open_bench(&b, &good);
  test_rig_refusals(&b.rig, &tdm_op_mla_norm_write, &b.args, TDM_INVALID_ARGUMENT, refusals,
                    sizeof refusals / sizeof refusals[0]);
  test_rig_close(&b.rig);
}

Test(mla_norm_write, refuses_bad_data_and_writes_nothing) {
  static const struct {
    int64_t row;
    int32_t position, slot, count;
    const char* words;
  } bad_data[] = {
      {4, 0, 192, 5, "mla_norm_write|slot 192|row 4|[0, 192)"},
      {2, 0, -2, 5, "mla_norm_write|slot -2|row 2"},
      {0, POSITIONS, 0, 5, "mla_norm_write|position 150|row 0|[0, 150)"},
      {3, -1, 0, 5, "mla_norm_write|position -1|row 3"},
      {0, 0, 0, 7, "mla_norm_write|7|5"},
  };
  norm_case c = good;
  for (size_t i = 0; i < sizeof bad_data / sizeof bad_data[0]; i++) {
    bench b;
    c.live = 0; /* nothing may be written */
    open_bench(&b, &c);
    test_rig_label(&b.rig, "bad data %zu", i);
    *int_at(b.positions, bad_data[i].row) = bad_data[i].position;
    *int_at(b.slots, bad_data[i].row) = bad_data[i].slot;
    b.args.n_tokens = test_rig_count(&b.rig, "n_tokens", bad_data[i].count)->view;
    test_expect_failure(b.rig.label, TEST_RUN(&b.rig, mla_norm_write, &b.args), TDM_INVALID_ARGUMENT,
                        bad_data[i].words);
    test_rig_close(&b.rig);
  }
}

/* The CTAs of both halves fit on the lane at once where they are many, and no half is without one. */
Test(mla_norm_write, plan) {
  const norm_case c = {129,  1536,  -1,   TDM_BF16, TDM_BF16,        TDM_BF16, TDM_BF16,
                       true, false, true, true,     TDM_ROPE_HALVES, 0.0f};
  bench b;
  open_bench(&b, &c);
  tdm_plan whole = {.variant = "ref", .splits = 1}, norm = {0};
  tdm_op_mla_norm_write.plan(&b.args, 0, &whole);
  const tdm_rmsnorm_args norm_args = {
      .size = sizeof norm_args, .x = b.args.q, .weight = b.args.q_weight, .out = b.args.out};
  tdm_op_rmsnorm.plan(&norm_args, 0, &norm);
  cr_expect_eq(whole.scratch_bytes, norm.scratch_bytes);
  cr_expect_gt(whole.bytes, norm.bytes);
  static const int32_t sms[] = {1, 5, 132};
  for (size_t i = 0; i < sizeof sms / sizeof sms[0]; i++) {
    tdm_encoded_step* step = calloc(1, sizeof *step);
    const tdm_encode_env env = {.sms = sms[i]};
    cr_assert_eq(tdm_op_mla_norm_write.encode(&b.args, &whole, &env, step), TDM_OK);
    const tdm_kernel_launch* launch = &step->launches[0].launch;
    const tdm_mla_norm_write_params* params = (const void*)step->launches[0].params;
    cr_expect_eq(step->n_launches, 1);
    cr_expect_str_eq(launch->kernel, "tdm_mla_norm_write_sm90");
    cr_expect_eq(launch->block, 256);
    cr_expect_leq(launch->grid, (uint32_t)sms[i] * 8);
    cr_expect_geq(params->norm_ctas, 1);
    cr_expect_lt(params->norm_ctas, (int32_t)launch->grid);
    free(step);
  }
  test_rig_close(&b.rig);
}
