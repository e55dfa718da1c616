/* The table of cases. A new case of an op that has a maker is a row; an op that has none needs one in make_*.c: it
 * fills the op's args, lets an operand rotate, and says how the reference's pieces are cut. */

#include <stdio.h>

#include "bench/make.h"

/* roof: M, best recorded peer, goal. Peers: docs/peers.md, sections 1.1 and 1.2. */
#define ROOF4(p1, g1, p16, g16, p64, g64, p128, g128)                                                                  \
  {BENCH_ROOF, 1, p1, g1}, {BENCH_ROOF, 16, p16, g16}, {BENCH_ROOF, 64, p64, g64}, {                                   \
    BENCH_ROOF, 128, p128, g128                                                                                        \
  }
#define SMALL4                                                                                                         \
  {BENCH_SMALL, 1, 0, 0}, {BENCH_SMALL, 16, 0, 0}, {BENCH_SMALL, 64, 0, 0}, {                                          \
    BENCH_SMALL, 128, 0, 0                                                                                             \
  }

const bench_case bench_cases[] = {
    /* clang-format off */
    {"gemm", "fc1", "FC1 + SwiGLU + quant, 256 experts, 256 + 256 rows each", bench_make_fc1, 131072, 7168, 256,
     {ROOF4(219, 222, 224, 222, 231, 226, 249, 240), {0, 256, 378.4, 0}}},
    {"gemm", "fc2", "FC2, 256 experts, every token weighs every expert", bench_make_fc2, 7168, 65536, 256,
     {ROOF4(132, 115, 131, 115, 143, 117, 167, 126), {0, 256, 206.2, 0}}},
    {"gemm", "qkv_a", "q_a|kv_a", bench_make_gemm_fp8, 2112, 7168, 1,
     {ROOF4(12.4, 6.0, 11.2, 6.0, 10.3, 6.2, 11.1, 6.5)}},
    {"gemm", "q_b", "q_b", bench_make_gemm_fp8, 24576, 1536, 1,
     {ROOF4(16.4, 11.5, 15.1, 11.5, 14.1, 11.5, 14.8, 12.5), {BENCH_PREFILL, 4096, 236.8, 0}}},
    {"gemm", "o", "o", bench_make_gemm_fp8, 7168, 16384, 1,
     {ROOF4(38.2, 30.5, 36.2, 30.5, 34.6, 31, 43.1, 34), {BENCH_PREFILL, 4096, 670.7, 0}}},
    {"gemm", "o_b", "o_b", bench_make_gemm_fp8, 7168, 8192, 1,
     {ROOF4(20.3, 16.5, 20.2, 16.5, 19.6, 17, 24.0, 19)}},
    {"gemm", "shared_fc1", "shared FC1 + SwiGLU + quant", bench_make_fc1, 4096, 7168, 1,
     {ROOF4(14.3, 9.0, 12.6, 9.0, 11.7, 9.3, 12.6, 10)}},
    {"gemm", "shared_fc1_plain", "shared FC1, product alone, bf16 out", bench_make_gemm_fp8, 4096, 7168, 1,
     {{BENCH_PREFILL, 4096, 169.4, 0}}},
    {"gemm", "shared_fc2", "shared FC2", bench_make_gemm_fp8, 7168, 2048, 1,
     {ROOF4(8.8, 5.2, 7.6, 5.2, 7.2, 5.4, 8.7, 6.2)}},
    {"gemm", "router", "router, bf16, f32 out", bench_make_router, 256, 7168, 1,
     {ROOF4(7.2, 3.2, 7.4, 3.6, 7.7, 4.2, 7.8, 4.8), {0, 256, 9.1, 0}}},
    {"gemm", "k_b", "k_b, bf16: 128 x [M,128].[128,512]", bench_make_bmm, 512, 128, 128,
     {ROOF4(7.0, 5.8, 7.2, 5.8, 8.6, 7.0, 11.1, 9.5)}},
    {"gemm", "v_b_quant_128h", "v_b + quant, bf16: 128 x [M,512].[128,512]", bench_make_bmm_quant, 128, 512, 128, {SMALL4}},
    {"gemm", "v_b_quant_16h", "v_b + quant, bf16: 16 x [M,512].[128,512]", bench_make_bmm_quant, 128, 512, 16, {SMALL4}},
    {"gemm", "grouped_fc1", "masked grouped FC1, M rows for each of 32 experts, bf16 out", bench_make_grouped, 4096, 7168, 32,
     {{BENCH_PREFILL, 1, 236.9, 228}, {BENCH_PREFILL, 8, 237.9, 228}, {BENCH_PREFILL, 16, 237.8, 228},
      {BENCH_PREFILL, 32, 238.5, 228}, {BENCH_PREFILL, 64, 238.6, 228}, {BENCH_PREFILL, 128, 270.1, 0}}},
    {"gemm", "grouped_fc2", "masked grouped FC2, M rows for each of 32 experts", bench_make_grouped, 7168, 2048, 32,
     {{BENCH_PREFILL, 1, 130.0, 120}, {BENCH_PREFILL, 8, 129.8, 120}, {BENCH_PREFILL, 16, 130.9, 120},
      {BENCH_PREFILL, 32, 132.0, 120}, {BENCH_PREFILL, 64, 131.5, 120}, {BENCH_PREFILL, 128, 144.9, 0}}},
    {"gemm", "o_a", "o_a: 8 x [M,8192].[1024,8192]", bench_make_bmm_fp8, 1024, 8192, 8,
     {ROOF4(23.5, 18.2, 24.1, 18.4, 24.6, 19.2, 26.8, 20.5)}},
    {"gemm", "o_a_pro", "o_a of V4-Pro: 16 x [M,4096].[1024,4096]", bench_make_bmm_fp8, 1024, 4096, 16,
     {{BENCH_SMALL, 1, 0, 0}, {BENCH_SMALL, 16, 0, 0}, {BENCH_SMALL, 64, 0, 0}, {BENCH_SMALL, 128, 0, 0}}},

    {"norm", "rmsnorm", "add + RMSNorm + quant", bench_make_rmsnorm, 7168, 1, 1, {SMALL4}},
    {"norm", "quant", "FP8 quantisation", bench_make_quant, 16384, 1, 1, {SMALL4}},
    {"moe", "moe_route", "8 of 256 experts, 4 of 8 groups", bench_make_route, 256, 1, 1, {SMALL4}},
    {"moe", "moe_gate", "router and moe_route", bench_make_gate, 256, 7168, 1, {SMALL4, {BENCH_SMALL, 256, 0, 0}}},
    {"moe", "moe_gate_list", "the same and the list of hits", bench_make_gate_list, 256, 7168, 1, {SMALL4}},
    {"moe", "moe_norm_gate", "add + RMSNorm + quant, router and moe_route", bench_make_norm_gate, 256, 7168, 1,
     {{BENCH_SMALL, 1, 0, 0}, {BENCH_SMALL, 2, 0, 0}, {BENCH_SMALL, 4, 0, 0}, {BENCH_SMALL, 8, 0, 0}}},
    {"moe", "fc1_chosen", "FC1 + SwiGLU + quant, 8 of 256 experts and a shared one", bench_make_fc1_chosen, 131584, 7168, 257, {SMALL4, {BENCH_SMALL, 256, 0, 0}}},
    {"moe", "fc2_chosen", "FC2, 8 of 256 experts and a shared one", bench_make_fc2_chosen, 7168, 65792, 257, {SMALL4, {BENCH_SMALL, 256, 0, 0}}},
    {"moe", "experts", "FC1 and FC2 in one launch, 8 of 256 experts and a shared one", bench_make_experts, 131584, 7168, 257,
     {{BENCH_SMALL, 1, 0, 0}, {BENCH_SMALL, 2, 0, 0}, {BENCH_SMALL, 4, 0, 0}, {BENCH_SMALL, 8, 0, 0},
      {BENCH_SMALL, 16, 0, 0}, {BENCH_SMALL, 64, 0, 0}, {BENCH_SMALL, 128, 0, 0}}},
    {"moe", "fc1_bf16", "FC1 + SwiGLU, bf16, 256 experts", bench_make_fc1_bf16, 131072, 7168, 256, {SMALL4}},
    {"moe", "fc2_bf16", "FC2, bf16, every token weighs every expert", bench_make_fc2_bf16, 7168, 65536, 256, {SMALL4}},
    {"moe", "shared_fc1_bf16", "shared FC1 + SwiGLU, bf16", bench_make_fc1_bf16, 4096, 7168, 1, {SMALL4}},
    {"moe", "shared_fc2_bf16", "shared FC2, bf16", bench_make_fc2_bf16, 7168, 2048, 1, {SMALL4}},
    {"attention", "mla_decode_16h", "M sequences, context 4096", bench_make_mla_decode, 512, 576, 16, {SMALL4}},
    {"attention", "mla_decode_4097", "16 heads, M sequences, context 4097", bench_make_mla_decode_new, 512, 576, 16, {SMALL4}},
    {"attention", "mla_decode_128h", "M sequences, context 4096", bench_make_mla_decode, 512, 576, 128, {SMALL4}},
    {"attention", "mla_kv_write", "norm + RoPE + cache write", bench_make_kv_write, 576, 1, 1, {SMALL4}},
    {"attention", "mla_norm_write", "both norms + quant + RoPE + cache write", bench_make_norm_write, 1536, 1, 1, {SMALL4}},
    {"attention", "mla_qkv_a", "q_a|kv_a, both norms + quant + RoPE + cache write", bench_make_qkv_a, 1536, 7168, 1, {SMALL4}},
    {"attention", "mla_absorb", "k_b and RoPE of queries, 128 heads", bench_make_absorb, 576, 192, 128, {SMALL4}},
    {"attention", "mla_absorb_16h", "the same, 16 heads", bench_make_absorb, 576, 192, 16, {SMALL4}},
    {"attention", "inverse_rope_quant", "128 heads of 512, 8 groups; peer: Triton", bench_make_inverse_rope_quant, 128, 512, 8,
     {{BENCH_SMALL, 1, 4.6, 2.5}, {BENCH_SMALL, 64, 10.4, 5.0}, {BENCH_SMALL, 256, 25.3, 15.5},
      {BENCH_SMALL, 1024, 81.4, 54}, {BENCH_SMALL, 2048, 148.7, 103}, {BENCH_PREFILL, 8192, 568, 400}}},
    {"attention", "mla_prefill_16h", "one sequence of M tokens", bench_make_mla_prefill, 128, 192, 16,
     {{BENCH_SMALL, 512, 0, 0}, {BENCH_SMALL, 2048, 0, 0}}},
    /* clang-format on */
};
const int32_t bench_case_count = (int32_t)(sizeof bench_cases / sizeof *bench_cases);

const bench_figure* bench_find_figure(const bench_case* c, int64_t m) {
  for (int32_t i = 0; i < BENCH_MS && c->figures[i].m; i++)
    if (c->figures[i].m == m) return &c->figures[i];
  return NULL;
}

uint32_t bench_case_suites(const bench_case* c) {
  uint32_t suites = 0;
  for (int32_t i = 0; i < BENCH_MS && c->figures[i].m; i++) suites |= c->figures[i].suite;
  return suites;
}

int32_t bench_rows(const bench_options* options, const bench_case* c, int64_t* out_ms) {
  int32_t n = 0;
  if (options->n_ms) {
    memcpy(out_ms, options->ms, sizeof options->ms);
    return options->n_ms;
  }
  for (int32_t i = 0; i < BENCH_MS && c->figures[i].m; i++)
    if (!options->suites || (options->suites & c->figures[i].suite)) out_ms[n++] = c->figures[i].m;
  return n;
}

static bool is_group(const char* word) {
  for (int32_t i = 0; i < bench_case_count; i++)
    if (strcmp(bench_cases[i].group, word) == 0) return true;
  return false;
}

/* Words: a group chooses all its cases, or, with names behind it, those; a name without a group any case of it. */
static bool choose_word(const char* word, const char* group, bool* chosen) {
  bool found = false;
  for (int32_t i = 0; i < bench_case_count; i++) {
    const bool named = strcmp(bench_cases[i].name, word) == 0 && (!group || strcmp(bench_cases[i].group, group) == 0);
    chosen[i] |= named;
    found |= named;
  }
  return found;
}

/* With a suite as well, what is in both. */
static int keep_suites(uint32_t wanted, bool* chosen) {
  bool any = false;
  for (int32_t i = 0; i < bench_case_count; i++) {
    chosen[i] &= (bench_case_suites(&bench_cases[i]) & wanted) != 0;
    any |= chosen[i];
  }
  if (any) return BENCH_OK;
  (void)fprintf(stderr, "tandem-bench: none of the cases named is in the suite\n");
  return BENCH_USAGE;
}

int bench_choose(const bench_options* options, bool* chosen) {
  const char* group = NULL;
  memset(chosen, 0, (size_t)bench_case_count * sizeof *chosen);
  for (int32_t i = 0; i < options->n_words; i++) {
    const char* word = options->words[i];
    if (is_group(word)) {
      group = word;
      if (i + 1 < options->n_words && !is_group(options->words[i + 1])) continue; /* names follow */
      for (int32_t j = 0; j < bench_case_count; j++) chosen[j] |= strcmp(bench_cases[j].group, word) == 0;
    } else if (!choose_word(word, group, chosen)) {
      (void)fprintf(stderr, "tandem-bench: '%s' is no case%s%s%s; --list shows them\n", word,
                    group ? " of group '" : " and no group", group ? group : "", group ? "'" : "");
      return BENCH_USAGE;
    }
  }
  if (options->n_words == 0) memset(chosen, true, (size_t)bench_case_count * sizeof *chosen);
  return options->suites ? keep_suites(options->suites, chosen) : BENCH_OK;
}

void bench_list(void) {
  (void)printf("%-10s %-17s %7s %6s %5s  %-14s %-20s %s\n", "group", "case", "N", "K", "batch", "suites", "M", "what");
  for (int32_t i = 0; i < bench_case_count; i++) {
    const bench_case* c = &bench_cases[i];
    const uint32_t suites = bench_case_suites(c);
    char names[40], ms[80] = "";
    (void)snprintf(names, sizeof names, "%s%s%s", suites & BENCH_ROOF ? "roof " : "",
                   suites & BENCH_PREFILL ? "prefill " : "", suites & BENCH_SMALL ? "small" : "");
    for (int32_t j = 0; j < BENCH_MS && c->figures[j].m; j++) {
      const size_t used = strlen(ms);
      (void)snprintf(ms + used, sizeof ms - used, "%s%lld", j ? "," : "", (long long)c->figures[j].m);
    }
    (void)printf("%-10s %-17s %7lld %6lld %5lld  %-14s %-20s %s\n", c->group, c->name, (long long)c->n, (long long)c->k,
                 (long long)c->batch, names, ms, c->what);
  }
  (void)printf("--suite overlap measures no cases but whole layers, in all ways to run them\n");
}
