/* Cases whose work is a product with weights. */

#include <stddef.h>
#include <stdlib.h>

#include "bench/make.h"
#include "kernels/ops.h"

/* Multiply-adds that a piece of a check may take on the host. */
static const int64_t check_work = 8 << 20;
enum { CHECK_COLUMNS = 16 };

static int64_t check_rows(int64_t m, int64_t work_per_row) {
  const int64_t rows = check_work / work_per_row;
  return bench_least(m, rows < 1 ? 1 : rows);
}

static tdm_view weight_scales(bench_rig* rig, bench_work* work, int32_t rank, const int64_t* shape) {
  return bench_values(rig, work, TDM_F32, rank, shape, 1e-4f, 3e-4f);
}

static tdm_view activations(bench_rig* rig, bench_work* work, int64_t m, int64_t k) {
  return bench_values(rig, work, TDM_E4M3, 2, (const int64_t[]){m, k}, 240, 0);
}

/* 16 columns within a block of 128 weight rows, and some rows. */
static void cut_gemm_fp8(bench_check* check, int64_t m, int64_t n, int64_t k) {
  const int64_t rows = check_rows(m, CHECK_COLUMNS * k);
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_gemm_fp8_args, a), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_gemm_fp8_args, a_scale), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_gemm_fp8_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, bench_blocks(n));
  bench_cut_view(check, 1, offsetof(tdm_gemm_fp8_args, w), 0, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_gemm_fp8_args, w_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_gemm_fp8_args, out), 1, 0, 128, CHECK_COLUMNS);
}

/* cuBLASLt on the same operands, bf16 out. `w` and `w_scale` may have an expert dimension in front. */
static void same_product_fp8(bench_rig* rig, bench_work* work, tdm_view a, tdm_view a_scale, tdm_view w,
                             tdm_view w_scale, int64_t m, int64_t n, int64_t k, const char* note) {
  w = tdm_view_make(w.buffer, TDM_E4M3, 2, (const int64_t[]){n, k});
  w_scale = tdm_view_make(w_scale.buffer, TDM_F32, 2, (const int64_t[]){bench_blocks(n), k / 128});
  const bench_product product = {.m = m,
                                 .n = n,
                                 .k = k,
                                 .batch = 1,
                                 .in = TDM_E4M3,
                                 .out_dtype = TDM_BF16,
                                 .a = a,
                                 .a_scale = a_scale,
                                 .w = w,
                                 .w_scale = w_scale,
                                 .out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, n}),
                                 .a_stride = k,
                                 .w_stride = k,
                                 .out_stride = n,
                                 .note = note};
  const tdm_gemm_fp8_args args = {
      .size = sizeof args, .a = a, .a_scale = a_scale, .w = w, .w_scale = w_scale, .out = product.out};
  bench_product_done(work, &product, &tdm_op_gemm_fp8, &args);
  cut_gemm_fp8(&work->product_check, m, n, k);
}

tdm_status bench_make_gemm_fp8(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  tdm_gemm_fp8_args args = {.size = sizeof args};
  args.a = activations(rig, work, m, c->k);
  args.a_scale = bench_scales(rig, work, m, c->k);
  args.w = bench_rotate(rig, work, offsetof(tdm_gemm_fp8_args, w), TDM_E4M3, 2, (const int64_t[]){c->n, c->k});
  args.w_scale = weight_scales(rig, work, 2, (const int64_t[]){bench_blocks(c->n), c->k / 128});
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n});
  bench_make_done(work, &tdm_op_gemm_fp8, &args, 1e-5);
  cut_gemm_fp8(&work->check, m, c->n, c->k);
  same_product_fp8(rig, work, args.a, args.a_scale, args.w, args.w_scale, m, c->n, c->k, NULL);
  return TDM_OK;
}

/* Masked layout: m rows in each of the groups. A piece: some columns of the first two groups, whose rows begin at 0. */
tdm_status bench_make_grouped(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  enum { MOST_GROUPS = 64, CHECKED = 2 };
  const int64_t groups = c->batch, rows = groups * m;
  int32_t start[MOST_GROUPS], count[MOST_GROUPS];
  if (groups > MOST_GROUPS) bench_die("%s: %lld groups", c->name, (long long)groups);
  for (int64_t g = 0; g < groups; g++) {
    start[g] = (int32_t)(g * m);
    count[g] = (int32_t)m;
  }
  tdm_grouped_gemm_fp8_args args = {.size = sizeof args, .max_rows = m};
  args.row_start = bench_ints(rig, work, start, groups);
  args.row_count = bench_ints(rig, work, count, groups);
  args.a = activations(rig, work, rows, c->k);
  args.a_scale = bench_scales(rig, work, rows, c->k);
  args.w = bench_rotate(rig, work, offsetof(tdm_grouped_gemm_fp8_args, w), TDM_E4M3, 3,
                        (const int64_t[]){groups, c->n, c->k});
  args.w_scale = weight_scales(rig, work, 3, (const int64_t[]){groups, bench_blocks(c->n), c->k / 128});
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){rows, c->n});
  bench_make_done(work, &tdm_op_grouped_gemm_fp8, &args, 1e-5);
  bench_check* check = &work->check;
  bench_axis(check, 0, 1);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, row_start), 0, 0, CHECKED, CHECKED);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, row_count), 0, 0, CHECKED, CHECKED);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, a), 0, 0, CHECKED * m, CHECKED * m);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, a_scale), 1, 0, CHECKED * m, CHECKED * m);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, w), 0, 0, CHECKED, CHECKED);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, w_scale), 0, 0, CHECKED, CHECKED);
  bench_cut_view(check, 0, offsetof(tdm_grouped_gemm_fp8_args, out), 0, 0, CHECKED * m, CHECKED * m);
  bench_axis(check, 1, bench_blocks(c->n));
  bench_cut_view(check, 1, offsetof(tdm_grouped_gemm_fp8_args, w), 1, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_grouped_gemm_fp8_args, w_scale), 1, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_grouped_gemm_fp8_args, out), 1, 0, 128, CHECK_COLUMNS);
  return TDM_OK;
}

/* A piece: 128 gate rows with their up rows, of one expert. */
tdm_status bench_make_fc1(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch, width = c->n / experts / 2, columns = c->n / 2;
  tdm_moe_fc1_args args = {.size = sizeof args};
  args.x = activations(rig, work, m, c->k);
  args.x_scale = bench_scales(rig, work, m, c->k);
  args.w13 = bench_rotate(rig, work, offsetof(tdm_moe_fc1_args, w13), TDM_E4M3, 3,
                          (const int64_t[]){experts, 2 * width, c->k});
  args.w13_scale = weight_scales(rig, work, 3, (const int64_t[]){experts, width / 64, c->k / 128});
  args.out = bench_tensor(rig, work, TDM_E4M3, 2, (const int64_t[]){m, columns});
  args.out_scale = bench_empty_scales(rig, work, m, columns);
  bench_make_done(work, &tdm_op_moe_fc1, &args, 1e-3);
  const int64_t rows = check_rows(m, 256 * c->k);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, x_scale), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, out), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, out_scale), 1, 0, 1, rows);
  bench_axis(check, 1, experts);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, w13), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, w13_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, out), 1, 0, width, width);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, out_scale), 0, 0, width / 128, width / 128);
  bench_axis(check, 2, width / 128);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, w13), 1, 0, 256, 256);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, w13_scale), 1, 0, 2, 2);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, out), 1, 0, 128, 128);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, out_scale), 0, 0, 1, 1);
  same_product_fp8(rig, work, args.x, args.x_scale, args.w13, args.w13_scale, m, c->n, c->k,
                   "product alone, bf16 out, no SwiGLU");
  return TDM_OK;
}

/* Every token weighs every expert, so that nothing may be left out. */
tdm_status bench_make_fc2(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch;
  tdm_moe_fc2_args args = {.size = sizeof args, .n_experts = (int32_t)experts};
  args.x = activations(rig, work, m, c->k);
  args.x_scale = bench_scales(rig, work, m, c->k);
  args.w2 = bench_rotate(rig, work, offsetof(tdm_moe_fc2_args, w2), TDM_E4M3, 2, (const int64_t[]){c->n, c->k});
  args.w2_scale = weight_scales(rig, work, 2, (const int64_t[]){bench_blocks(c->n), c->k / 128});
  args.alpha = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){m, experts}, 0.4f, 0.5f);
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n});
  bench_make_done(work, &tdm_op_moe_fc2, &args, 1e-5);
  const int64_t rows = check_rows(m, CHECK_COLUMNS * c->k);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, x_scale), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, alpha), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, bench_blocks(c->n));
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, w2), 0, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, w2_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, out), 1, 0, 128, CHECK_COLUMNS);
  same_product_fp8(rig, work, args.x, args.x_scale, args.w2, args.w2_scale, m, c->n, c->k,
                   "product alone, no routing weights");
  return TDM_OK;
}

/* Every token's bits: 8 of the routed experts and the last, which all share; other choices in each of the copies, which
 * rotate, so that few tokens do not find their experts in L2. `expert_bytes`: an expert's weights. `out_union`: the
 * bits of all copies together. */
static tdm_view choices(bench_rig* rig, bench_work* work, size_t view, int64_t m, int64_t experts, double expert_bytes,
                        tdm_view* out_union) {
  enum { COPIES = 8, TOP_K = 8, MOST_WORDS = 64 };
  const int64_t words = (experts + 31) / 32, copy_words = (m * words + 63) / 64 * 64;
  if (words > MOST_WORDS) bench_die("%lld experts", (long long)experts);
  int32_t* bits = calloc((size_t)((COPIES + 1) * copy_words), sizeof *bits);
  if (!bits) bench_die("no memory for choices");
  for (int32_t copy = 0; copy < COPIES; copy++) {
    uint32_t any[MOST_WORDS] = {0};
    for (int64_t row = 0; row < m; row++) {
      int32_t* mine = bits + copy * copy_words + row * words;
      mine[(experts - 1) / 32] |= (int32_t)(1u << (experts - 1) % 32);
      for (int32_t chosen = 0; chosen < TOP_K;) {
        const int64_t expert = (int64_t)(bench_random(rig) % (uint64_t)(experts - 1));
        const uint32_t bit = 1u << expert % 32;
        chosen += ((uint32_t)mine[expert / 32] & bit) == 0;
        mine[expert / 32] |= (int32_t)bit;
      }
      for (int64_t w = 0; w < words; w++) any[w] |= (uint32_t)mine[w];
    }
    int64_t hit = 0;
    for (int64_t w = 0; w < words; w++) hit += __builtin_popcount(any[w]);
    work->unread += (double)(experts - hit) * expert_bytes / COPIES;
    for (int64_t i = 0; i < m * words; i++) bits[COPIES * copy_words + i] |= bits[copy * copy_words + i];
  }
  const tdm_view all = bench_ints(rig, work, bits, (COPIES + 1) * copy_words);
  free(bits);
  bench_rotate_copies(work, view, (size_t)copy_words * 4, COPIES);
  const tdm_view first = tdm_view_make(all.buffer, TDM_I32, 2, (const int64_t[]){m, words});
  *out_union = first;
  out_union->offset_bytes += COPIES * copy_words * 4;
  return first;
}

/* A piece: 32 experts, a word of choices, of some rows. What a copy does not choose stays as the ones before left it,
 * so all are compared at once; what none chose stays poisoned. */
tdm_status bench_make_fc1_chosen(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch, width = c->n / experts / 2, columns = c->n / 2;
  tdm_view all;
  tdm_moe_fc1_args args = {.size = sizeof args};
  args.x = activations(rig, work, m, c->k);
  args.x_scale = bench_scales(rig, work, m, c->k);
  args.w13 = bench_values(rig, work, TDM_E4M3, 3, (const int64_t[]){experts, 2 * width, c->k}, 240, 0);
  args.w13_scale = weight_scales(rig, work, 3, (const int64_t[]){experts, width / 64, c->k / 128});
  args.chosen = choices(rig, work, offsetof(tdm_moe_fc1_args, chosen), m, experts, (double)(2 * width * c->k), &all);
  args.out = bench_tensor(rig, work, TDM_E4M3, 2, (const int64_t[]){m, columns});
  args.out_scale = bench_empty_scales(rig, work, m, columns);
  bench_make_done(work, &tdm_op_moe_fc1, &args, 1e-3);
  const int64_t rows = bench_least(m, 16);
  bench_check* check = &work->check;
  memcpy(check->args + offsetof(tdm_moe_fc1_args, chosen), &all, sizeof all);
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, x_scale), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, chosen), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, out), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, out_scale), 1, 0, 1, rows);
  bench_axis(check, 1, experts / 32);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, chosen), 1, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, w13), 0, 0, 32, 32);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, w13_scale), 0, 0, 32, 32);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, out), 1, 0, 32 * width, 32 * width);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, out_scale), 0, 0, 32 * width / 128, 32 * width / 128);
  return TDM_OK;
}

tdm_status bench_make_fc2_chosen(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch;
  tdm_view all;
  tdm_moe_fc2_args args = {.size = sizeof args, .n_experts = (int32_t)experts};
  args.x = activations(rig, work, m, c->k);
  args.x_scale = bench_scales(rig, work, m, c->k);
  args.w2 = bench_values(rig, work, TDM_E4M3, 2, (const int64_t[]){c->n, c->k}, 240, 0);
  args.w2_scale = weight_scales(rig, work, 2, (const int64_t[]){bench_blocks(c->n), c->k / 128});
  args.alpha = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){m, experts}, 0.4f, 0.5f);
  args.chosen =
      choices(rig, work, offsetof(tdm_moe_fc2_args, chosen), m, experts, (double)(c->n * (c->k / experts)), &all);
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n});
  bench_make_done(work, &tdm_op_moe_fc2, &args, 1e-5);
  const int64_t rows = bench_least(m, 16);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, x_scale), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, alpha), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, chosen), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, bench_blocks(c->n));
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, w2), 0, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, w2_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, out), 1, 0, 128, CHECK_COLUMNS);
  return TDM_OK;
}

/* A piece: a row. Its reference takes some seconds. */
tdm_status bench_make_experts(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch, width = c->n / experts / 2;
  tdm_view all;
  tdm_moe_experts_args args = {.size = sizeof args};
  args.x = activations(rig, work, m, c->k);
  args.x_scale = bench_scales(rig, work, m, c->k);
  args.w13 = bench_values(rig, work, TDM_E4M3, 3, (const int64_t[]){experts, 2 * width, c->k}, 240, 0);
  args.w13_scale = weight_scales(rig, work, 3, (const int64_t[]){experts, width / 64, c->k / 128});
  args.w2 = bench_values(rig, work, TDM_E4M3, 2, (const int64_t[]){c->k, experts * width}, 240, 0);
  args.w2_scale = weight_scales(rig, work, 2, (const int64_t[]){bench_blocks(c->k), experts * width / 128});
  args.alpha = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){m, experts}, 0.4f, 0.5f);
  args.chosen =
      choices(rig, work, offsetof(tdm_moe_experts_args, chosen), m, experts, (double)(3 * width * c->k), &all);
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->k});
  bench_make_done(work, &tdm_op_moe_experts, &args, 1e-3);
  bench_check* check = &work->check;
  bench_axis(check, 0, m);
  bench_cut_view(check, 0, offsetof(tdm_moe_experts_args, x), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_experts_args, x_scale), 1, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_experts_args, alpha), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_experts_args, chosen), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_experts_args, out), 0, 0, 1, 1);
  return TDM_OK;
}

/* bf16 weights and activations: nothing is quantised. Pieces as above. */
tdm_status bench_make_fc1_bf16(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t experts = c->batch, width = c->n / experts / 2;
  tdm_moe_fc1_args args = {.size = sizeof args};
  args.x = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->k}, 1, 0);
  args.w13 = bench_rotate(rig, work, offsetof(tdm_moe_fc1_args, w13), TDM_BF16, 3,
                          (const int64_t[]){experts, 2 * width, c->k});
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n / 2});
  bench_make_done(work, &tdm_op_moe_fc1, &args, 1e-5);
  const int64_t rows = check_rows(m, 256 * c->k);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc1_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, experts);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, w13), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc1_args, out), 1, 0, width, width);
  bench_axis(check, 2, width / 128);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, w13), 1, 0, 256, 256);
  bench_cut_view(check, 2, offsetof(tdm_moe_fc1_args, out), 1, 0, 128, 128);
  return TDM_OK;
}

tdm_status bench_make_fc2_bf16(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  tdm_moe_fc2_args args = {.size = sizeof args, .n_experts = (int32_t)c->batch};
  args.x = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->k}, 1, 0);
  args.w2 = bench_rotate(rig, work, offsetof(tdm_moe_fc2_args, w2), TDM_BF16, 2, (const int64_t[]){c->n, c->k});
  args.alpha = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){m, c->batch}, 0.4f, 0.5f);
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n});
  bench_make_done(work, &tdm_op_moe_fc2, &args, 1e-5);
  const int64_t rows = check_rows(m, CHECK_COLUMNS * c->k);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, alpha), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_fc2_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, bench_blocks(c->n));
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, w2), 0, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_moe_fc2_args, out), 1, 0, 128, CHECK_COLUMNS);
  return TDM_OK;
}

static void cut_router(bench_check* check, int64_t m, int64_t n, int64_t k) {
  const int64_t rows = check_rows(m, CHECK_COLUMNS * k);
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_router_gemm_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_router_gemm_args, logits), 0, 0, 1, rows);
  bench_axis(check, 1, n / CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_router_gemm_args, w), 0, 0, CHECK_COLUMNS, CHECK_COLUMNS);
  bench_cut_view(check, 1, offsetof(tdm_router_gemm_args, logits), 1, 0, CHECK_COLUMNS, CHECK_COLUMNS);
}

tdm_status bench_make_router(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  tdm_router_gemm_args args = {.size = sizeof args};
  args.x = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->k}, 1, 0);
  args.w = bench_rotate(rig, work, offsetof(tdm_router_gemm_args, w), TDM_BF16, 2, (const int64_t[]){c->n, c->k});
  args.logits = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n});
  bench_make_done(work, &tdm_op_router_gemm, &args, 1e-9);
  cut_router(&work->check, m, c->n, c->k);
  const bench_product product = {.m = m,
                                 .n = c->n,
                                 .k = c->k,
                                 .batch = 1,
                                 .in = TDM_BF16,
                                 .out_dtype = TDM_F32,
                                 .a = args.x,
                                 .w = args.w,
                                 .out = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n}),
                                 .a_stride = c->k,
                                 .w_stride = c->k,
                                 .out_stride = c->n};
  args.logits = product.out;
  bench_product_done(work, &product, &tdm_op_router_gemm, &args);
  cut_router(&work->product_check, m, c->n, c->k);
  return TDM_OK;
}

static void cut_bmm(bench_check* check, int64_t batch, int64_t n) {
  bench_axis(check, 0, batch);
  bench_cut_view(check, 0, offsetof(tdm_gemm_bf16_args, a), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_gemm_bf16_args, w), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_gemm_bf16_args, out), 0, 0, 1, 1);
  bench_axis(check, 1, n / 128);
  bench_cut_view(check, 1, offsetof(tdm_gemm_bf16_args, w), 1, 0, 128, 128);
  bench_cut_view(check, 1, offsetof(tdm_gemm_bf16_args, out), 2, 0, 128, 128);
}

/* a [M, B, K], w [B, K, N], out [M, B, N]: the absorption of k_b, head by head. */
tdm_status bench_make_bmm(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t batch = c->batch;
  tdm_gemm_bf16_args args = {.size = sizeof args};
  args.a = tdm_view_transpose(bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, batch, c->k}, 1, 0), 0, 1);
  args.w = tdm_view_transpose(
      bench_rotate(rig, work, offsetof(tdm_gemm_bf16_args, w), TDM_BF16, 3, (const int64_t[]){batch, c->k, c->n}), 1,
      2);
  args.out = tdm_view_transpose(bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){m, batch, c->n}), 0, 1);
  bench_make_done(work, &tdm_op_gemm_bf16, &args, 1e-5);
  cut_bmm(&work->check, batch, c->n);
  const bench_product product = {
      .m = m,
      .n = c->n,
      .k = c->k,
      .batch = batch,
      .in = TDM_BF16,
      .out_dtype = TDM_BF16,
      .a = args.a,
      .w = args.w,
      .out = tdm_view_transpose(bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){m, batch, c->n}), 0, 1),
      .a_stride = batch * c->k,
      .a_batch = c->k,
      .w_stride = c->n,
      .w_batch = c->k * c->n,
      .out_stride = batch * c->n,
      .out_batch = c->n,
      .w_transposed = true};
  args.out = product.out;
  bench_product_done(work, &product, &tdm_op_gemm_bf16, &args);
  cut_bmm(&work->product_check, batch, c->n);
  return TDM_OK;
}

/* The rows of [groups * rows, cols] as groups of their own. */
static tdm_view grouped(tdm_view view, int64_t groups) {
  view.rank = 3;
  view.shape[2] = view.shape[1], view.stride[2] = view.stride[1];
  view.shape[1] = view.shape[0] / groups, view.stride[1] = view.stride[0];
  view.shape[0] = groups, view.stride[0] = view.stride[1] * view.shape[1];
  return view;
}

/* a [M, B, K], w [B, N, K], out [M, B*N]: values out of the latent space, head by head. No peer. */
tdm_status bench_make_bmm_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t batch = c->batch, rows = check_rows(m, c->n * c->k);
  tdm_bmm_quant_args args = {.size = sizeof args};
  args.a = tdm_view_transpose(bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, batch, c->k}, 1, 0), 0, 1);
  args.w = bench_rotate(rig, work, offsetof(tdm_bmm_quant_args, w), TDM_BF16, 3, (const int64_t[]){batch, c->n, c->k});
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, (const int64_t[]){m, batch * c->n});
  args.out_scale = bench_empty_scales(rig, work, m, batch * c->n);
  bench_make_done(work, &tdm_op_bmm_quant, &args, 1e-4);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_bmm_quant_args, a), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_bmm_quant_args, out_q), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_bmm_quant_args, out_scale), 1, 0, 1, rows);
  bench_axis(check, 1, batch);
  bench_cut_view(check, 1, offsetof(tdm_bmm_quant_args, a), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_quant_args, w), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_quant_args, out_q), 1, 0, c->n, c->n);
  bench_cut_view(check, 1, offsetof(tdm_bmm_quant_args, out_scale), 0, 0, c->n / 128, c->n / 128);
  return TDM_OK;
}

/* a [G, M, K], w [G, N, K], out [M, G * N]. A piece: 16 columns of a block of 128 of the last group, or of the first.
 */
tdm_status bench_make_bmm_fp8(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t groups = c->batch, rows = check_rows(m, CHECK_COLUMNS * c->k);
  tdm_bmm_fp8_args args = {.size = sizeof args};
  args.a = bench_values(rig, work, TDM_E4M3, 3, (const int64_t[]){groups, m, c->k}, 240, 0);
  args.a_scale = grouped(bench_scales(rig, work, m, groups * c->k), groups);
  args.w = bench_rotate(rig, work, offsetof(tdm_bmm_fp8_args, w), TDM_E4M3, 3, (const int64_t[]){groups, c->n, c->k});
  args.w_scale = weight_scales(rig, work, 3, (const int64_t[]){groups, bench_blocks(c->n), c->k / 128});
  args.out = bench_tensor(rig, work, TDM_BF16, 2, (const int64_t[]){m, groups * c->n});
  bench_make_done(work, &tdm_op_bmm_fp8, &args, 1e-5);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_bmm_fp8_args, a), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_bmm_fp8_args, a_scale), 2, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_bmm_fp8_args, out), 0, 0, 1, rows);
  bench_axis(check, 1, groups);
  bench_cut_view(check, 1, offsetof(tdm_bmm_fp8_args, a), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_fp8_args, a_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_fp8_args, w), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_fp8_args, w_scale), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_bmm_fp8_args, out), 1, 0, c->n, c->n);
  bench_axis(check, 2, bench_blocks(c->n));
  bench_cut_view(check, 2, offsetof(tdm_bmm_fp8_args, w), 1, 0, 128, CHECK_COLUMNS);
  bench_cut_view(check, 2, offsetof(tdm_bmm_fp8_args, w_scale), 1, 0, 1, 1);
  bench_cut_view(check, 2, offsetof(tdm_bmm_fp8_args, out), 1, 0, 128, CHECK_COLUMNS);
  return TDM_OK;
}
