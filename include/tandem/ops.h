#ifndef TANDEM_OPS_H
#define TANDEM_OPS_H

/* The operations that a program is made of: one args struct and one append function each.
 *
 * Rules for all of them
 * - Start from zeroes: `tdm_x_args args = {.size = sizeof args, ...}`. An absent view, a zero number: the default.
 * - Append copies args, checks shapes, dtypes, alignment and bounds at once, and appends one step to the program. It
 * answers INVALID_ARGUMENT for what can never be right and UNSUPPORTED for what this version cannot do, with names and
 * values; INVALID_STATE after seal; OUT_OF_MEMORY. A failed append leaves the program as it was. It allocates host
 * memory.
 * - `lane` comes from the program's runtime. `label` (at most 63 characters, copied) names the step in prints and
 * errors.
 * - M is the number of rows (tokens) that the views have. `n_tokens`, where it is given, is an i32 [1] in device memory
 * with the number of live rows, 0 <= n <= M, read at every launch: rows at or beyond it are neither read nor written.
 * - Unless said otherwise views are row-major with a contiguous last dimension, row strides may be wider than the row,
 * data starts 16-byte aligned, and outputs overlap neither inputs nor each other.
 * - FP8 data are e4m3 with one f32 scale for 128 columns of a row: [M, K] data and [K/128, M] scales whose row stride
 * is tdm_scale_stride(M) or more and a multiple of 4. Producers write 0 to the scale columns from the live row count to
 * the next multiple of 4. FP8 weights have one f32 scale for a block of 128 x 128: [ceil(N/128), K/128].
 * - "f32 activations" (f32 where the GPU has bf16 or e4m3, no scales) are the unquantised mode of the host device:
 * nothing is rounded below f32. The GPU kernels answer UNSUPPORTED for it.
 * - eps and quant_eps: 0 means the default; otherwise at least 1e-30, so that the scale of a block of zeros is a normal
 * number.
 * - NaN or infinity in one token's input stays in that token's row.
 * - Formulas, with their sources: docs/formulas.md; the section is named at each op. */

#include "tandem/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* RMSNorm with optional residual add and optional FP8 quantisation (sections 1 and 2).
 *   r = x + delta (rounded to residual_out's dtype when that is given);  y = r * rsqrt(mean(r^2) + eps) * weight, in
 * f32 out = y rounded once;  out_q, out_scale = quant(y), straight from the f32 value Without weight it normalises
 * only; with neither out nor out_q it is the residual add alone (then weight must be absent). */
typedef struct tdm_rmsnorm_args {
  size_t size;
  tdm_view n_tokens;     /* optional i32 [1] */
  tdm_view x;            /* [M, D] bf16 or f32 */
  tdm_view delta;        /* optional [M, D] bf16 or f32 */
  tdm_view residual_out; /* optional [M, D] bf16 or f32, may be x itself */
  tdm_view weight;       /* optional [D] bf16 or f32 */
  tdm_view out;          /* optional [M, D] bf16 or f32 */
  tdm_view out_q;        /* optional [M, D] e4m3; D a multiple of 128 */
  tdm_view out_scale;    /* [D/128, M] f32, exactly when out_q is there */
  float eps;             /* default 1e-6 */
  float quant_eps;       /* floor of amax; default 1e-4 */
  bool pow2_scale;       /* scales rounded up to a power of two */
} tdm_rmsnorm_args;
TDM_API tdm_status tdm_append_rmsnorm(tdm_program* program, tdm_lane* lane, const char* label,
                                      const tdm_rmsnorm_args* args);

/* FP8 quantisation of activations in blocks of 1 x 128 (section 2). A block with NaN or infinity gets scale NaN. */
typedef struct tdm_quant_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view x;         /* [M, K] bf16 or f32; K a multiple of 128 */
  tdm_view out_q;     /* [M, K] e4m3 */
  tdm_view out_scale; /* [K/128, M] f32 */
  float quant_eps;    /* floor of amax; default 1e-4 */
  bool pow2_scale;
} tdm_quant_args;
TDM_API tdm_status tdm_append_quant(tdm_program* program, tdm_lane* lane, const char* label,
                                    const tdm_quant_args* args);

/* Block-scaled FP8 linear: out[m,n] = sum over k of a[m,k] * w[n,k] with scales (section 3). FP8 products of a block of
 * 128 along K are summed exactly and promoted to f32 once a block, blocks ascending. */
typedef struct tdm_gemm_fp8_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view a;        /* [M, K] e4m3, or f32 activations; K a multiple of 128 */
  tdm_view a_scale;  /* [K/128, M] f32, exactly when a is e4m3 */
  tdm_view w;        /* [N, K] e4m3, any N */
  tdm_view w_scale;  /* [ceil(N/128), K/128] f32 */
  tdm_view out;      /* [M, N] bf16 or f32 */
} tdm_gemm_fp8_args;
TDM_API tdm_status tdm_append_gemm_fp8(tdm_program* program, tdm_lane* lane, const char* label,
                                       const tdm_gemm_fp8_args* args);

/* Grouped block-scaled FP8 linear, the einsum bhr,hdr->bhd: out[m, g*N + n] = sum over k of a[g,m,k] * w[g,n,k] with
 * scales (section 15). Sums and rounding as for gemm_fp8; a row's bits depend on its own data and the weights' shape
 * only. The GPU kernels take N and K/128 that divide by 128 and 2, and groups that lie whole rows apart; otherwise
 * UNSUPPORTED. */
typedef struct tdm_bmm_fp8_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1]: live rows of M */
  tdm_view a;        /* [G, M, K] e4m3, or f32 activations; K a multiple of 128; M not padded */
  tdm_view a_scale;  /* [G, K/128, M] f32, exactly when a is e4m3 */
  tdm_view w;        /* [G, N, K] e4m3, any N */
  tdm_view w_scale;  /* [G, ceil(N/128), K/128] f32 */
  tdm_view out;      /* [M, G*N] bf16 or f32 */
} tdm_bmm_fp8_args;
TDM_API tdm_status tdm_append_bmm_fp8(tdm_program* program, tdm_lane* lane, const char* label,
                                      const tdm_bmm_fp8_args* args);

/* Block-scaled FP8 linears of groups of rows, each group with weights of its own, such as tokens by expert: for the
 * rows m of group g, row_start[g] up to row_start[g] + row_count[g], out[m,n] = sum over k of a[m,k] * w[g,n,k] with
 * scales, as gemm_fp8. Groups may begin at any row, in any order, with gaps between them, and may be empty; they must
 * not overlap. Rows of no group stay as they are. Contiguous layouts pass running sums as row_start, masked ones
 * multiples of their capacity, with max_rows that capacity. A group outside a, or larger than max_rows, fails on the
 * host device and is cut short on CUDA devices. The sum is never cut along K, so that a row has the same bits wherever
 * its group lies; gemm_fp8 may cut it and then differs in the last bits. */
typedef struct tdm_grouped_gemm_fp8_args {
  size_t size;
  tdm_view row_start; /* [G] i32 */
  tdm_view row_count; /* [G] i32 */
  tdm_view a;         /* [R, K] e4m3, or f32 activations; K a multiple of 128 */
  tdm_view a_scale;   /* [K/128, R] f32, exactly when a is e4m3 */
  tdm_view w;         /* [G, N, K] e4m3, any N */
  tdm_view w_scale;   /* [G, ceil(N/128), K/128] f32 */
  tdm_view out;       /* [R, N] bf16 or f32 */
  int64_t max_rows;   /* most rows of a group; 0: R */
} tdm_grouped_gemm_fp8_args;
TDM_API tdm_status tdm_append_grouped_gemm_fp8(tdm_program* program, tdm_lane* lane, const char* label,
                                               const tdm_grouped_gemm_fp8_args* args);

/* BF16 linear, and strided batched GEMM: out[b,m,n] = sum over k of a[b,m,k] * w[b,n,k]; f32 accumulation, one
 * rounding. Rank 2, or rank 3 with a leading batch dimension. Any batch and row strides; of w's N and K one has stride
 * 1 (so that a [K, N] matrix is passed transposed, without a copy). */
typedef struct tdm_gemm_bf16_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1]: live rows of M */
  tdm_view a;        /* [M, K] or [B, M, K] bf16 or f32 */
  tdm_view w;        /* [N, K] or [B, N, K] bf16 or f32 */
  tdm_view out;      /* [M, N] or [B, M, N] bf16 or f32 */
} tdm_gemm_bf16_args;
TDM_API tdm_status tdm_append_gemm_bf16(tdm_program* program, tdm_lane* lane, const char* label,
                                        const tdm_gemm_bf16_args* args);

/* Strided batched GEMM of bf16 with FP8 quantisation: gemm_bf16 to [B, M, N] in bf16, then quant of each row's 128
 * columns (sections 2 and 6); column n of batch b becomes column b*N + n. The same bits as these two ops one after the
 * other, as long as gemm_bf16 does not cut its sum along K (up to K = 512 it never does); this op never cuts it.
 * UNSUPPORTED: N that 128 does not divide. */
typedef struct tdm_bmm_quant_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1]: live rows of M */
  tdm_view a;         /* [B, M, K] bf16, any batch and row strides */
  tdm_view w;         /* [B, N, K] bf16, likewise; N a multiple of 128 */
  tdm_view out_q;     /* [M, B*N] e4m3 */
  tdm_view out_scale; /* [B*N/128, M] f32 */
  float quant_eps;    /* floor of amax; default 1e-4 */
  bool pow2_scale;
} tdm_bmm_quant_args;
TDM_API tdm_status tdm_append_bmm_quant(tdm_program* program, tdm_lane* lane, const char* label,
                                        const tdm_bmm_quant_args* args);

/* Router logits in f32 (section 7): logits[m,e] = sum over h of x[m,h] * w[e,h]. */
typedef struct tdm_router_gemm_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view x;        /* [M, H] bf16 or f32 */
  tdm_view w;        /* [E, H] bf16 or f32 */
  tdm_view logits;   /* [M, E] f32 */
  tdm_view prefetch; /* optional [R, C], any dtype: what a later step reads is brought to L2 meanwhile. Rows contiguous,
                        their first address and their bytes multiples of 16. The result does not depend on it, and the
                        host device passes over it */
} tdm_router_gemm_args;
TDM_API tdm_status tdm_append_router_gemm(tdm_program* program, tdm_lane* lane, const char* label,
                                          const tdm_router_gemm_args* args);

/* DeepSeek-V3 routing: sigmoid scores, bias for the choice only, grouped top-k (section 7). Ties go to the lower index;
 * experts outside the kept groups are masked with minus infinity. A row with a NaN logit gets ids as if NaN scored
 * lowest, and NaN weights. ids come in descending order of the biased score. */
typedef struct tdm_moe_route_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view logits;   /* [M, E] f32, E <= 1024 */
  tdm_view bias;     /* optional [E] f32 */
  tdm_view ids;      /* optional [M, top_k] i32 */
  tdm_view weights;  /* optional [M, top_k] f32, in the order of ids */
  tdm_view alpha;  /* optional [M, E + n_shared] f32: the weight where chosen, 0 elsewhere, 1 for the shared experts */
  tdm_view hits;   /* optional [1 + E + n_shared] i32, with alpha: how many experts have a weight other than 0 (NaN
                      counts) in a live row, then these experts, ascending; the rest is undefined. At most 1024 experts */
  tdm_view chosen; /* optional [M, ceil((E + n_shared) / 32)] i32, with alpha: bit e % 32 of word e / 32 of a live row
                      is set where its alpha is not 0 (NaN counts); bits of no expert are 0 */
  int32_t top_k;   /* 1..32, at most topk_group * E / n_group */
  int32_t n_group; /* divides E; 1: no groups */
  int32_t topk_group; /* 1..n_group */
  int32_t n_shared;   /* shared experts at the end of alpha */
  bool norm_topk_prob;
  float routed_scaling_factor;
} tdm_moe_route_args;
TDM_API tdm_status tdm_append_moe_route(tdm_program* program, tdm_lane* lane, const char* label,
                                        const tdm_moe_route_args* args);

/* router_gemm and moe_route as one step, with the bits of both. UNSUPPORTED but for up to 512 rows, 256 or 384
 * experts and, where groups are left out, groups of 32: the two ops take the rest. */
typedef struct tdm_moe_gate_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view x;        /* [M, H] bf16 or f32 */
  tdm_view w;        /* [E, H] bf16 or f32 */
  tdm_view bias;     /* this and what follows as in moe_route: optional [E] f32 */
  tdm_view logits;   /* [M, E] f32, written */
  tdm_view ids;      /* optional [M, top_k] i32 */
  tdm_view weights;  /* optional [M, top_k] f32 */
  tdm_view alpha;    /* optional [M, E + n_shared] f32 */
  tdm_view hits;     /* optional [1 + E + n_shared] i32, with alpha */
  tdm_view chosen;   /* optional [M, ceil((E + n_shared) / 32)] i32, with alpha */
  tdm_view prefetch; /* optional, as in router_gemm */
  int32_t top_k;
  int32_t n_group;
  int32_t topk_group;
  int32_t n_shared;
  bool norm_topk_prob;
  float routed_scaling_factor;
} tdm_moe_gate_args;
TDM_API tdm_status tdm_append_moe_gate(tdm_program* program, tdm_lane* lane, const char* label,
                                       const tdm_moe_gate_args* args);

/* rmsnorm and moe_gate as one step, with the bits of both: the router reads the norm's `out`. For few rows, which
 * take kernels longer to begin and to end than to work on. UNSUPPORTED but for up to 8 rows, H a multiple of 128
 * up to 8192, and the routers that moe_gate takes: the other ops take the rest. */
typedef struct tdm_moe_norm_gate_args {
  size_t size;
  tdm_view n_tokens;     /* optional i32 [1] */
  tdm_view x;            /* this and what follows as in rmsnorm: [M, H] bf16 or f32 */
  tdm_view delta;        /* optional [M, H] bf16 or f32 */
  tdm_view residual_out; /* optional [M, H] bf16 or f32, not x */
  tdm_view weight;       /* optional [H] bf16 or f32, of the norm */
  tdm_view out;          /* [M, H] bf16 or f32 */
  tdm_view out_q;        /* optional [M, H] e4m3 */
  tdm_view out_scale;    /* [H/128, M] f32, exactly when out_q is there */
  tdm_view w;            /* this and what follows as in moe_gate: [E, H] bf16 or f32 */
  tdm_view bias;         /* optional [E] f32 */
  tdm_view logits;       /* [M, E] f32, written */
  tdm_view ids;          /* optional [M, top_k] i32 */
  tdm_view weights;      /* optional [M, top_k] f32 */
  tdm_view alpha;        /* optional [M, E + n_shared] f32 */
  tdm_view chosen;       /* optional [M, ceil((E + n_shared) / 32)] i32, with alpha */
  tdm_view prefetch[2];  /* optional, as in router_gemm; only where SMs are left, as on a whole GPU */
  int32_t top_k;
  int32_t n_group;
  int32_t topk_group;
  int32_t n_shared;
  bool norm_topk_prob;
  float routed_scaling_factor;
  float eps;       /* default 1e-6 */
  float quant_eps; /* floor of amax; default 1e-4 */
  bool pow2_scale; /* scales rounded up to a power of two */
} tdm_moe_norm_gate_args;
TDM_API tdm_status tdm_append_moe_norm_gate(tdm_program* program, tdm_lane* lane, const char* label,
                                            const tdm_moe_norm_gate_args* args);

/* Dense FC1: gate and up projections of all experts as one GEMM, SwiGLU and FP8 requantisation in its epilogue; needs
 * no routing (section 13). Column block e of the output is expert e. A dense MLP is the case E = 1. g, u in f32;  v =
 * silu(g) * u (with swiglu_limit L > 0: min(g, L), clamp(u, -L, L) first);  out, out_scale = quant(v) w13 has rows
 * interleaved in blocks of 128: for expert e and block i, 128 gate rows, then 128 up rows. */
typedef struct tdm_moe_fc1_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view x;         /* [M, H] e4m3, bf16 (with bf16 weights) or f32 activations; H a multiple of 128 */
  tdm_view x_scale;   /* [H/128, M] f32, exactly when x is e4m3 */
  tdm_view w13;       /* [E, 2*I, H] e4m3, bf16 or f32; I a multiple of 128; rows as above */
  tdm_view w13_scale; /* [E, 2*I/128, H/128] f32, exactly when w13 is e4m3 */
  tdm_view hits;      /* optional [1 + E] i32, as moe_route writes it: only these experts are computed, the same bits;
                         columns of the others are left as they are, their weights are not read */
  tdm_view chosen;    /* optional [M, ceil(E/32)] i32, as moe_route writes it, not with hits: of each expert only the
                         rows that chose it are computed, the same bits; all else in its columns, scales included, is
                         left as it is, and the weights of experts that no row chose are not read */
  tdm_view out;       /* [M, E*I] e4m3 when x is e4m3, else x's dtype */
  tdm_view out_scale; /* [E*I/128, M] f32, exactly when out is e4m3 */
  float swiglu_limit; /* 0: none */
  float quant_eps;    /* default 1e-4 */
  bool pow2_scale;
} tdm_moe_fc1_args;
TDM_API tdm_status tdm_append_moe_fc1(tdm_program* program, tdm_lane* lane, const char* label,
                                      const tdm_moe_fc1_args* args);

/* Dense FC2: down projections of all experts as one GEMM with K = E*I, the routing weight multiplied into the
 * activation scale of each 128-block (section 13); with bf16 weights, into the sum over a block or over the expert.
 * Blocks whose weight is 0 are skipped, so NaN in an expert that a token did not choose does not reach it. The sum over
 * K is cut on expert boundaries into a number of splits that follows from the shape alone; splits are added in
 * ascending order. */
typedef struct tdm_moe_fc2_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view x;        /* [M, E*I] e4m3, bf16 or f32: FC1's output */
  tdm_view x_scale;  /* [E*I/128, M] f32, exactly when x is e4m3 */
  tdm_view w2;       /* [H, E*I] e4m3, bf16 or f32 */
  tdm_view w2_scale; /* [ceil(H/128), E*I/128] f32, exactly when w2 is e4m3 */
  tdm_view alpha;    /* optional [M, E] f32: routing weights; absent: 1 everywhere */
  tdm_view hits;     /* optional [1 + E] i32, as moe_route writes it: only these experts are summed, in the same order;
                        neither weights nor activations of the others are read. Same bits where their alpha is 0 */
  tdm_view chosen;   /* optional [M, ceil(E/32)] i32, as moe_route writes it, not with hits: a row sums the experts
                        that it chose alone, in the same order, and nothing of the others is read. Same bits where
                        their alpha is 0 */
  tdm_view addend;   /* optional [M, H] f32 or bf16, added last */
  tdm_view out;      /* [M, H] bf16 or f32 */
  int32_t n_experts; /* E; I = columns of x / E, a multiple of 128 */
} tdm_moe_fc2_args;
TDM_API tdm_status tdm_append_moe_fc2(tdm_program* program, tdm_lane* lane, const char* label,
                                      const tdm_moe_fc2_args* args);

/* moe_fc1 and moe_fc2 with `chosen` in one launch, with the bits of both; the activations between them stay inside. Up
 * to 8 rows, whose experts' weights take no longer than two kernels take to begin and to end, for H up to 8192, I at
 * most H, and at most two splits of FC2's sum; from 9 to 128 rows, where FC2's weights are asked for without a pause
 * behind FC1's. UNSUPPORTED for more rows, for experts that do not fit into shared memory, but for FP8, and for shapes
 * whose FC1 sum is not whole, as that of routed experts is: the two ops take the rest. */
typedef struct tdm_moe_experts_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view x;         /* [M, H] e4m3; H a multiple of 128 */
  tdm_view x_scale;   /* [H/128, M] f32 */
  tdm_view w13;       /* [E, 2*I, H] e4m3; I a multiple of 128; rows as in moe_fc1 */
  tdm_view w13_scale; /* [E, 2*I/128, H/128] f32 */
  tdm_view w2;        /* [H, E*I] e4m3 */
  tdm_view w2_scale;  /* [ceil(H/128), E*I/128] f32 */
  tdm_view alpha;     /* optional [M, E] f32: routing weights; absent: 1 everywhere */
  tdm_view chosen; /* [M, ceil(E/32)] i32, as moe_route writes it: a row sums the experts that it chose alone; weights
                      of experts that no row chose are not read */
  tdm_view addend; /* optional [M, H] f32 or bf16, added last */
  tdm_view out;    /* [M, H] bf16 or f32 */
  float swiglu_limit; /* 0: none */
  float quant_eps;    /* of the activations between the products; default 1e-4 */
  bool pow2_scale;    /* likewise */
} tdm_moe_experts_args;
TDM_API tdm_status tdm_append_moe_experts(tdm_program* program, tdm_lane* lane, const char* label,
                                          const tdm_moe_experts_args* args);

/* Which elements a rotation pairs and where the result goes (section 5); i = 0..31. */
typedef enum tdm_rope_style {
  TDM_ROPE_DEINTERLEAVE = 1, /* pairs (2i, 2i+1) in; first elements to 0..31, second ones to 32..63: HF DeepSeek-V3 */
  TDM_ROPE_INTERLEAVED = 2,  /* pairs (2i, 2i+1), in place: official DeepSeek-V3 and V4 */
  TDM_ROPE_HALVES = 3        /* pairs (i, i+32), in place: NeoX */
} tdm_rope_style;

/* Rotary embedding of 64 values a head (section 5), f32 rotation, one rounding. */
typedef struct tdm_rope_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view x;         /* [M, h, 64] bf16 or f32, any token and head stride */
  tdm_view positions; /* [M] i32, each in [0, P) */
  tdm_view cos_sin;   /* [P, 64] f32: 32 cosines, 32 sines */
  tdm_view out;       /* [M, h, 64] bf16 or f32, any token and head stride; may be x itself */
  tdm_rope_style style;
  bool inverse; /* sines negated */
} tdm_rope_args;
TDM_API tdm_status tdm_append_rope(tdm_program* program, tdm_lane* lane, const char* label, const tdm_rope_args* args);

/* Inverse rotary embedding of the last 64 values of every head, then FP8 quantisation, grouped for bmm_fp8 (section
 * 15): DeepSeek-V4's way from attention to its output projection. Values before the last 64 pass; rotation in f32, and
 * the quantiser takes the rotated f32 value. Head hh of group g fills columns hh*d .. hh*d + d-1 of the group's rows. A
 * block with NaN or infinity gets scale NaN. UNSUPPORTED: TDM_ROPE_DEINTERLEAVE, d that 128 does not divide, a table of
 * another width. */
typedef struct tdm_inverse_rope_quant_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view x;         /* [M, h, d] bf16 or f32, any token and head stride; d a multiple of 128 */
  tdm_view positions; /* [M] i32, each in [0, P) */
  tdm_view cos_sin;   /* [P, 64] f32: 32 cosines, 32 sines; the op negates the sines */
  tdm_view out_q;     /* [G, M, h/G*d] e4m3; G divides h */
  tdm_view out_scale; /* [G, h/G*d/128, M] f32 */
  tdm_rope_style style;
  float quant_eps; /* floor of amax; default 1e-10 */
  bool pow2_scale; /* scales rounded up to a power of two */
} tdm_inverse_rope_quant_args;
TDM_API tdm_status tdm_append_inverse_rope_quant(tdm_program* program, tdm_lane* lane, const char* label,
                                                 const tdm_inverse_rope_quant_args* args);

#define TDM_PAGE_TOKENS 64 /* tokens in a page of a paged cache */

/* MLA latent: RMSNorm of the first 512 values, RoPE of the last 64, written to the paged cache and optionally to a
 * plain tensor (section 6, rows 6 and 7; section 16). */
typedef struct tdm_mla_kv_write_args {
  size_t size;
  tdm_view n_tokens;    /* optional i32 [1] */
  tdm_view kv;          /* [M, 576] bf16 or f32, any row stride */
  tdm_view norm_weight; /* [512] bf16 or f32 */
  tdm_view positions;   /* [M] i32, each in [0, P) */
  tdm_view cos_sin;     /* [P, 64] f32 */
  tdm_view slots;       /* [M] i32: page * 64 + place in the page; -1: not written to the cache. No slot twice */
  tdm_view cache;       /* [n_pages, 64, 576] bf16 or f32 */
  tdm_view out;         /* optional [M, 576], dtype of cache */
  float eps;            /* default 1e-6 */
  tdm_rope_style style;
} tdm_mla_kv_write_args;
TDM_API tdm_status tdm_append_mla_kv_write(tdm_program* program, tdm_lane* lane, const char* label,
                                           const tdm_mla_kv_write_args* args);

/* rmsnorm of the low-rank queries and mla_kv_write of the latent that the same projection gave, as one step with the
 * bits of the two: out, out_q from q; cache, out_kv from kv. At least one of out and out_q is there. */
typedef struct tdm_mla_norm_write_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view q;         /* [M, D] bf16 or f32 */
  tdm_view q_weight;  /* [D] bf16 or f32 */
  tdm_view out;       /* optional [M, D] bf16 or f32 */
  tdm_view out_q;     /* optional [M, D] e4m3; D a multiple of 128 */
  tdm_view out_scale; /* [D/128, M] f32, exactly when out_q is there */
  tdm_view kv;        /* [M, 576] bf16 or f32, any row stride */
  tdm_view kv_weight; /* [512] bf16 or f32 */
  tdm_view positions; /* [M] i32, each in [0, P) */
  tdm_view cos_sin;   /* [P, 64] f32 */
  tdm_view slots;     /* [M] i32, as for mla_kv_write */
  tdm_view cache;     /* [n_pages, 64, 576] bf16 or f32 */
  tdm_view out_kv;    /* optional [M, 576], dtype of cache */
  float eps;          /* of both norms; default 1e-6 */
  float quant_eps;    /* floor of amax; default 1e-4 */
  bool pow2_scale;    /* scales rounded up to a power of two */
  tdm_rope_style style;
} tdm_mla_norm_write_args;
TDM_API tdm_status tdm_append_mla_norm_write(tdm_program* program, tdm_lane* lane, const char* label,
                                             const tdm_mla_norm_write_args* args);

/* gemm_fp8 and mla_norm_write as one step, with the bits of the two: the projections q_a and kv_a side by side, the
 * norm of the queries, and the latent's norm, rotation and write to the cache. Between them the product [M, D + 576] is
 * rounded to bf16; it stays inside. On CUDA devices, up to 128 rows, the norm's kernel adds up the segments of the
 * product's sum, for which the GEMM's CTAs would else wait for each other. */
typedef struct tdm_mla_qkv_a_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view a;         /* [M, K] e4m3; K a multiple of 128 */
  tdm_view a_scale;   /* [K/128, M] f32 */
  tdm_view w;         /* [D + 576, K] e4m3: the rows of q_a, then those of kv_a; D a multiple of 8 */
  tdm_view w_scale;   /* [ceil((D + 576)/128), K/128] f32 */
  tdm_view q_weight;  /* [D] bf16 or f32 */
  tdm_view out;       /* optional [M, D] bf16 or f32 */
  tdm_view out_q;     /* optional [M, D] e4m3; D a multiple of 128 */
  tdm_view out_scale; /* [D/128, M] f32, exactly when out_q is there */
  tdm_view kv_weight; /* [512] bf16 or f32 */
  tdm_view positions; /* [M] i32, each in [0, P) */
  tdm_view cos_sin;   /* [P, 64] f32 */
  tdm_view slots;     /* [M] i32, as for mla_kv_write */
  tdm_view cache;     /* [n_pages, 64, 576] bf16 or f32 */
  tdm_view out_kv;    /* optional [M, 576], dtype of cache */
  float eps;          /* of both norms; default 1e-6 */
  float quant_eps;    /* floor of amax; default 1e-4 */
  bool pow2_scale;    /* scales rounded up to a power of two */
  tdm_rope_style style;
} tdm_mla_qkv_a_args;
TDM_API tdm_status tdm_append_mla_qkv_a(tdm_program* program, tdm_lane* lane, const char* label,
                                        const tdm_mla_qkv_a_args* args);

/* Queries of absorbed MLA (section 6, row 7 and the absorbed form): gemm_bf16 over heads and rope as one step with the
 * bits of the two. out[m, h, n] = sum over d < 128 of q[m, h, d] * w[h, d, n], n < 512;  out[m, h, 512..575] =
 * rope(q[m, h, 128..191])
 */
typedef struct tdm_mla_absorb_args {
  size_t size;
  tdm_view n_tokens;  /* optional i32 [1] */
  tdm_view q;         /* [M, h, 192] bf16 or f32, any token and head stride: 128 to be absorbed, 64 to be rotated */
  tdm_view w;         /* [h, 128, 512] bf16 or f32, any head and row stride */
  tdm_view positions; /* [M] i32, each in [0, P) */
  tdm_view cos_sin;   /* [P, 64] f32 */
  tdm_view out;       /* [M, h, 576] bf16 or f32, any token and head stride */
  tdm_rope_style style;
} tdm_mla_absorb_args;
TDM_API tdm_status tdm_append_mla_absorb(tdm_program* program, tdm_lane* lane, const char* label,
                                         const tdm_mla_absorb_args* args);

/* How a sequence of a batch is attended to. */
typedef enum tdm_seq_kind {
  TDM_SEQ_ABSORBED = 1, /* mla_decode: queries against the cached latent, any number of new tokens, any context */
  TDM_SEQ_EXPANDED = 2  /* mla_prefill: all its tokens are new, keys and values expanded from the latent */
} tdm_seq_kind;

/* Paged MLA attention over the latent cache, absorbed form (section 6): causal; for the sequences of kind
 * TDM_SEQ_ABSORBED. Rows of other sequences get zeros. Scores and softmax in f32, probabilities rounded to bf16 before
 * they meet the values (not with an f32 cache), the denominator sums the rounded. A result depends on its own sequence
 * only, whatever else is in the batch. The tokens of sequence s are rows seq_start[s] .. seq_start[s+1]-1, the last
 * tokens of its kv_len[s]. */
typedef struct tdm_mla_decode_args {
  size_t size;
  tdm_view n_seqs;      /* i32 [1]: live sequences, 0 <= n <= S */
  tdm_view q;           /* [M, h, 576] bf16 or f32: 512 absorbed, then 64 rotated */
  tdm_view cache;       /* [n_pages, 64, 576] bf16 or f32 */
  tdm_view block_table; /* [S, max_pages] i32: page of a sequence's tokens 64j .. 64j+63 */
  tdm_view seq_start;   /* [S + 1] i32 */
  tdm_view kv_len;      /* [S] i32: cached tokens, the new ones included */
  tdm_view seq_kind;    /* [S] i32: tdm_seq_kind */
  tdm_view out;         /* [M, h, 512] bf16 or f32 */
  float scale;          /* softmax scale */
} tdm_mla_decode_args;
TDM_API tdm_status tdm_append_mla_decode(tdm_program* program, tdm_lane* lane, const char* label,
                                         const tdm_mla_decode_args* args);

/* Causal MLA attention over the new tokens only, expanded form (section 6); for the sequences of kind TDM_SEQ_EXPANDED.
 * Rows of other sequences are left as they are. Rounding as for mla_decode. */
typedef struct tdm_mla_prefill_args {
  size_t size;
  tdm_view n_seqs;    /* i32 [1] */
  tdm_view q_nope;    /* [M, h, 128] bf16 or f32, any token and head stride */
  tdm_view q_rope;    /* [M, h, 64], likewise, rotated */
  tdm_view kv;        /* [M, h, 256] bf16 or f32: 128 of k, then 128 of v */
  tdm_view k_rope;    /* [M, 64] bf16 or f32, any row stride, rotated */
  tdm_view seq_start; /* [S + 1] i32 */
  tdm_view seq_kind;  /* [S] i32 */
  tdm_view out;       /* [M, h, 128] bf16 or f32, any token and head stride; read and written */
  float scale;
} tdm_mla_prefill_args;
TDM_API tdm_status tdm_append_mla_prefill(tdm_program* program, tdm_lane* lane, const char* label,
                                          const tdm_mla_prefill_args* args);

/* out[m] = table[ids[m]]. An id outside [0, V) fails the step on the host device. */
typedef struct tdm_embedding_args {
  size_t size;
  tdm_view n_tokens; /* optional i32 [1] */
  tdm_view ids;      /* [M] i32 */
  tdm_view table;    /* [V, H] bf16 or f32 */
  tdm_view out;      /* [M, H] bf16 or f32 */
} tdm_embedding_args;
TDM_API tdm_status tdm_append_embedding(tdm_program* program, tdm_lane* lane, const char* label,
                                        const tdm_embedding_args* args);

/* out[l] = x[rows[l]]: the rows whose logits are wanted. */
typedef struct tdm_gather_rows_args {
  size_t size;
  tdm_view n_rows; /* optional i32 [1]: live rows of L */
  tdm_view x;      /* [M, H] bf16 or f32 */
  tdm_view rows;   /* [L] i32, each in [0, M) */
  tdm_view out;    /* [L, H], x's dtype */
} tdm_gather_rows_args;
TDM_API tdm_status tdm_append_gather_rows(tdm_program* program, tdm_lane* lane, const char* label,
                                          const tdm_gather_rows_args* args);

/* Index of the largest logit of a row; ties to the lower index; NaN never wins (a row of nothing but NaN gives 0). */
typedef struct tdm_argmax_args {
  size_t size;
  tdm_view n_rows; /* optional i32 [1] */
  tdm_view logits; /* [L, V] f32 */
  tdm_view out;    /* [L] i32 */
} tdm_argmax_args;
TDM_API tdm_status tdm_append_argmax(tdm_program* program, tdm_lane* lane, const char* label,
                                     const tdm_argmax_args* args);

/* Draws a token from softmax(logits / temperature) cut to the smallest set of most likely tokens whose probability
 * reaches top_p. Temperature 0 is argmax. The draw is Philox4x32-10 keyed by the row's seed and counted by its
 * position, so a sequence's tokens depend on nothing else in the batch. Tokens of equal probability rank by ascending
 * index. */
typedef struct tdm_sample_args {
  size_t size;
  tdm_view n_rows;      /* optional i32 [1] */
  tdm_view logits;      /* [L, V] f32 */
  tdm_view temperature; /* [L] f32, finite, >= 0 */
  tdm_view top_p;       /* [L] f32 in (0, 1] */
  tdm_view seeds;       /* [L] i64, any bits */
  tdm_view positions;   /* [L] i32, >= 0 */
  tdm_view out;         /* [L] i32 */
} tdm_sample_args;
TDM_API tdm_status tdm_append_sample(tdm_program* program, tdm_lane* lane, const char* label,
                                     const tdm_sample_args* args);

/* Random values for measurements and tests: element i of the flattened tensor is offset + amplitude * r, rounded once
 * to the dtype, with r = (int16) hash(seed, i) / 32768 in [-1, 1). The same bits on every device. */
typedef struct tdm_fill_args {
  size_t size;
  tdm_view out; /* contiguous, any shape; f32, bf16 or e4m3 */
  uint64_t seed;
  float amplitude; /* finite */
  float offset;    /* finite */
} tdm_fill_args;
TDM_API tdm_status tdm_append_fill(tdm_program* program, tdm_lane* lane, const char* label, const tdm_fill_args* args);

#ifdef __cplusplus
}
#endif
#endif
