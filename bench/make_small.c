/* Cases of attention, norms and routing. */

#include <stddef.h>
#include <stdlib.h>

#include "bench/make.h"
#include "kernels/ops.h"

/* DeepSeek-V3's routing: 8 of 256 experts, from 4 of 8 groups, and one shared expert. */
enum { TOP_K = 8, SHARED = 1 };
#define V3_ROUTING                                                                                                     \
  .top_k = TOP_K, .n_group = 8, .topk_group = 4, .n_shared = SHARED, .norm_topk_prob = true,                           \
  .routed_scaling_factor = 2.5f

enum { CONTEXT = 4096, POSITIONS = 4096, CHECK_ROWS = 16, CHECK_TOKENS = 1024 };

/* x and delta of a layer: x rotates, the rest stays warm. */
tdm_status bench_make_rmsnorm(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t shape[] = {m, c->n}, rows = bench_least(m, CHECK_ROWS);
  tdm_rmsnorm_args args = {.size = sizeof args};
  args.x = bench_rotate(rig, work, offsetof(tdm_rmsnorm_args, x), TDM_BF16, 2, shape);
  args.delta = bench_values(rig, work, TDM_BF16, 2, shape, 1, 0);
  args.residual_out = bench_tensor(rig, work, TDM_BF16, 2, shape);
  args.weight = bench_values(rig, work, TDM_BF16, 1, &c->n, 0.5f, 1);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, shape);
  args.out_scale = bench_empty_scales(rig, work, m, c->n);
  bench_make_done(work, &tdm_op_rmsnorm, &args, 1e-4);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_rmsnorm_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_rmsnorm_args, delta), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_rmsnorm_args, residual_out), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_rmsnorm_args, out_q), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_rmsnorm_args, out_scale), 1, 0, 1, rows);
  return TDM_OK;
}

tdm_status bench_make_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t shape[] = {m, c->n}, rows = bench_least(m, CHECK_ROWS);
  tdm_quant_args args = {.size = sizeof args};
  args.x = bench_rotate(rig, work, offsetof(tdm_quant_args, x), TDM_BF16, 2, shape);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, shape);
  args.out_scale = bench_empty_scales(rig, work, m, c->n);
  bench_make_done(work, &tdm_op_quant, &args, 1e-9);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_quant_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_quant_args, out_q), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_quant_args, out_scale), 1, 0, 1, rows);
  return TDM_OK;
}

/* n heads of k values, `batch` groups: x rotates, the outputs do not. A piece: one group of some tokens. */
tdm_status bench_make_inverse_rope_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t heads = c->n, dim = c->k, groups = c->batch, width = heads / groups * dim, blocks = width / 128;
  const int64_t rows = bench_least(m, CHECK_ROWS);
  tdm_inverse_rope_quant_args args = {.size = sizeof args, .style = TDM_ROPE_INTERLEAVED};
  int32_t* positions = calloc((size_t)m, sizeof *positions);
  if (!positions) bench_die("no memory for %lld positions", (long long)m);
  for (int64_t i = 0; i < m; i++) positions[i] = (int32_t)(bench_random(rig) % POSITIONS);
  args.x =
      bench_rotate(rig, work, offsetof(tdm_inverse_rope_quant_args, x), TDM_BF16, 3, (const int64_t[]){m, heads, dim});
  args.positions = bench_ints(rig, work, positions, m);
  free(positions);
  args.cos_sin = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){POSITIONS, 64}, 0.7f, 0);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 3, (const int64_t[]){groups, m, width});
  args.out_scale = bench_empty_scales(rig, work, m, heads * dim);
  args.out_scale.rank = 3;
  args.out_scale.shape[0] = groups, args.out_scale.shape[1] = blocks, args.out_scale.shape[2] = m;
  args.out_scale.stride[1] = args.out_scale.stride[0], args.out_scale.stride[2] = 1;
  args.out_scale.stride[0] = blocks * args.out_scale.stride[1];
  bench_make_done(work, &tdm_op_inverse_rope_quant, &args, 1e-9);
  bench_check* check = &work->check;
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_inverse_rope_quant_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_inverse_rope_quant_args, positions), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_inverse_rope_quant_args, out_q), 1, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_inverse_rope_quant_args, out_scale), 2, 0, 1, rows);
  bench_axis(check, 1, groups);
  bench_cut_view(check, 1, offsetof(tdm_inverse_rope_quant_args, x), 1, 0, heads / groups, heads / groups);
  bench_cut_view(check, 1, offsetof(tdm_inverse_rope_quant_args, out_q), 0, 0, 1, 1);
  bench_cut_view(check, 1, offsetof(tdm_inverse_rope_quant_args, out_scale), 0, 0, 1, 1);
  return TDM_OK;
}

/* Checked whole. */
tdm_status bench_make_route(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  tdm_moe_route_args args = {.size = sizeof args, V3_ROUTING};
  args.logits = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n}, 4, 0);
  args.bias = bench_values(rig, work, TDM_F32, 1, &c->n, 0.1f, 0);
  args.ids = bench_tensor(rig, work, TDM_I32, 2, (const int64_t[]){m, TOP_K});
  args.weights = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, TOP_K});
  args.alpha = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n + SHARED});
  bench_warm(work);
  bench_make_done(work, &tdm_op_moe_route, &args, 1e-9);
  return TDM_OK;
}

/* The same behind the router's product, whose weights rotate. A piece: some rows, which make no list. x is small, so
 * that scores do not saturate, where a last bit of a logit would turn a choice. */
static void make_gate(bench_rig* rig, const bench_case* c, int64_t m, bool lists, bench_work* work) {
  const int64_t rows = bench_least(m, CHECK_ROWS);
  tdm_moe_gate_args args = {.size = sizeof args, V3_ROUTING};
  args.x = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->k}, 0.05f, 0);
  args.w = bench_rotate(rig, work, offsetof(tdm_moe_gate_args, w), TDM_BF16, 2, (const int64_t[]){c->n, c->k});
  args.bias = bench_values(rig, work, TDM_F32, 1, &c->n, 0.1f, 0);
  args.logits = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n});
  args.ids = bench_tensor(rig, work, TDM_I32, 2, (const int64_t[]){m, TOP_K});
  args.weights = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, TOP_K});
  args.alpha = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n + SHARED});
  if (lists) args.hits = bench_tensor(rig, work, TDM_I32, 1, (const int64_t[]){1 + c->n + SHARED});
  bench_make_done(work, &tdm_op_moe_gate, &args, 1e-9);
  bench_check* check = &work->check;
  memset(check->args + offsetof(tdm_moe_gate_args, hits), 0, sizeof args.hits);
  bench_axis(check, 0, m - rows + 1);
  bench_cut_view(check, 0, offsetof(tdm_moe_gate_args, x), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_gate_args, logits), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_gate_args, ids), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_gate_args, weights), 0, 0, 1, rows);
  bench_cut_view(check, 0, offsetof(tdm_moe_gate_args, alpha), 0, 0, 1, rows);
}

tdm_status bench_make_gate(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  make_gate(rig, c, m, false, work);
  return TDM_OK;
}

tdm_status bench_make_gate_list(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  make_gate(rig, c, m, true, work);
  return TDM_OK;
}

/* rmsnorm's operands, then those of the gate; weights of the router rotate. The norm's weight keeps scores from
 * saturating. Checked whole. */
tdm_status bench_make_norm_gate(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t row[] = {m, c->k};
  tdm_moe_norm_gate_args args = {.size = sizeof args, V3_ROUTING};
  args.x = bench_values(rig, work, TDM_BF16, 2, row, 1, 0);
  args.delta = bench_values(rig, work, TDM_BF16, 2, row, 1, 0);
  args.residual_out = bench_tensor(rig, work, TDM_BF16, 2, row);
  args.weight = bench_values(rig, work, TDM_BF16, 1, &c->k, 0.05f, 0);
  args.out = bench_tensor(rig, work, TDM_BF16, 2, row);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, row);
  args.out_scale = bench_empty_scales(rig, work, m, c->k);
  args.w = bench_rotate(rig, work, offsetof(tdm_moe_norm_gate_args, w), TDM_BF16, 2, (const int64_t[]){c->n, c->k});
  args.bias = bench_values(rig, work, TDM_F32, 1, &c->n, 0.1f, 0);
  args.logits = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n});
  args.ids = bench_tensor(rig, work, TDM_I32, 2, (const int64_t[]){m, TOP_K});
  args.weights = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, TOP_K});
  args.alpha = bench_tensor(rig, work, TDM_F32, 2, (const int64_t[]){m, c->n + SHARED});
  args.chosen = bench_tensor(rig, work, TDM_I32, 2, (const int64_t[]){m, (c->n + SHARED + 31) / 32});
  bench_make_done(work, &tdm_op_moe_norm_gate, &args, 1e-4);
  return TDM_OK;
}

/* `count` integers from `first` on, in random order. */
static void shuffled(bench_rig* rig, int32_t* out, int32_t first, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    const int32_t j = (int32_t)(bench_random(rig) % (uint64_t)(i + 1));
    out[i] = out[j];
    out[j] = first + i;
  }
}

static int32_t* host_ints(int64_t count) {
  int32_t* ints = calloc((size_t)count, sizeof *ints);
  if (!ints) bench_die("no memory for %lld integers", (long long)count);
  return ints;
}

/* m sequences of `context` tokens, one new token each, every sequence on pages of its own in random order. A piece:
 * four heads of a sequence, whose row of the block table counts from its own first page; the last row is that table. */
static tdm_status make_mla_decode(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work, int32_t context) {
  const int32_t pages = (context + TDM_PAGE_TOKENS - 1) / TDM_PAGE_TOKENS;
  const int64_t heads = c->batch, n_table = (m + 1) * pages;
  int32_t *table = host_ints(n_table), *local = table + m * pages, *ints = host_ints(m + 1);
  tdm_mla_decode_args args = {.size = sizeof args, .scale = 0.0721688f};
  shuffled(rig, local, 0, pages);
  for (int64_t i = 0; i < m * pages; i++) table[i] = (int32_t)(i / pages * pages) + local[i % pages];
  args.block_table = bench_ints(rig, work, table, n_table);
  args.block_table = tdm_view_make(args.block_table.buffer, TDM_I32, 2, (const int64_t[]){m, pages});
  for (int64_t i = 0; i <= m; i++) ints[i] = (int32_t)i;
  args.seq_start = bench_ints(rig, work, ints, m + 1);
  for (int64_t i = 0; i < m; i++) ints[i] = context;
  args.kv_len = bench_ints(rig, work, ints, m);
  for (int64_t i = 0; i < m; i++) ints[i] = TDM_SEQ_ABSORBED;
  args.seq_kind = bench_ints(rig, work, ints, m);
  args.n_seqs = bench_ints(rig, work, (const int32_t[]){(int32_t)m, 1}, 2);
  args.n_seqs.shape[0] = 1;
  free(table);
  free(ints);
  args.q = bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, 576}, 2, 0);
  args.cache = bench_rotate(rig, work, offsetof(tdm_mla_decode_args, cache), TDM_BF16, 3,
                            (const int64_t[]){m * pages, TDM_PAGE_TOKENS, 576});
  args.out = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, 512});
  bench_make_done(work, &tdm_op_mla_decode, &args, 1e-4);
  bench_check* check = &work->check;
  bench_axis(check, 0, m);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, n_seqs), 0, 1, 0, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, q), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, cache), 0, 0, pages, pages);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, block_table), 0, m, 0, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, seq_start), 0, 0, 0, 2);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, kv_len), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, seq_kind), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_decode_args, out), 0, 0, 1, 1);
  bench_axis(check, 1, heads / 4);
  bench_cut_view(check, 1, offsetof(tdm_mla_decode_args, q), 1, 0, 4, 4);
  bench_cut_view(check, 1, offsetof(tdm_mla_decode_args, out), 1, 0, 4, 4);
  return TDM_OK;
}

tdm_status bench_make_mla_decode(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  return make_mla_decode(rig, c, m, work, CONTEXT);
}

/* As in a layer that decodes: the cached ones and the new one, so that the last page is not full. */
tdm_status bench_make_mla_decode_new(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  return make_mla_decode(rig, c, m, work, CONTEXT + 1);
}

/* Random positions, and distinct slots of a cache of so many pages. */
static tdm_view random_positions(bench_rig* rig, bench_work* work, int64_t m) {
  int32_t* positions = host_ints(m);
  for (int64_t i = 0; i < m; i++) positions[i] = (int32_t)(bench_random(rig) % POSITIONS);
  const tdm_view view = bench_ints(rig, work, positions, m);
  free(positions);
  return view;
}

static tdm_view random_slots(bench_rig* rig, bench_work* work, int64_t m, int64_t pages) {
  const int32_t slots = (int32_t)pages * TDM_PAGE_TOKENS;
  int32_t* slot = host_ints(slots);
  shuffled(rig, slot, 0, slots);
  const tdm_view view = bench_ints(rig, work, slot, m);
  free(slot);
  return view;
}

static tdm_view angles(bench_rig* rig, bench_work* work) {
  return bench_values(rig, work, TDM_F32, 2, (const int64_t[]){POSITIONS, 64}, 0.7f, 0);
}

/* kv is the tail of the 2112 columns of q_a|kv_a. Checked whole. */
tdm_status bench_make_kv_write(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t pages = (m + TDM_PAGE_TOKENS - 1) / TDM_PAGE_TOKENS + 2;
  (void)c;
  tdm_mla_kv_write_args args = {.size = sizeof args, .style = TDM_ROPE_DEINTERLEAVE};
  args.kv = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, 2112}, 1, 0);
  args.kv = tdm_view_slice(args.kv, 1, 1536, 576);
  args.norm_weight = bench_values(rig, work, TDM_BF16, 1, (const int64_t[]){512}, 0.5f, 1);
  args.positions = random_positions(rig, work, m);
  args.cos_sin = angles(rig, work);
  args.slots = random_slots(rig, work, m, pages);
  args.cache = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){pages, TDM_PAGE_TOKENS, 576});
  bench_warm(work);
  bench_make_done(work, &tdm_op_mla_kv_write, &args, 1e-5);
  return TDM_OK;
}

/* All 2112 columns of q_a|kv_a, as a layer decodes. Checked whole. */
tdm_status bench_make_norm_write(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t pages = (m + TDM_PAGE_TOKENS - 1) / TDM_PAGE_TOKENS + 2, q[] = {m, c->n};
  tdm_mla_norm_write_args args = {.size = sizeof args, .style = TDM_ROPE_DEINTERLEAVE};
  const tdm_view qkv = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, c->n + 576}, 1, 0);
  args.q = tdm_view_slice(qkv, 1, 0, c->n);
  args.q_weight = bench_values(rig, work, TDM_BF16, 1, &c->n, 0.5f, 1);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, q);
  args.out_scale = bench_empty_scales(rig, work, m, c->n);
  args.kv = tdm_view_slice(qkv, 1, c->n, 576);
  args.kv_weight = bench_values(rig, work, TDM_BF16, 1, (const int64_t[]){512}, 0.5f, 1);
  args.positions = random_positions(rig, work, m);
  args.cos_sin = angles(rig, work);
  args.slots = random_slots(rig, work, m, pages);
  args.cache = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){pages, TDM_PAGE_TOKENS, 576});
  bench_warm(work);
  bench_make_done(work, &tdm_op_mla_norm_write, &args, 1e-4);
  return TDM_OK;
}

/* The projections in front of the same. */
tdm_status bench_make_qkv_a(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t pages = (m + TDM_PAGE_TOKENS - 1) / TDM_PAGE_TOKENS + 2, rows = c->n + 576;
  tdm_mla_qkv_a_args args = {.size = sizeof args, .style = TDM_ROPE_DEINTERLEAVE};
  args.a = bench_values(rig, work, TDM_E4M3, 2, (const int64_t[]){m, c->k}, 240, 0);
  args.a_scale = bench_scales(rig, work, m, c->k);
  args.w = bench_rotate(rig, work, offsetof(tdm_mla_qkv_a_args, w), TDM_E4M3, 2, (const int64_t[]){rows, c->k});
  args.w_scale = bench_values(rig, work, TDM_F32, 2, (const int64_t[]){bench_blocks(rows), c->k / 128}, 1e-4f, 3e-4f);
  args.q_weight = bench_values(rig, work, TDM_BF16, 1, &c->n, 0.5f, 1);
  args.out_q = bench_tensor(rig, work, TDM_E4M3, 2, (const int64_t[]){m, c->n});
  args.out_scale = bench_empty_scales(rig, work, m, c->n);
  args.kv_weight = bench_values(rig, work, TDM_BF16, 1, (const int64_t[]){512}, 0.5f, 1);
  args.positions = random_positions(rig, work, m);
  args.cos_sin = angles(rig, work);
  args.slots = random_slots(rig, work, m, pages);
  args.cache = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){pages, TDM_PAGE_TOKENS, 576});
  bench_make_done(work, &tdm_op_mla_qkv_a, &args, 1e-3);
  return TDM_OK;
}

/* Heads of k values in, of n out; w is the keys' half of kv_b and rotates. A piece: one head. */
tdm_status bench_make_absorb(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t heads = c->batch;
  tdm_mla_absorb_args args = {.size = sizeof args, .style = TDM_ROPE_DEINTERLEAVE};
  args.q = bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, c->k}, 1, 0);
  args.w = bench_rotate(rig, work, offsetof(tdm_mla_absorb_args, w), TDM_BF16, 3, (const int64_t[]){heads, 128, 512});
  args.positions = random_positions(rig, work, m);
  args.cos_sin = angles(rig, work);
  args.out = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, c->n});
  bench_make_done(work, &tdm_op_mla_absorb, &args, 1e-5);
  bench_check* check = &work->check;
  bench_axis(check, 0, heads);
  bench_cut_view(check, 0, offsetof(tdm_mla_absorb_args, q), 1, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_absorb_args, w), 0, 0, 1, 1);
  bench_cut_view(check, 0, offsetof(tdm_mla_absorb_args, out), 1, 0, 1, 1);
  return TDM_OK;
}

/* One sequence of m new tokens. A piece: one head of the first tokens, which no later one reaches. */
tdm_status bench_make_mla_prefill(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work) {
  const int64_t heads = c->batch, tokens = bench_least(m, CHECK_TOKENS);
  tdm_mla_prefill_args args = {.size = sizeof args, .scale = 0.0721688f};
  const tdm_view q = bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, 192}, 2, 0);
  args.q_nope = tdm_view_slice(q, 2, 0, 128);
  args.q_rope = tdm_view_slice(q, 2, 128, 64);
  args.kv = bench_values(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, 256}, 1, 0);
  args.k_rope = bench_values(rig, work, TDM_BF16, 2, (const int64_t[]){m, 64}, 1, 0);
  args.n_seqs = bench_ints(rig, work, (const int32_t[]){1}, 1);
  args.seq_kind = bench_ints(rig, work, (const int32_t[]){TDM_SEQ_EXPANDED}, 1);
  args.seq_start = bench_ints(rig, work, (const int32_t[]){0, (int32_t)m, 0, (int32_t)tokens}, 4);
  args.seq_start.shape[0] = 2;
  args.out = bench_tensor(rig, work, TDM_BF16, 3, (const int64_t[]){m, heads, 128});
  bench_warm(work);
  bench_make_done(work, &tdm_op_mla_prefill, &args, 1e-4);
  static const size_t by_head[] = {offsetof(tdm_mla_prefill_args, q_nope), offsetof(tdm_mla_prefill_args, q_rope),
                                   offsetof(tdm_mla_prefill_args, kv), offsetof(tdm_mla_prefill_args, out)};
  bench_check* check = &work->check;
  bench_axis(check, 0, heads);
  bench_axis(check, 1, 1);
  for (int i = 0; i < 4; i++) {
    bench_cut_view(check, 0, by_head[i], 1, 0, 1, 1);
    bench_cut_view(check, 1, by_head[i], 0, 0, 0, tokens);
  }
  bench_cut_view(check, 1, offsetof(tdm_mla_prefill_args, k_rope), 0, 0, 0, tokens);
  bench_cut_view(check, 1, offsetof(tdm_mla_prefill_args, seq_start), 0, 2, 0, 2);
  return TDM_OK;
}
