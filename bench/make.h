#ifndef BENCH_MAKE_H
#define BENCH_MAKE_H

/* What makers of cases are written with. A maker fills work->args (copied by bench_make_done), says which operand
 * rotates, and how to cut the call into pieces for the reference. */

#include <string.h>

#include "bench/bench.h"

/* Blocks of 128 that `count` elements take. */
static inline int64_t bench_blocks(int64_t count) {
  return (count + 127) / 128;
}
static inline int64_t bench_least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Zeros, gone with the work. */
tdm_buffer* bench_buffer(bench_rig* rig, bench_work* work, size_t bytes);
/* Contiguous, with room for 3 more of dimension 0, which are zeros. */
tdm_view bench_tensor(bench_rig* rig, bench_work* work, tdm_dtype dtype, int32_t rank, const int64_t* shape);
/* The same with random values in [offset - amplitude, offset + amplitude). */
tdm_view bench_values(bench_rig* rig, bench_work* work, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                      float amplitude, float offset);
tdm_view bench_ints(bench_rig* rig, bench_work* work, const int32_t* values, int64_t count);
/* FP8 scales of [rows, cols] activations, pads zero; room for more rows than that is not needed. */
tdm_view bench_scales(bench_rig* rig, bench_work* work, int64_t rows, int64_t cols);
tdm_view bench_empty_scales(bench_rig* rig, bench_work* work, int64_t rows, int64_t cols);
/* The operand that rotates: cut from the pool of random values; `view` is its offset in the args. Once a work. */
tdm_view bench_rotate(bench_rig* rig, bench_work* work, size_t view, tdm_dtype dtype, int32_t rank,
                      const int64_t* shape);
/* The same for an operand that the maker fills: `copies` of it in a buffer, `bytes` apart. */
void bench_rotate_copies(bench_work* work, size_t view, size_t bytes, int32_t copies);
/* For work that rotates nothing. */
void bench_warm(bench_work* work);

/* Axis `axis` of the check has `units` pieces; what a piece is of operand `view`. */
void bench_axis(bench_check* check, int32_t axis, int64_t units);
void bench_cut_view(bench_check* check, int32_t axis, size_t view, int32_t dim, int64_t at, int64_t step,
                    int64_t count);
/* Copies args into work and check. */
void bench_make_done(bench_work* work, const tdm_op* op, const void* args, double bound);
/* Declares the same product for cuBLASLt and its check: `check_op` with `check_args` on product->out. */
void bench_product_done(bench_work* work, const bench_product* product, const tdm_op* check_op, const void* check_args);

tdm_status bench_make_gemm_fp8(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_grouped(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc1(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc2(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc1_chosen(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc2_chosen(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_experts(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc1_bf16(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_fc2_bf16(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_router(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_bmm(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_bmm_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_bmm_fp8(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_rmsnorm(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_inverse_rope_quant(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_route(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_norm_gate(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_gate_list(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_gate(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_mla_decode(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_mla_decode_new(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_kv_write(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_norm_write(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_qkv_a(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_absorb(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);
tdm_status bench_make_mla_prefill(bench_rig* rig, const bench_case* c, int64_t m, bench_work* work);

#endif
