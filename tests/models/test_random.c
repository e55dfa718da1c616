/* Models with random weights, and sequences that pretend: what measurements are made with. */

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "golden.h"
#include "tests/support/rig.h"
#include "variant.h"

static tdm_deepseek_v3_config golden_shape(void) {
  golden g;
  tdm_deepseek_v3_config shape;
  golden_open_runtime(&g);
  cr_assert_eq(tdm_deepseek_v3_config_read(g.runtime, GOLDEN_V3, &shape), TDM_OK, "%s", tdm_last_error()->message);
  golden_close(&g);
  return shape;
}

/* Logits of two tokens after `context` pretended ones. */
static void run_random(const tdm_deepseek_v3_config* shape, uint64_t seed, int64_t context, float* logits) {
  golden g;
  golden_open_runtime(&g);
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  cr_assert_eq(tdm_model_create_random(g.runtime, shape, seed, &config, &g.model), TDM_OK, "%s",
               tdm_last_error()->message);
  tdm_sequence* sequence = golden_sequence(&g);
  cr_assert_eq(tdm_sequence_pretend(sequence, context), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(tdm_sequence_length(sequence), context);
  const int32_t tokens[] = {3, 4};
  const tdm_batch_item item = {.sequence = sequence, .tokens = tokens, .n_tokens = 2, .logits = TDM_LOGITS_ALL};
  (void)golden_forward(&g, &item, logits);
  for (int i = 0; i < 2 * GOLDEN_VOCAB; i++) cr_assert(isfinite(logits[i]), "logit %d is %g", i, (double)logits[i]);
  tdm_sequence_destroy(sequence);
  golden_close(&g);
}

Test(random_models, are_a_function_of_the_seed) {
  static float first[2 * GOLDEN_VOCAB], again[2 * GOLDEN_VOCAB], other[2 * GOLDEN_VOCAB];
  const tdm_deepseek_v3_config shape = golden_shape();
  run_random(&shape, 1, 100, first);
  run_random(&shape, 1, 100, again);
  run_random(&shape, 2, 100, other);
  cr_assert_arr_eq(first, again, sizeof first);
  cr_assert_arr_neq(first, other, sizeof first);
  run_random(&shape, 1, 40, other);
  cr_assert_arr_neq(first, other, sizeof first, "the pretended context is attended to");
}

typedef struct text {
  char data[1 << 16];
  size_t bytes;
} text;

static void collect(void* ctx, const char* piece, size_t bytes) {
  text* t = ctx;
  if (bytes > sizeof t->data - 1 - t->bytes) bytes = sizeof t->data - 1 - t->bytes;
  memcpy(t->data + t->bytes, piece, bytes);
  t->bytes += bytes;
}

/* DeepSeek-V3's router: with the norm before it one step for few rows of the path grouped; one step up to 512
 * rows, but for dense, else two. The same bits. */
Test(random_models, route_in_one_step_or_two) {
  static const struct {
    int64_t bucket;
    tdm_moe_path path;
    const char *has, *lacks;
  } cases[] = {
      {2, TDM_MOE_PATH_HITS, "moe_gate", "moe_route"},         {128, TDM_MOE_PATH_HITS, "moe_gate", "router_gemm"},
      {128, TDM_MOE_PATH_DENSE, "moe_route", "moe_gate"},      {520, TDM_MOE_PATH_HITS, "moe_route", "moe_gate"},
      {2, TDM_MOE_PATH_GROUPED, "moe_norm_gate", "moe_route"}, {16, TDM_MOE_PATH_GROUPED, "moe_gate", "moe_route"},
      {520, TDM_MOE_PATH_GROUPED, "moe_route", "gate"}};
  static float logits[7][2 * GOLDEN_VOCAB];
  tdm_deepseek_v3_config shape = golden_shape();
  shape.n_routed_experts = 256;
  shape.n_group = 8;
  shape.topk_group = 4;
  shape.num_experts_per_tok = 8;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    golden g;
    static text out;
    golden_open_runtime(&g);
    tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
    config.max_tokens = cases[i].bucket;
    config.moe_path = cases[i].path;
    config.buckets = &cases[i].bucket;
    config.n_buckets = 1;
    cr_assert_eq(tdm_model_create_random(g.runtime, &shape, 1, &config, &g.model), TDM_OK, "%s",
                 tdm_last_error()->message);
    out = (text){.bytes = 0};
    cr_assert_eq(tdm_model_explain(g.model, 2, true, collect, &out), TDM_OK, "%s", tdm_last_error()->message);
    cr_expect_not_null(strstr(out.data, cases[i].has), "bucket %d: %s", (int)cases[i].bucket, out.data);
    cr_expect_null(strstr(out.data, cases[i].lacks), "bucket %d: %s", (int)cases[i].bucket, out.data);
    tdm_sequence* sequence = golden_sequence(&g);
    const tdm_batch_item item = {
        .sequence = sequence, .tokens = (const int32_t[]){3, 4}, .n_tokens = 2, .logits = TDM_LOGITS_ALL};
    (void)golden_forward(&g, &item, logits[i]);
    tdm_sequence_destroy(sequence);
    golden_close(&g);
    cr_expect_arr_eq(logits[i], logits[0], sizeof *logits, "bucket %d", (int)cases[i].bucket);
  }
}

Test(random_models, refuse_what_cannot_be) {
  golden g;
  golden_open_runtime(&g);
  tdm_deepseek_v3_config shape = golden_shape();
  const tdm_model_config config = golden_config(TDM_ACTIVATIONS_NATIVE);
  test_expect_failure("NULL", tdm_model_create_random(g.runtime, NULL, 1, &config, &g.model), TDM_INVALID_ARGUMENT,
                      "shape");
  shape.num_experts_per_tok = 7; /* of 2 groups of 2 experts */
  test_expect_failure("top-k", tdm_model_create_random(g.runtime, &shape, 1, &config, &g.model), TDM_INVALID_ARGUMENT,
                      "top_k|7");
  cr_assert_null(g.model);
  shape.num_experts_per_tok = 3;
  cr_assert_eq(tdm_model_create_random(g.runtime, &shape, 1, &config, &g.model), TDM_OK, "%s",
               tdm_last_error()->message);
  tdm_sequence *a = golden_sequence(&g), *b = golden_sequence(&g), *c = golden_sequence(&g), *d = golden_sequence(&g);
  test_expect_failure("negative", tdm_sequence_pretend(a, -1), TDM_INVALID_ARGUMENT, "-1 tokens");
  test_expect_failure("too long", tdm_sequence_pretend(a, 257), TDM_INVALID_ARGUMENT, "257 tokens|max_context is 256");
  cr_assert_eq(tdm_sequence_pretend(a, 256), TDM_OK);
  cr_assert_eq(tdm_sequence_pretend(b, 256), TDM_OK);
  cr_assert_eq(tdm_sequence_pretend(c, 256), TDM_OK);
  test_expect_failure("full", tdm_sequence_pretend(d, 1), TDM_OUT_OF_MEMORY,
                      "1 more pages are needed, 0 of 12 are free");
  cr_assert_eq(tdm_sequence_length(d), 0);
  tdm_sequence_destroy(a);
  cr_assert_eq(tdm_sequence_pretend(d, 1), TDM_OK);
  tdm_sequence_destroy(b);
  tdm_sequence_destroy(c);
  tdm_sequence_destroy(d);
  golden_close(&g);
}
